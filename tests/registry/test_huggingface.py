"""Facts from a hub: headers alone, pinned to a commit, errors with remedies. See hub.py for what its hub can prove."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.registry.checkpoint import header
from tests.registry.hub import COMMIT, OLD_COMMIT, Hub, serve
from tests.registry.test_reader import ENDS, LLAMA, N_PARAMETERS, layer
from xinf.core.config import load
from xinf.core.errors import ConfigError, InvalidRequest, PermissionDenied, Unavailable, UnknownModel, XinfError
from xinf.registry import download_model, read_model

WEIGHTS = bytes(4 << 20)


def repository() -> dict[str, bytes]:
    """Two shards, each as long as it says."""
    shards = {"m-1.safetensors": {**ENDS, **layer(0)}, "m-2.safetensors": layer(1)}
    files = {}
    for name, tensors in shards.items():
        end = max(offsets for _, offsets in _offsets(header(tensors)))
        files[name] = header(tensors) + bytes(end)
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    return {
        "config.json": json.dumps(LLAMA).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **files,
    }


def _offsets(head: bytes) -> list[tuple[int, int]]:
    entries = json.loads(head[8:])
    return [tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"]


def environ(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), **more}


def test_facts_need_no_download(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        facts = read_model("org/name", environ=environ(hub, tmp_path))
        assert (facts.n_parameters, facts.is_counted, facts.revision) == (N_PARAMETERS, True, COMMIT)
        assert facts.has_vocabulary
        assert not (tmp_path / "cache").exists()
        assert {tuple(hub.gets(name)) for name in ("m-1.safetensors", "m-2.safetensors")} == {("bytes=0-131071",)}
        # Everything after the first look is asked for at the commit.
        assert all(f"/resolve/{COMMIT}/" in request.path for request in hub.requests[1:])


def test_revision_is_pinned_and_reported(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        hub.files[OLD_COMMIT] = {**repository(), "config.json": json.dumps({**LLAMA, "vocab_size": 50}).encode()}
        hub.branches["v1"] = OLD_COMMIT
        old = read_model("org/name", environ=environ(hub, tmp_path), revision="v1")
        assert (old.revision, old.vocabulary_size) == (OLD_COMMIT, 50)
        assert read_model("org/name@v1", environ=environ(hub, tmp_path)) == old
        assert read_model(f"hf://org/name@{COMMIT}", environ=environ(hub, tmp_path)).vocabulary_size == 100


def test_mirror_comes_from_the_configuration_first(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        config = load(environ={}, overrides={"registry.huggingface_endpoint": hub.url + "/"}).registry
        elsewhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
        assert read_model("org/name", environ=elsewhere, config=config).revision == COMMIT


def test_server_that_ignores_ranges_is_read_no_further_than_needed(tmp_path: Path) -> None:
    with serve({**repository()}, ignores_ranges=True) as hub:
        assert read_model("org/name", environ=environ(hub, tmp_path)).n_parameters == N_PARAMETERS


@pytest.mark.parametrize(("model", "settings", "error", "says"), [
    ("org/other", {}, UnknownModel, "there is no org/other at"),
    ("org/name@v9", {}, UnknownModel, "no such revision"),
    ("org/name", {"token": "t"}, UnknownModel, "or it is private"),
    ("org/name", {"gated": True}, PermissionDenied, "is gated"),
    ("org/name", {"status": 403}, PermissionDenied, "does not give"),
    ("org/name", {"status": 503}, Unavailable, "answered 503"),
    ("org/name", {"status": 429}, Unavailable, "answered 429"),
])  # fmt: skip
def test_errors_of_the_hub_are_typed(
    model: str, settings: dict[str, object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with serve(repository(), **settings) as hub, pytest.raises(error, match=says):
        read_model(model, environ=environ(hub, tmp_path))


def test_remedy_of_a_gated_model_says_where_and_what(tmp_path: Path) -> None:
    with serve(repository(), gated=True) as hub, pytest.raises(PermissionDenied) as caught:
        read_model("org/name", environ=environ(hub, tmp_path))
    assert f"{hub.url}/org/name" in str(caught.value.remedy)
    assert "HF_TOKEN" in str(caught.value.remedy)


def test_token_opens_a_private_model_and_is_in_no_message(tmp_path: Path) -> None:
    with serve(repository(), token="hf_right") as hub:
        assert read_model("org/name", environ=environ(hub, tmp_path, HF_TOKEN="hf_right")).revision == COMMIT
        with pytest.raises(UnknownModel) as caught:
            read_model("org/name", environ=environ(hub, tmp_path, HF_TOKEN="hf_wrong"))
    assert "hf_wrong" not in str(caught.value)


def test_line_feed_behind_a_token_is_no_part_of_it(tmp_path: Path) -> None:
    """As secrets have it that were read from a file."""
    with serve(repository(), token="hf_right") as hub:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            assert read_model("org/name", environ=environ(hub, tmp_path, **{name: " hf_right\n"})).revision == COMMIT


@pytest.mark.parametrize("token", ["hf_se\ncret", "hf_se cret", "hf_s\u00e9cret", "hf_se\x00cret"])
def test_token_that_cannot_be_sent_is_refused_and_not_shown(token: str, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        with pytest.raises(ConfigError, match=f"{name} has characters") as caught:
            read_model("org/name", environ={name: token, "HF_HUB_CACHE": str(tmp_path)})
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503, None])
def test_password_of_a_mirror_is_in_no_message(status: int | None, tmp_path: Path) -> None:
    with serve(repository(), status=status, page=None if status else b"<html>") as hub:
        env = {"HF_ENDPOINT": hub.url.replace("//", "//user:pa55word@"), "HF_HUB_CACHE": str(tmp_path)}
        with pytest.raises(XinfError) as caught:
            read_model("org/name", environ=env)
    assert hub.requests
    assert "pa55word" not in f"{caught.value} {caught.value.fields}"
    assert "//127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("page", [
    b"<html>log in</html>", b"[]", b'"x"', b"{}", b"", b'{"id": "org/name", "sha": 5, "siblings": 3}',
    b'{"id": "org/name", "siblings": [{"rfilename": 5, "lfs": {}}]}',
])  # fmt: skip
def test_page_of_somebody_else_is_no_hub(page: bytes, tmp_path: Path) -> None:
    with serve(repository(), page=page) as hub, pytest.raises(Unavailable, match="does not answer as a hub") as caught:
        read_model("org/name", environ=environ(hub, tmp_path))
    assert "HF_ENDPOINT" in str(caught.value.remedy)


def test_token_stays_with_the_hub_when_files_are_elsewhere(tmp_path: Path) -> None:
    with serve(repository()) as store, serve(repository(), token="hf_right", files_at=store.url) as hub:
        assert read_model("org/name", environ=environ(hub, tmp_path, HF_TOKEN="hf_right")).revision == COMMIT
        assert {request.token for request in hub.requests} == {"Bearer hf_right"}
        assert {request.token for request in store.requests} == {None}


def test_hub_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        pass
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        read_model("org/name", environ=environ(hub, tmp_path))
    assert "mirror" in str(caught.value.remedy)


def test_lying_shard_is_an_unknown_model(tmp_path: Path) -> None:
    files = repository()
    files["m-2.safetensors"] = b"\xff" * 2000
    with serve(files) as hub, pytest.raises(UnknownModel, match="damaged"):
        read_model("org/name", environ=environ(hub, tmp_path))


def test_index_that_names_what_is_not_there_is_an_unknown_model(tmp_path: Path) -> None:
    files = repository()
    del files["m-2.safetensors"]
    with serve(files) as hub, pytest.raises(UnknownModel, match=r"has no m-2\.safetensors"):
        read_model("org/name", environ=environ(hub, tmp_path))


def test_offline_reads_the_cache_and_asks_nobody(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        env = environ(hub, tmp_path)
        for offline in ({**env, "HF_HUB_OFFLINE": "1"}, env):
            with pytest.raises(UnknownModel, match="offline"):
                read_model("org/name", environ=offline, offline=True if offline is env else None)
        assert hub.requests == []
        online = read_model("org/name", environ=env)
        download_model("org/name", environ=env)
        hub.requests.clear()
        assert read_model("org/name", environ=env, offline=True) == online
        assert hub.requests == []


def test_cached_model_is_read_from_the_disk_when_the_hub_is_away(tmp_path: Path) -> None:
    with serve(repository()) as hub:
        env = environ(hub, tmp_path)
        online = read_model("org/name", environ=env)
        download_model("org/name", environ=env)
        hub.requests.clear()
        assert read_model("org/name", environ=env) == online
        assert len(hub.requests) == 1  # which commit it is
    assert read_model("org/name", environ=env) == online


@pytest.mark.parametrize("model", ["a b", "-x", "hf://", "org/name@../x", "hf://a/b/c", "org/name@-x"])
def test_what_is_no_reference_is_refused(model: str) -> None:
    with pytest.raises(InvalidRequest):
        read_model(model, environ={})


def test_empty_file_is_not_asked_for(tmp_path: Path) -> None:
    """There is no range of it that a server could answer."""
    with serve({**repository(), "tokenizer_config.json": b""}) as hub:
        facts = read_model("org/name", environ=environ(hub, tmp_path))
        assert (facts.n_parameters, facts.has_chat_template) == (N_PARAMETERS, None)
        assert hub.gets("tokenizer_config.json") == []

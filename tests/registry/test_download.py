"""Whole downloads from a hub on loopback: resumed, verified, where engines look for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from tests.agent.conftest import PACKAGE_HOME
from tests.registry.hub import COMMIT, OLD_COMMIT, _git_blob, serve
from tests.registry.test_huggingface import environ
from tests.registry.test_reader import LLAMA
from xinf.core.errors import InvalidRequest, PermissionDenied, Unavailable
from xinf.registry import Hub, Progress, Shelf, download_model, resolve_model
from xinf.registry.download import _MAX_FILES, _SPARE_BYTES, Meter, fetch_all
from xinf.registry.sources import find_sources

WEIGHTS = random.Random(5).randbytes(3 << 20)
FILES = {
    "config.json": json.dumps(LLAMA).encode(),
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"x" * 5000,
    "README.md": b"hello",
    "original/params.json": b"{}",
}
WANTED = {"config.json", "model.safetensors", "README.md"}


def test_model_lands_where_engines_look_for_it(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with serve(FILES) as hub:
        env = environ(hub, tmp_path)
        done = download_model("org/name", environ=env, on_progress=seen.append)
    assert done.revision == COMMIT
    assert done.directory == tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT
    assert {path.name for path in done.directory.iterdir()} == WANTED
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert (done.n_files, done.n_bytes) == (3, sum(len(FILES[name]) for name in WANTED))
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (done.n_bytes, done.n_bytes)
    source = resolve_model("org/name", models_dir=tmp_path, environ={**env, "HF_HUB_OFFLINE": "1"})
    assert source.directory == done.directory


def test_connection_that_breaks_is_resumed_where_it_broke(tmp_path: Path) -> None:
    with serve(FILES, cut_at={"model.safetensors": [1 << 20, 1 << 20]}) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
        ranges = hub.gets("model.safetensors")
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]


def test_download_that_was_given_up_goes_on_in_the_next_process(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with serve(FILES, cut_at={"model.safetensors": [1 << 20]}) as hub:
        env = environ(hub, tmp_path)

        def stop(progress: Progress) -> None:
            if progress.name == "model.safetensors" and progress.done_bytes >= 1 << 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download_model("org/name", environ=env, on_progress=stop)
        hub.requests.clear()
        hub.cut_at.clear()
        done = download_model("org/name", environ=env, on_progress=seen.append)
        (resumed,) = hub.gets("model.safetensors")
    assert resumed is not None
    assert resumed.startswith("bytes=")
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) >= 1 << 20
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_second_download_asks_for_no_file(tmp_path: Path) -> None:
    with serve(FILES) as hub:
        first = download_model("org/name", environ=environ(hub, tmp_path))
        hub.requests.clear()
        assert download_model("org/name", environ=environ(hub, tmp_path)) == first
        assert [request.path for request in hub.requests] == ["/api/models/org/name"]


def test_server_without_ranges_starts_again_and_ends_right(tmp_path: Path) -> None:
    with serve(FILES, ignores_ranges=True, cut_at={"model.safetensors": [1 << 20]}) as hub:
        seen: list[Progress] = []
        done = download_model("org/name", environ=environ(hub, tmp_path), on_progress=seen.append)
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_wrong_content_is_never_given_to_an_engine(tmp_path: Path) -> None:
    with serve(FILES, wrong_bytes=True) as hub, pytest.raises(Unavailable, match="another checksum"):
        download_model("org/name", environ=environ(hub, tmp_path))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20] == []


def test_mirror_that_lists_no_sums_is_held_to_those_of_its_answers(tmp_path: Path) -> None:
    with serve(FILES, has_sums=False, wrong_bytes=True) as hub:
        with pytest.raises(Unavailable, match=r"model\.safetensors came with another checksum"):
            download_model("org/name", environ=environ(hub, tmp_path))
        hub.wrong_bytes = False
        done = download_model("org/name", environ=environ(hub, tmp_path))
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_revision_is_held_for_all_files_and_remembered(tmp_path: Path) -> None:
    old = {**FILES, "README.md": b"old"}
    with serve(FILES) as hub:
        hub.files[OLD_COMMIT] = old
        hub.branches["v1"] = OLD_COMMIT
        env = environ(hub, tmp_path)
        done = download_model("org/name", environ=env, revision="v1")
        assert done.revision == OLD_COMMIT
        assert (done.directory / "README.md").read_bytes() == b"old"
        # The same weights: they are here already.
        hub.requests.clear()
        new = download_model("org/name", environ=env)
        assert hub.gets("model.safetensors") == []
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    assert resolve_model("org/name@v1", models_dir=tmp_path, environ=offline).directory == done.directory
    assert resolve_model("org/name", models_dir=tmp_path, environ=offline).directory == new.directory


def test_gated_model_is_refused_and_offline_nothing_is_asked(tmp_path: Path) -> None:
    with serve(FILES, gated=True) as hub:
        with pytest.raises(PermissionDenied, match="gated"):
            download_model("org/name", environ=environ(hub, tmp_path))
        hub.requests.clear()
        with pytest.raises(Unavailable, match="offline"):
            download_model("org/name", environ=environ(hub, tmp_path, HF_HUB_OFFLINE="1"))
        assert hub.requests == []


def test_repository_of_something_else_is_refused_before_a_byte(tmp_path: Path) -> None:
    with serve({"model.gguf": WEIGHTS}) as hub:
        with pytest.raises(InvalidRequest, match=r"no config\.json"):
            download_model("org/name", environ=environ(hub, tmp_path))
        assert hub.gets("model.gguf") == []


def test_download_that_ends_early_makes_no_part_of_what_others_fetched_whole(tmp_path: Path) -> None:
    with serve(FILES, gated=True) as hub:
        env = environ(hub, tmp_path)
        snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):  # as vLLM's own download does, without the README
            (snapshot / name).write_bytes(FILES[name])
        with pytest.raises(PermissionDenied):
            download_model("org/name", environ=env)
        offline = {**env, "HF_HUB_OFFLINE": "1"}
        assert resolve_model(f"org/name@{COMMIT}", models_dir=tmp_path, environ=offline).directory == snapshot
        hub.gated = False
        download_model("org/name", environ=env)
    assert {path.name for path in snapshot.iterdir()} == WANTED
    assert Shelf(tmp_path / "cache" / "models--org--name", Hub.HUGGINGFACE).listing(COMMIT) is not None


def test_repository_of_countless_files_is_refused(tmp_path: Path) -> None:
    with serve({"config.json": b"{}"} | {f"{n}.json": b"" for n in range(_MAX_FILES)}) as hub:
        with pytest.raises(InvalidRequest, match="20001 files to fetch"):
            download_model("org/name", environ=environ(hub, tmp_path))
        assert not (tmp_path / "cache").exists()


def test_hub_that_lies_writes_nowhere_else(tmp_path: Path) -> None:
    with serve({**FILES, "../evil.json": b"x", "/etc/evil.json": b"x", "a/../../evil": b"x"}) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
        assert {path.name for path in done.directory.iterdir()} == WANTED
        hub.files["../../../evil"] = hub.files.pop(COMMIT)
        hub.branches["main"] = "../../../evil"
        with pytest.raises(Unavailable, match="does not answer as a hub"):
            download_model("org/name", environ=environ(hub, tmp_path))
    assert [path for path in tmp_path.rglob("*evil*") if "cache" not in path.name] == []


def test_model_that_does_not_fit_is_refused_before_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=(2 << 20) + _SPARE_BYTES))
    with serve(FILES) as hub:
        with pytest.raises(Unavailable, match=r"3\.0 MiB of it are missing, and 66 MiB are free") as caught:
            download_model("org/name", environ=environ(hub, tmp_path))
        assert "HF_HUB_CACHE" in str(caught.value.remedy)
        assert hub.gets("config.json") == []
        # What is here already need not fit once more.
        blob = tmp_path / "cache" / "models--org--name" / "blobs" / f"{hashlib.sha256(WEIGHTS).hexdigest()}.partial"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(WEIGHTS[: 2 << 20])
        download_model("org/name", environ=environ(hub, tmp_path))


def test_disk_that_fills_up_meanwhile_is_left_with_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last byte, why it failed could not be told, and the store and every log beside it would fail too."""
    usage, looks = shutil.disk_usage(tmp_path), iter([1 << 40, _SPARE_BYTES, _SPARE_BYTES - 1])
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=next(looks)))
    monkeypatch.setattr(sys.modules["xinf.registry.download"], "_LOOK_BYTES", 1 << 20)
    with serve(FILES) as hub:
        with pytest.raises(Unavailable, match=r"cannot be stored: .*only 64\.0 MiB are left") as caught:
            download_model("org/name", environ=environ(hub, tmp_path))
        assert "make room" in str(caught.value.remedy)
    (partial,) = tmp_path.rglob(f"{hashlib.sha256(WEIGHTS).hexdigest()}.partial")  # others may be under way as well
    assert 1 << 20 < partial.stat().st_size < len(WEIGHTS), "kept for the next time"


def test_file_that_gets_its_name_meanwhile_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process fetches the same: what it wrote is there when files are listed, and gone a moment later."""
    walk = Path.rglob

    def late(path: Path, pattern: str) -> Iterator[Path]:
        yield from walk(path, pattern)
        yield path / "blobs" / "gone.partial"

    monkeypatch.setattr(Path, "rglob", late)
    with serve(FILES) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
    assert done.n_files == len(WANTED)


@pytest.mark.parametrize("size", [10**30, 2.5, -1, True, "7"])
def test_size_that_no_file_has_is_refused(size: object, tmp_path: Path) -> None:
    with serve(FILES, sizes={"model.safetensors": size}) as hub:
        with pytest.raises(Unavailable, match="does not say how large"):
            download_model("org/name", environ=environ(hub, tmp_path))
        assert hub.gets("config.json") == []


def test_same_content_under_two_names_is_fetched_once(tmp_path: Path) -> None:
    files = {**FILES, "a/model.safetensors": WEIGHTS, "b/README.md": FILES["README.md"]}
    with serve(files) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
        asked = hub.gets("model.safetensors")
    assert (done.directory / "a" / "model.safetensors").read_bytes() == WEIGHTS
    assert (done.directory / "b" / "README.md").read_bytes() == b"hello"
    assert asked == [None]


def test_small_file_with_another_content_is_refused_too(tmp_path: Path) -> None:
    with serve({**FILES, "model.safetensors": b"x" * 2000}, wrong_bytes=True) as hub:
        del hub.files[COMMIT]["model.safetensors"]
        with pytest.raises(Unavailable, match="another checksum"):
            download_model("org/name", environ=environ(hub, tmp_path))


def test_client_of_the_hub_takes_what_was_fetched_for_its_own(tmp_path: Path) -> None:
    with serve(FILES) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
    for name in WANTED:
        found = huggingface_hub.try_to_load_from_cache("org/name", name, cache_dir=tmp_path / "cache")
        assert found == str(done.directory / name)
        path = huggingface_hub.hf_hub_download(
            "org/name", name, cache_dir=tmp_path / "cache", endpoint="http://127.0.0.1:9", local_files_only=True
        )
        assert Path(path).read_bytes() == FILES[name]


def test_first_failure_ends_the_files_under_way() -> None:
    meter, late_s = Meter(None), time.monotonic() + 60

    def bring(name: str) -> None:
        if name == "broken":
            raise Unavailable("no answer")
        while time.monotonic() < late_s:
            meter.add(name, 1)

    with pytest.raises(Unavailable, match="no answer"):
        fetch_all(["endless", "broken"], bring, find_sources({}), meter)
    assert time.monotonic() < late_s


@pytest.mark.crash
@pytest.mark.timeout(400)
def test_download_killed_in_any_step_is_never_taken_for_whole_and_goes_on(tmp_path: Path) -> None:
    files = {**FILES, "model.safetensors": WEIGHTS[:200_000], "README.md": FILES["config.json"]}
    for name in WANTED:
        (tmp_path / "expected").mkdir(exist_ok=True)
        (tmp_path / "expected" / name).write_bytes(files[name])
    with serve(files) as hub:
        done = subprocess.run(
            [sys.executable, "-m", "tests.registry.kill_child", str(tmp_path / "cache"), str(tmp_path / "expected")],
            env={
                "PYTHONPATH": str(PACKAGE_HOME),
                "PATH": os.environ["PATH"],
                "XINF_REGISTRY_DOWNLOAD_WORKERS": "1",
                "XINF_REGISTRY_TIMEOUT": "55s",
            }
            | environ(hub, tmp_path),
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


@pytest.mark.parametrize(("status", "headers", "waits_s"), [
    (429, {"Retry-After": "21"}, 21.0),
    (429, {"RateLimit": '"resolvers";r=0;t=55', "RateLimit-Policy": '"fixed window";"resolvers";q=5;w=300'}, 55.0),
    (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.5),
    (503, {"Retry-After": "120"}, 120.0),
    (500, {}, 0.5),
    (502, {"Retry-After": "nonsense"}, 0.5),
])  # fmt: skip
def test_hub_that_is_busy_is_asked_again_when_it_says(
    status: int, headers: dict[str, str], waits_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: pauses.append(delay_s))
    with serve(FILES, refusals=[(status, headers)]) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
    assert pauses == [waits_s]
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_list_is_asked_for_again_when_the_hub_says_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    seen: list[Progress] = []

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    monkeypatch.setattr(
        sys.modules["xinf.registry.download"], "threading", SimpleNamespace(Event=Impatient, Lock=threading.Lock)
    )
    with serve(FILES, busy=[{"Retry-After": "40"}, {"Retry-After": "9999"}]) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path), on_progress=seen.append)
    assert pauses == [40.0, 300.0]
    assert [progress.waits_s for progress in seen[:2]] == pauses
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
    with serve(FILES, busy=[{"Retry-After": "1"}] * 9) as hub, pytest.raises(Unavailable, match="answered 429"):
        download_model("org/name", environ=environ(hub, tmp_path / "b"))
    with serve(FILES, busy=[{}]) as hub, pytest.raises(Unavailable, match="answered 429"):
        download_model("org/name", environ=environ(hub, tmp_path / "b"))


@pytest.mark.parametrize(("settings", "says"), [
    ({"loops": True}, "redirects"),
    ({"page_of": "model.safetensors"}, "does not answer as a hub"),
    ({"page_of": "config.json"}, "does not answer as a hub"),
    ({"sizes": {"model.safetensors": len(WEIGHTS) + 5}}, f"has {len(WEIGHTS)} bytes of model.safetensors, and lists"),
    ({"sizes": {"model.safetensors": len(WEIGHTS) - 5}}, "another checksum"),
])  # fmt: skip
def test_answers_of_anybody_end_in_a_sentence(
    settings: dict[str, object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: None)
    with serve(FILES, **settings) as hub, pytest.raises(Unavailable, match=says) as caught:
        download_model("org/name", environ=environ(hub, tmp_path))
    assert caught.value.remedy


def test_text_that_looks_like_a_page_is_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: None)
    readme = b'<p align="center">A model.</p>'
    html = "text/html; charset=utf-8"
    files = {**FILES, "README.md": readme, "LICENSE": b"<h1>Yours</h1>"}
    with serve(files, types={"README.md": html, "LICENSE": html}) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
        assert (done.directory / "README.md").read_bytes() == readme
    with serve(files, page_of="README.md") as hub, pytest.raises(Unavailable):
        download_model("org/name", environ=environ(hub, tmp_path / "b"))


def test_file_that_comes_compressed_all_the_same_is_the_file(tmp_path: Path) -> None:
    with serve(FILES, is_zipped=True) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_part_that_begins_elsewhere_is_not_put_behind_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: None)
    with serve(FILES, cut_at={"model.safetensors": [1 << 20]}, begins_at=7) as hub:
        env = environ(hub, tmp_path)
        with pytest.raises(Unavailable, match=f"was asked for bytes={1 << 20}-"):
            download_model("org/name", environ=env)
        hub.begins_at = None
        done = download_model("org/name", environ=env)
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_names_that_nobody_expects_land_under_themselves(tmp_path: Path) -> None:
    odd = [
        "a b.json",
        "größe.json",
        "100%.json",
        "a+b&c=d.json",
        "what?.json",
        "tag#1.json",
        "d/e/f.txt",
        "-x.json",
        "~.json",
    ]
    evil = [
        "../up.json",
        "/etc/x.json",
        "a//b.json",
        "./c.json",
        "d/./g.json",
        "h/../../i.json",
        "",
        ".",
        "k\\l.json",
        "m\nn.json",
    ]
    files = {**FILES, **{name: f"content of {name!r}".encode() for name in (*odd, *evil)}}
    with serve(files) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
    found = {str(path.relative_to(done.directory)) for path in done.directory.rglob("*") if path.is_file()}
    assert found == WANTED | set(odd)
    assert all((done.directory / name).read_bytes() == files[name] for name in odd)


def test_model_of_hundreds_of_shards_is_fetched_with_a_request_each(tmp_path: Path) -> None:
    shards = {f"model-{number:05}-of-00400.safetensors": random.Random(number).randbytes(2000) for number in range(400)}
    index = {"weight_map": {f"layer.{name}": name for name in shards}}
    files = {"config.json": FILES["config.json"], "model.safetensors.index.json": json.dumps(index).encode(), **shards}
    with serve(files) as hub:
        done = download_model("org/name", environ=environ(hub, tmp_path))
        assert len(hub.requests) == 1 + len(files)
    assert all((done.directory / name).read_bytes() == content for name, content in shards.items())
    assert Shelf(tmp_path / "cache" / "models--org--name", Hub.HUGGINGFACE).find_whole(None) == done.directory


@pytest.mark.parametrize("linked", ["cache", "cache/models--org--name", "cache/models--org--name/blobs"])
def test_cache_may_be_elsewhere(linked: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "other-disk"
    elsewhere.mkdir()
    (tmp_path / linked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / linked).symlink_to(elsewhere)
    with serve(FILES) as hub:
        env = environ(hub, tmp_path)
        done = download_model("org/name", environ=env)
        assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
        hub.requests.clear()
        assert download_model("org/name", environ=env) == done
        assert len(hub.requests) == 1


def test_room_is_looked_for_where_contents_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = tmp_path / "cache" / "models--org--name" / "blobs"
    blobs.parent.mkdir(parents=True)
    (tmp_path / "large-disk").mkdir()
    blobs.symlink_to(tmp_path / "large-disk")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=(1 << 40) * (path == blobs)))
    with serve(FILES) as hub:
        env = environ(hub, tmp_path)
        done = download_model("org/name", environ=env)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=0))
        monkeypatch.setattr(sys.modules["xinf.registry.download"], "_LOOK_BYTES", 1 << 20)
        assert download_model("org/name", environ=env) == done, "nothing is missing, of a large model either"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_cache_that_others_keep_is_read_and_says_what_to_do_when_something_is_missing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(FILES) as hub:
        env = environ(hub, tmp_path)
        done = download_model("org/name", environ=env)
        (tmp_path / "cache" / "models--org--name" / "refs" / "main").unlink()

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("xinf.registry.shelf._replace", refuse)
        monkeypatch.setattr("xinf.registry.blob._locked", refuse)
        assert download_model("org/name", environ=env) == done, "only the branch cannot be noted"
        (done.directory / "README.md").unlink()
        (tmp_path / "cache" / "models--org--name" / "blobs" / _git_blob(FILES["README.md"])).unlink()
        with pytest.raises(Unavailable, match="cannot be stored") as caught:
            download_model("org/name", environ=env)
    assert "let this user write to" in str(caught.value.remedy)
    assert "HF_HUB_CACHE" in str(caught.value.remedy)

"""One repository in its hub's cache: what its revisions are, and whether all of a commit is there.

# layout seen in: huggingface_hub 2.4, file_download.py (models--Org--Name/{blobs,refs,snapshots/<commit>})
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.registry.checkpoint import header
from xinf.registry import Hub, Reference, Shelf, find_sources, list_shelves, shelf_of

COMMIT = "c" * 40


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models--Org--Name", Hub.HUGGINGFACE)


def put(shelf: Shelf, *names: str, size: int = 3) -> None:
    for name in names:
        path = shelf.snapshot(COMMIT) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def test_repository_that_nobody_fetched_has_nothing(shelf: Shelf) -> None:
    assert shelf.find(None) is None
    assert shelf.find_whole("v1") is None
    assert (shelf.commits(), shelf.listing(COMMIT)) == ([], None)
    assert not shelf.is_whole(COMMIT)


def test_branch_means_the_commit_that_was_remembered(shelf: Shelf) -> None:
    put(shelf, "config.json", "model.safetensors")
    assert shelf.find(None) is None
    assert shelf.find(COMMIT) == shelf.snapshot(COMMIT)
    shelf.remember(None, COMMIT)
    shelf.remember("feature/x", COMMIT)
    assert [shelf.commit_of(name) for name in (None, "main", "feature/x", "v9")] == [COMMIT, COMMIT, COMMIT, "v9"]
    assert shelf.find(None) == shelf.snapshot(COMMIT)


def test_what_a_download_was_to_bring_decides(shelf: Shelf) -> None:
    shelf.write_listing(COMMIT, {"config.json": 3, "model.safetensors": 3, "a/b.json": None})
    put(shelf, "config.json", "model.safetensors")
    assert not shelf.is_whole(COMMIT), "a file is missing"
    put(shelf, "a/b.json", size=7)
    assert shelf.is_whole(COMMIT)
    put(shelf, "model.safetensors", size=2)
    assert not shelf.is_whole(COMMIT), "a file has another size"
    (shelf.snapshot(COMMIT) / "model.safetensors").unlink()
    (shelf.snapshot(COMMIT) / "model.safetensors").symlink_to("../../blobs/gone")
    assert not shelf.is_whole(COMMIT), "a link leads nowhere"


@pytest.mark.parametrize(("names", "is_whole"), [
    (("config.json",), False),
    (("config.json", "tokenizer.json"), False),
    (("model.safetensors",), False),
    (("config.json", "model.safetensors"), True),
    (("config.json", "pytorch_model.bin"), True),
    (("params.json", "consolidated.safetensors"), True),
])  # fmt: skip
def test_what_others_fetched_needs_a_config_and_weights(names: tuple[str, ...], is_whole: bool, shelf: Shelf) -> None:
    put(shelf, *names)
    assert shelf.is_whole(COMMIT) is is_whole


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_what_others_fetched_needs_all_that_its_index_names(end: str, shelf: Shelf) -> None:
    index = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}[end]
    put(shelf, "config.json", f"m-1.{end}")
    weight_map = {"a": f"m-1.{end}", "b": f"m-2.{end}"}
    (shelf.snapshot(COMMIT) / index).write_text(json.dumps({"weight_map": weight_map}))
    assert not shelf.is_whole(COMMIT)
    put(shelf, f"m-2.{end}")
    assert shelf.is_whole(COMMIT)
    (shelf.snapshot(COMMIT) / index).write_text("{")
    assert not shelf.is_whole(COMMIT)


def test_weights_that_a_power_cut_has_emptied_are_none(shelf: Shelf) -> None:
    put(shelf, "config.json", "model.safetensors")
    assert shelf.is_whole(COMMIT)
    put(shelf, "model.safetensors", size=0)
    assert not shelf.is_whole(COMMIT)


def test_weights_of_others_that_end_too_early_are_damaged(shelf: Shelf) -> None:
    put(shelf, "config.json")
    head = header({"a": ("F32", [100])})
    weights = shelf.snapshot(COMMIT) / "model.safetensors"
    weights.write_bytes(head + bytes(400))
    assert shelf.damage(COMMIT) is None
    for length in (len(head) + 399, len(head), 20, 3):
        weights.write_bytes((head + bytes(400))[:length])
        assert "model.safetensors is damaged" in str(shelf.damage(COMMIT))
    (shelf.snapshot(COMMIT) / "consolidated.safetensors").symlink_to("../../blobs/gone")
    weights.write_bytes(head + bytes(400))
    assert shelf.damage(COMMIT) is None, "what nobody reads is not looked at"
    weights.write_bytes(head)
    assert shelf.damage(COMMIT) is not None
    shelf.write_listing(COMMIT, {"config.json": 3})
    assert shelf.damage(COMMIT) is None, "ours are compared by their sizes, which we know"


def test_listing_that_cannot_be_read_is_none(shelf: Shelf) -> None:
    shelf.write_listing(COMMIT, {"config.json": 3})
    (shelf.directory / ".xinf" / f"{COMMIT}.json").write_text("[")
    put(shelf, "config.json", "model.safetensors")
    assert shelf.is_whole(COMMIT)


def test_name_that_no_file_can_have_is_not_there(shelf: Shelf) -> None:
    put(shelf, "config.json")
    shelf.write_listing(COMMIT, {"config.json": 3, "a\0b": 3})
    assert not shelf.is_whole(COMMIT)


def test_client_of_the_hub_leaves_our_listing_alone(shelf: Shelf, tmp_path: Path) -> None:
    import huggingface_hub

    put(shelf, "config.json", "model.safetensors")
    shelf.remember(None, COMMIT)
    shelf.write_listing(COMMIT, {"config.json": 3, "model.safetensors": 3})
    found = huggingface_hub.scan_cache_dir(tmp_path)
    assert [str(warning) for warning in found.warnings] == []
    (repository,) = found.repos
    assert (repository.repo_id, [revision.commit_hash for revision in repository.revisions]) == ("Org/Name", [COMMIT])


def test_caches_of_both_hubs_are_listed(tmp_path: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}
    sources = find_sources(environ)
    references = [
        Reference(Hub.HUGGINGFACE, "Org/Name", None),
        Reference(Hub.HUGGINGFACE, "gpt2", None),
        Reference(Hub.MODELSCOPE, "Org/Name", None),
    ]
    for reference in references:
        put(shelf_of(reference, sources), "config.json")
    (tmp_path / "hf" / "datasets--Org--x" / "snapshots").mkdir(parents=True)
    (tmp_path / "hf" / ".locks").mkdir()
    found = dict(list_shelves(sources))
    assert set(found) == set(references)
    for reference, shelf in found.items():
        assert shelf.directory == shelf_of(reference, sources).directory
    assert [reference.model for reference in references] == ["Org/Name", "gpt2", "modelscope://Org/Name"]


def test_branch_with_a_slash_that_stands_for_a_commit_is_found(shelf: Shelf) -> None:
    for name in ("config.json", "model.safetensors"):
        path = shelf.snapshot("feature/x") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    shelf.write_listing("feature/x", {"config.json": 1, "model.safetensors": 1})
    assert shelf.find_whole("feature/x") == shelf.snapshot("feature/x")
    assert shelf.damage("feature/x") is None

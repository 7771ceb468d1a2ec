"""Which models a host has: found by the layout that the hub's client keeps, never opened.

# layout seen in: huggingface_hub 1.0, file_download.py (models--Org--Name/{blobs,refs,snapshots/<commit>})
"""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.agent.models import MAX_MODELS, find_models
from xinf.registry import hub_cache_dir


def cached(cache: Path, name: str, *, is_loading: bool = False, has_config: bool = True) -> None:
    path = cache / f"models--{name.replace('/', '--')}"
    snapshot = path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (path / "blobs").mkdir()
    (path / "blobs" / ("x.incomplete" if is_loading else "x")).touch()
    if has_config:
        (snapshot / "config.json").symlink_to("../../blobs/x") if not is_loading else (snapshot / "config.json").touch()


def test_models_of_the_cache_and_of_our_own_directory_are_found(tmp_path: Path) -> None:
    cache, own = tmp_path / "hub", tmp_path / "models"
    cached(cache, "Org/Name-7B")
    cached(cache, "gpt2")
    cached(cache, "Org/loading", is_loading=True)
    cached(cache, "Org/tokenizer-only", has_config=False)
    (cache / "datasets--Org--x" / "snapshots" / "1").mkdir(parents=True)
    (own / "scripted").mkdir(parents=True)
    (own / "scripted" / "config.json").touch()
    (own / "empty").mkdir()
    assert find_models(own, {"HF_HUB_CACHE": str(cache)}) == (str(own / "scripted"), "Org/Name-7B", "gpt2")


def test_model_that_xinf_pull_is_fetching_is_not_there_yet(tmp_path: Path) -> None:
    cached(tmp_path, "Org/Name")
    (tmp_path / "models--Org--Name" / "blobs" / "0f.partial").touch()
    assert find_models(tmp_path / "own", {"HF_HUB_CACHE": str(tmp_path)}) == ()


def test_directories_that_are_not_there_have_none(tmp_path: Path) -> None:
    assert find_models(tmp_path / "a", {"HF_HUB_CACHE": str(tmp_path / "b")}) == ()


def test_list_is_bounded(tmp_path: Path) -> None:
    for number in range(MAX_MODELS + 3):
        path = tmp_path / f"{number:04d}"
        path.mkdir()
        (path / "config.json").touch()
    assert len(find_models(tmp_path, {"HF_HUB_CACHE": str(tmp_path / "none")})) == MAX_MODELS


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({}, str(Path.home() / ".cache" / "huggingface" / "hub")),
    ],
)
def test_cache_is_where_the_client_keeps_it(environ: dict[str, str], expected: str) -> None:
    assert str(hub_cache_dir(environ)) == expected

"""Which models a host has whole: by the listings of downloads and the layout that the hubs' clients keep.

# layout seen in: huggingface_hub 2.4, file_download.py (models--Org--Name/{blobs,refs,snapshots/<commit>})
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.registry import test_modelscope as modelscope
from tests.registry.hub import COMMIT, serve
from tests.registry.test_download import FILES
from xinf.agent.models import MAX_MODELS, find_models
from xinf.registry import download_model, hub_cache_dir

REVISION = "0123abcd"


def cached(cache: Path, name: str, *, is_loading: bool = False, has_config: bool = True, is_main: bool = True) -> None:
    path = cache / f"models--{name.replace('/', '--')}"
    snapshot = path / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (path / "blobs").mkdir()
    (path / "refs").mkdir()
    if is_main:
        (path / "refs" / "main").write_text(REVISION)
    (path / "blobs" / ("x.incomplete" if is_loading else "x")).write_bytes(b"x")
    if has_config:
        (snapshot / "config.json").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/x")


def test_models_of_the_cache_and_of_our_own_directory_are_found(tmp_path: Path) -> None:
    cache, own = tmp_path / "hub", tmp_path / "models"
    cached(cache, "Org/Name-7B")
    cached(cache, "gpt2", is_main=False)
    cached(cache, "Org/loading", is_loading=True)
    cached(cache, "Org/tokenizer-only", has_config=False)
    (cache / "datasets--Org--x" / "snapshots" / "1").mkdir(parents=True)
    (own / "scripted").mkdir(parents=True)
    (own / "scripted" / "config.json").touch()
    (own / "empty").mkdir()
    found = find_models(own, {"HF_HUB_CACHE": str(cache), "MODELSCOPE_CACHE": str(tmp_path / "ms")})
    assert found == (str(own / "scripted"), "Org/Name-7B", f"Org/Name-7B@{REVISION}", f"gpt2@{REVISION}")


def test_list_follows_what_is_pulled_from_either_hub_and_what_goes(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub, modelscope.serve(FILES) as scope:
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "MODELSCOPE_ENDPOINT": scope.url,
            "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        }
        assert find_models(tmp_path / "own", env) == ()
        download_model(f"org/name@{COMMIT}", environ=env)
        assert find_models(tmp_path / "own", env) == (f"org/name@{COMMIT}",)
        download_model("org/name", environ=env)
        done = download_model("modelscope://org/name", environ=env)
    scope_names = ("modelscope://org/name", f"modelscope://org/name@{modelscope.NEWEST}")
    assert find_models(tmp_path / "own", env) == (*scope_names, "org/name", f"org/name@{COMMIT}")
    (done.directory / "model.safetensors").unlink()
    assert find_models(tmp_path / "own", env) == ("org/name", f"org/name@{COMMIT}")


def test_model_that_xinf_pull_is_fetching_is_not_there_yet(tmp_path: Path) -> None:
    with serve(FILES) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}

        def stop(_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download_model("org/name", environ=env, on_progress=stop)
    assert find_models(tmp_path / "own", env) == ()


def test_directories_that_are_not_there_have_none(tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(tmp_path / "b"), "MODELSCOPE_CACHE": str(tmp_path / "c")}
    assert find_models(tmp_path / "a", env) == ()
    assert find_models(tmp_path / "a", {**env, "HF_ENDPOINT": "no address"}) == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at everything")
def test_directory_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    cached(tmp_path, "Org/Closed")
    cached(tmp_path, "Org/Open")
    closed = tmp_path / "models--Org--Closed"
    closed.chmod(0)
    try:
        found = find_models(tmp_path / "own", {"HF_HUB_CACHE": str(tmp_path), "MODELSCOPE_CACHE": str(tmp_path / "ms")})
    finally:
        closed.chmod(0o755)
    assert found == ("Org/Open", f"Org/Open@{REVISION}")


def test_list_is_bounded_and_those_that_came_last_stay(tmp_path: Path) -> None:
    for number in range(MAX_MODELS + 3):
        path = tmp_path / f"{number:04d}"
        path.mkdir()
        (path / "config.json").touch()
        os.utime(path / "config.json", (number, number))
    found = find_models(tmp_path, {"HF_HUB_CACHE": str(tmp_path / "none"), "MODELSCOPE_CACHE": str(tmp_path / "no")})
    assert [Path(name).name for name in found] == [f"{number:04d}" for number in range(3, MAX_MODELS + 3)]


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

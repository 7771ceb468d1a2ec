"""Which commit a wish is held to: what its hub says now, else what is here, else none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry import test_modelscope as modelscope
from tests.registry.hub import COMMIT, OLD_COMMIT, serve
from tests.registry.test_download import FILES
from xinf.cli.known import Known
from xinf.cli.pin import pin_model
from xinf.core.config import load
from xinf.core.records import EngineSpec
from xinf.registry import ModelFacts, download_model

CONFIG = load(environ={})
HIDDEN = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    return {"HF_HUB_CACHE": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}


async def test_commit_that_was_read_already_costs_no_question(env: dict[str, str]) -> None:
    spec = EngineSpec(model="org/name", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"})
    pinned = await pin_model(CONFIG, spec, Known(facts=ModelFacts(revision=COMMIT)))
    assert (pinned.model, pinned.commit, pinned.files) == ("org/name", COMMIT, f"org/name@{COMMIT}")


async def test_hub_is_asked_if_nobody_did(env: dict[str, str]) -> None:
    with serve(FILES) as hub:
        hub.files[OLD_COMMIT] = FILES
        hub.branches["v1"] = OLD_COMMIT
        env["HF_ENDPOINT"] = hub.url
        assert (await pin_model(CONFIG, EngineSpec(model="org/name", env=env), Known())).commit == COMMIT
        old = EngineSpec(model="org/name", revision="v1", env=env)
        assert (await pin_model(CONFIG, old, Known())).commit == OLD_COMMIT
        assert [request.path for request in hub.requests] == [
            "/api/models/org/name", "/api/models/org/name/revision/v1"
        ]  # fmt: skip


async def test_modelscope_is_pinned_to_what_changed_last(env: dict[str, str]) -> None:
    pytest.importorskip("modelscope_hub")
    with modelscope.serve(FILES) as hub:
        spec = EngineSpec(model="modelscope://org/name", env={**env, "MODELSCOPE_ENDPOINT": hub.url})
        pinned = await pin_model(CONFIG, spec, Known())
    assert pinned.files == f"modelscope://org/name@{modelscope.NEWEST}"


async def test_whole_files_of_this_host_tell_what_the_hub_does_not(env: dict[str, str]) -> None:
    with serve(FILES) as hub:
        env["HF_ENDPOINT"] = hub.url
        download_model("org/name", environ=env)
    spec = EngineSpec(model="org/name", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (await pin_model(CONFIG, spec, Known(why="it is away"))).commit == COMMIT
    assert (await pin_model(CONFIG, spec, Known())).commit == COMMIT
    next(Path(env["HF_HUB_CACHE"]).rglob("model.safetensors")).unlink()
    assert (await pin_model(CONFIG, spec, Known())) == spec


async def test_hub_that_refuses_leaves_it_to_the_node(env: dict[str, str]) -> None:
    with serve(FILES, token="hf_right") as hub:
        spec = EngineSpec(model="org/name", env={**env, "HF_ENDPOINT": hub.url})
        assert await pin_model(CONFIG, spec, Known()) == spec


@pytest.mark.parametrize("spec", [EngineSpec(model="/a/path"), EngineSpec(model="org/name", engine="sim")])
async def test_what_is_of_no_hub_is_not_pinned(spec: EngineSpec) -> None:
    assert await pin_model(CONFIG, spec, Known()) == spec

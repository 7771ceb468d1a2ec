"""What is found out of a wished model: at the hub that is meant, and never for longer than anybody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.registry import test_modelscope as modelscope
from tests.registry.hub import COMMIT, Hub, serve
from tests.registry.test_huggingface import repository
from xinf.cli.known import Known, find_known, known_before
from xinf.core.config import load
from xinf.core.errors import UnknownModel
from xinf.core.ids import DeploymentName
from xinf.core.records import DeploymentRecord, EngineSpec
from xinf.registry import ModelFacts

HIDDEN = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "XINF_CONFIG")


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(repository()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize("typed", ["org/name", "org/name@main", "hf://org/name"])
def test_plan_reads_a_model_that_is_not_here_at_its_hub(
    typed: str, hub: Hub, xinf_json: Callable[..., Any], tmp_path: Path
) -> None:
    planned = xinf_json("plan", typed, "--device", "cpu")
    assert planned["facts"]["revision"] == COMMIT
    assert planned["devices"][0]["plan"]["weights_bytes"] > 0
    assert not (tmp_path / "hf").exists()


def test_plan_and_compat_read_modelscope_too(
    xinf_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("modelscope_hub")
    with modelscope.serve(repository()) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        planned = xinf_json("plan", "modelscope://org/name", "--device", "cpu")
        assert planned["facts"]["revision"] == modelscope.NEWEST
        asked = len(hub.asked)
        xinf_json("devices", "--compat", "modelscope://org/name")
        assert len(hub.asked) > asked
    assert not (tmp_path / "ms").exists()


async def test_bare_id_of_a_wish_is_read_where_the_engine_takes_it_from(hub: Hub) -> None:
    config = load(environ={"XINF_REGISTRY_SOURCE": "modelscope"})
    known = await find_known(config, EngineSpec(model="org/name"))
    assert known.facts is not None
    assert known.facts.revision == COMMIT


async def test_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    is_cached = False

    def wait(*_: object, offline: bool | None = None) -> ModelFacts:
        if offline:
            if is_cached:
                return ModelFacts(n_layers=7)
            raise UnknownModel("not in the cache")
        never.wait(60)
        return ModelFacts()

    monkeypatch.setattr("xinf.cli.known.read_facts_of", wait)
    config = load(environ={"XINF_REGISTRY_TIMEOUT": "10ms"})
    try:
        known = await asyncio.wait_for(find_known(config, EngineSpec(model="org/name")), 30)
        assert known.facts is None
        assert known.why is not None
        assert known.why.startswith("nothing came of reading org/name within ")
        is_cached = True
        known = await asyncio.wait_for(find_known(config, EngineSpec(model="org/name")), 30)
        assert known.facts == ModelFacts(n_layers=7)
        waiting = asyncio.create_task(find_known(load(environ={}), EngineSpec(model="org/name")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 5)
    finally:
        never.set()


@pytest.mark.parametrize(
    ("wished", "is_same"),
    [
        (EngineSpec(model="org/name", commit="c0ffee0"), True),
        (EngineSpec(model="org/name"), True),  # no hub could be asked for what it is now
        (EngineSpec(model="org/name", commit="decade0"), False),
        (EngineSpec(model="org/name", dtype="float16"), False),
        (EngineSpec(model="org/other"), False),
    ],
)
def test_what_cannot_be_read_today_is_as_it_was_for_the_same_wish(wished: EngineSpec, is_same: bool) -> None:
    before = EngineSpec(model="org/name", commit="c0ffee0")
    present = DeploymentRecord(name=DeploymentName("m"), spec=before, model=ModelFacts(n_layers=3), model_identity="i")
    found = known_before(Known(why="no network"), wished, present)
    assert found == (Known(facts=present.model, identity="i") if is_same else Known(why="no network"))
    assert (wished.held_as(before) == before) is is_same


def test_what_was_read_today_counts() -> None:
    spec = EngineSpec(model="org/name")
    present = DeploymentRecord(name=DeploymentName("m"), spec=spec, model=ModelFacts(n_layers=3))
    known = Known(facts=ModelFacts(n_layers=4))
    assert known_before(known, spec, present) is known

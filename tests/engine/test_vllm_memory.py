"""A memory plan beside what the real vLLM makes of the same model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.engine_fixtures import CHECKOUT, StartVllm
from tests.registry.planned_models import CPU
from xinf.core.records import EngineSpec
from xinf.registry import choose_options, plan_memory, read_model

KV_BYTES = 8 << 20


@pytest.fixture(scope="module")
def weighed(engine_python: Path, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    command = [str(engine_python), str(CHECKOUT / "tests" / "engine" / "weigh.py"), str(scripted_model)]
    done = subprocess.run(
        [*command, str(KV_BYTES), "32"],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path_factory.mktemp("weigh"),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_planned_weights_and_kv_are_those_of_the_engine(weighed: dict[str, int], scripted_model: Path) -> None:
    spec = EngineSpec(model=str(scripted_model))
    plan = plan_memory(read_model(str(scripted_model), environ={}), choose_options(spec, CPU))
    assert plan.weights_bytes == weighed["weights_bytes"]
    n_tokens = weighed["kv_blocks"] * weighed["block_tokens"]
    assert plan.kv_token_bytes == weighed["kv_bytes"] / n_tokens
    assert weighed["kv_blocks"] == KV_BYTES // (plan.kv_token_bytes * weighed["block_tokens"])
    assert plan.max_model_len == weighed["max_model_len"]


@pytest.mark.engine
def test_engine_makes_the_cache_that_it_was_granted(
    start_vllm: StartVllm, scripted_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than it would take by itself, which is 16 MiB at least, and not a block less than it was told."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # of the whole host: what somebody set for another vLLM
    facts = read_model(str(scripted_model), environ={})
    plan = plan_memory(facts, choose_options(EngineSpec(model=str(scripted_model)), CPU))
    granted = (11 << 20) + 5
    status = start_vllm(limits={"kv_cache_bytes": granted}).status
    assert status is not None
    assert status.block_tokens == 32
    assert status.kv_blocks == granted // (plan.kv_token_bytes * 32)

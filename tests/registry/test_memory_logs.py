"""Memory plans against what vLLM told of the same loads on GPUs, in public start-up logs.

What this proves: the arithmetic on 66 loads, most of them of one sweep on H100 with vLLM 0.19. What it cannot: other
vendors' devices (one log each of an Ascend and of Intel apart), and the release that xinf installs, whose logs are not
public yet.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from xinf.core.device import Device, Vendor
from xinf.core.records import EngineSpec
from xinf.registry import (
    LoadOptions,
    MemoryPlan,
    ModelFacts,
    choose_options,
    context_bytes,
    is_switched,
    plan_memory,
    read_facts,
    runtime_bytes,
)

GIB = 1 << 30
FIXTURES = Path(__file__).parent.parent / "fixtures"
FILE = tomllib.loads((FIXTURES / "memory_logs.toml").read_text())
LOGS: list[dict[str, Any]] = FILE["log"]
_PRECISION = 0.005 * GIB  # figures have two digits
_ACTIVATIONS_SINCE = (0, 17)  # earlier samplers sorted all logits


def logs(*needed: str, since: tuple[int, int] = (0, 0)) -> Any:
    """Parametrise over the logs that tell all of these."""
    found = [log for log in LOGS if all(name in log for name in needed) and version(log) >= since]
    assert found
    ids = [f"{log['model'].split('/')[1]}-tp{log['tp']}-{log['vllm'].split()[0]}" for log in found]
    return pytest.mark.parametrize("log", found, ids=ids)


def version(log: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in log["vllm"].split()[0].split(".")[:2])


@cache
def facts_of(name: str, directory: Path) -> ModelFacts:
    config = FILE["config"].get(name)
    if config is None:
        config = json.loads((FIXTURES / "models" / f"{name.replace('/', '--')}.json").read_text())
    target = directory / name.replace("/", "--")
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    return read_facts(target)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def device_of(log: dict[str, Any]) -> Device:
    return Device(
        vendor=Vendor(log.get("vendor", "nvidia")), index=0, uuid="GPU-0", name=log["card"], arch="sm_90",
        memory_bytes=int(log.get("total", log.get("memory", 80)) * GIB), driver=log.get("driver"),
    )  # fmt: skip


def load_options(log: dict[str, Any], facts: ModelFacts) -> LoadOptions:
    device = device_of(log)
    spec = EngineSpec(
        model=log["model"], dtype=log.get("dtype", "auto"), quantization=log.get("quantization"),
        tensor_parallel_size=log["tp"], max_model_len=min(8192, facts.context_tokens or 8192),
        engine_args={
            "kv_cache_dtype": log.get("kv_dtype", "auto"), "enforce_eager": log.get("enforce_eager", False),
        },
    )  # fmt: skip
    chosen = {name: log[name] for name in ("max_num_seqs", "max_batched_tokens", "block_tokens") if name in log}
    return replace(choose_options(spec, device), **chosen)


def planned(log: dict[str, Any], directory: Path) -> MemoryPlan:
    facts = facts_of(log.get("config", log["model"]), directory)
    return plan_memory(facts, load_options(log, facts))


def test_logs_say_where_they_are_from() -> None:
    assert sum(log.get("url", "").startswith("https://") for log in LOGS) >= 25
    assert all(("url" in log) != ("found" in log) for log in LOGS)
    assert max(version(log) for log in LOGS) >= (0, 28)


@logs("weights")
def test_weights_are_those_reported(log: dict[str, Any], directory: Path) -> None:
    """The allocator rounds every matrix up to 2 MiB, and there is a table of rotary angles: 128 MiB at most."""
    reported = log["weights"] * GIB
    error = planned(log, directory).weights_bytes - reported
    assert error >= -max(0.01 * reported, 128 << 20)
    # Earlier releases filled up the experts of MXFP4 along one side only.
    assert error <= 0.025 * reported


@logs("kv", "kv_tokens")
def test_tokens_of_the_cache_are_exact(log: dict[str, Any], directory: Path) -> None:
    plan = planned(log, directory)
    cache_bytes = log["kv"] * GIB
    # vLLM rounds down to whole blocks, in each of the groups of layers that share one pool.
    block = plan.kv_token_bytes * max(64, log.get("block_tokens", 16))
    assert -_PRECISION - block <= log["kv_tokens"] * plan.kv_token_bytes - cache_bytes <= _PRECISION


@logs("activation", since=_ACTIVATIONS_SINCE)
def test_activations_are_near_those_reported(log: dict[str, Any], directory: Path) -> None:
    assert 0.97 <= planned(log, directory).activation_bytes / (log["activation"] * GIB) <= 1.15


@logs("graphs", since=_ACTIVATIONS_SINCE)
def test_graphs_are_hardly_ever_under_what_was_reported(log: dict[str, Any], directory: Path) -> None:
    error = planned(log, directory).graph_bytes - log["graphs"] * GIB
    assert error >= -0.11 * log["graphs"] * GIB
    assert error <= max(0.3 * log["graphs"] * GIB, 0.9 * GIB)


def runtime(log: dict[str, Any]) -> tuple[int, int]:
    """What is planned of a device that is neither model nor cache, and of that what is there before it is counted."""
    device, size = device_of(log), log["tp"]
    linked = is_switched(device)
    return (
        runtime_bytes(device.vendor, size, is_switched=linked),
        context_bytes(device.vendor, size, is_switched=linked),
    )


@logs("context")
def test_context_is_never_under_what_was_reported(log: dict[str, Any]) -> None:
    error = runtime(log)[1] - log["context"] * GIB
    assert error >= -_PRECISION
    assert error <= (0.6 * GIB if log["context"] else 2.1 * GIB)  # 0: the first release counted it among the rest


@logs("non_torch")
def test_runtime_is_never_under_what_was_reported(log: dict[str, Any]) -> None:
    """Where a log does not tell what was there before, it is not known: then what grew is compared alone.

    Communicators are in what grew, or before it, by the release.
    """
    whole, _ = runtime(log)
    bare = context_bytes(device_of(log).vendor, 1)
    error = whole - log["non_torch"] * GIB - (log["context"] * GIB if "context" in log else bare)
    assert error >= -_PRECISION
    if log["tp"] == 1:
        assert error <= 0.9 * GIB
    elif not is_switched(device_of(log)):
        assert error <= 0.7 * GIB
    elif "context" in log:
        assert error <= 2.3 * GIB


@logs("weights", "activation", "graphs", "context", "non_torch", since=_ACTIVATIONS_SINCE)
def test_the_sum_is_never_under_what_was_reported(log: dict[str, Any], directory: Path) -> None:
    names = ("weights", "activation", "graphs", "context", "non_torch")
    reported = sum(log[name] for name in names) * GIB
    error = planned(log, directory).fixed_bytes - reported
    assert 0 <= error <= max(0.1 * reported, 1.5 * GIB)


@logs("kv", "total", "utilization", since=_ACTIVATIONS_SINCE)
def test_no_more_cache_is_promised_than_the_engine_made(log: dict[str, Any], directory: Path) -> None:
    plan = planned(log, directory)
    total = int(log["total"] * GIB)
    options = load_options(log, facts_of(log.get("config", log["model"]), directory))
    context = context_bytes(plan.vendor, plan.tensor_parallel_size, is_switched=options.is_switched)
    inside = plan.fixed_bytes - context
    error = log["kv"] * GIB - (total * log["utilization"] - inside)
    assert error >= -_PRECISION
    # Releases before 0.21 did not take graphs off their cache.
    assert error <= plan.graph_bytes + 1.2 * GIB

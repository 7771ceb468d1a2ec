"""Do hostile clients slow down well-behaved ones, and does the gateway's memory stay where it is?

Phases alternate, quiet and hostile, over one gateway per front; the well-behaved loop runs in a process of its own.
The hostile clients cost CPU themselves, so on few cores a part of the difference is theirs.

    python -m benchmarks.soak_hostile [--fronts granian,...] [--kinds idle,...] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.hostile import KINDS, run_all
from benchmarks.open_files import raise_limit
from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import FRONTS, GatewayStack

N_CLIENTS = 8
SAMPLE_S = 0.25
SETTLE_S = 2.0
LIMITS: dict[str, object] = {
    "gateway.max_inflight_per_replica": 4096,
    "gateway.request_read_timeout": 2.0,
    "gateway.stream_buffer_bytes": 65536,
    "log_level": "error",
}


async def _loop_beside(port: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.closed_loop", str(port), str(seconds), str(N_CLIENTS)]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    found: dict[str, Any] = json.loads(out)
    return found


async def _phase(stack: GatewayStack, *, kinds: tuple[str, ...], seconds: float) -> dict[str, Any]:
    begin_s = time.monotonic()
    rss: list[tuple[float, float]] = []

    async def sample() -> None:
        while True:
            rss.append((round(time.monotonic() - begin_s, 2), round(stack.worker_bytes() / 2**20, 1)))
            await asyncio.sleep(SAMPLE_S)

    around = [asyncio.ensure_future(sample())]
    if kinds:
        around.append(asyncio.ensure_future(run_all(stack.port, kinds)))
        await asyncio.sleep(SETTLE_S)
    loop = await _loop_beside(stack.port, seconds)
    for task in around:
        task.cancel()
    for outcome in await asyncio.gather(*around, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return {"is_hostile": bool(kinds), **loop, "rss_mib": rss}


async def _soak(stack: GatewayStack, *, kinds: tuple[str, ...], seconds: float, repeats: int) -> list[dict[str, Any]]:
    await _phase(stack, kinds=(), seconds=2.0)  # warm-up
    phases = []
    for _ in range(repeats):
        for played in ((), kinds):
            phases.append(await _phase(stack, kinds=played, seconds=seconds))
            print(json.dumps({key: value for key, value in phases[-1].items() if key != "rss_mib"}), file=sys.stderr)
    phases.append(await _phase(stack, kinds=(), seconds=seconds))
    return phases


def soak(front: str, *, kinds: tuple[str, ...], seconds: float, repeats: int) -> dict[str, Any]:
    """Run all phases against one front."""
    with GatewayStack(front=front, overrides=LIMITS) as stack:
        stack.deploy("m")
        replica = ScriptedReplica(stack.dir / "scripted.sock")
        stack.store.call(replica.start())
        stack.publish("scripted", replica.address)
        before = stack.worker_bytes()
        phases = asyncio.run(_soak(stack, kinds=kinds, seconds=seconds, repeats=repeats))
        stack.store.call(replica.stop())
        return {
            "front": front,
            "rss_before_mib": round(before / 2**20, 1),
            "phases": phases,
            "log": stack.log()[-2000:],
        }


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(results: list[dict[str, Any]]) -> str:
    """Medians with min-max over the repeats."""
    lines = [
        "| front | clients | requests/phase | failed | p50 ms | p99 ms | RSS at most, MiB | RSS at the end, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for hostile, title in ((False, "well-behaved alone"), (True, "beside hostile ones")):
            phases = [phase for phase in result["phases"] if phase["is_hostile"] == hostile]
            sizes = [size for phase in phases for _, size in phase["rss_mib"]]
            lines.append(
                f"| {result['front']} | {title} | {statistics.median(p['n_requests'] for p in phases):.0f} "
                f"| {sum(p['n_failed'] for p in phases)} | {_spread([p['p50_ms'] for p in phases])} "
                f"| {_spread([p['p99_ms'] for p in phases])} | {max(sizes):.0f} | {phases[-1]['rss_mib'][-1][1]:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fronts", default=",".join(FRONTS))
    parser.add_argument("--kinds", default=",".join(KINDS), help="hostile clients to play, comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every sample here")
    asked = parser.parse_args()
    raise_limit()
    kinds = tuple(asked.kinds.split(","))
    results = [
        soak(front, kinds=kinds, seconds=asked.seconds, repeats=asked.repeats) for front in asked.fronts.split(",")
    ]
    if asked.json:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "n_cpus": os.cpu_count()}
        asked.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()

"""A node whose engines load models of a hub: the real agent, guard and fetcher; the engine itself is a stand-in.

The interpreter of its engine environment runs the real guard, which runs the real fetcher and gives it the stand-in as
the interpreter of the shim. What the stand-in says in the log are the files that it was given.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from tests.agent.conftest import PACKAGE_HOME, Bench
from xinf.core.ids import DeploymentName, ReplicaId
from xinf.core.records import EngineEnvironment, EngineSpec, Phase, ReplicaRecord

_GUARD = """
import sys
from xinf.engine import guard
sys.executable = {shim!r}
sys.exit(guard.main(sys.argv[-1:]))
"""
_SHIM = """
import sys
from pathlib import Path
import msgspec
from tests.agent.stand_in import be_shim
from xinf.core.shim import ShimSpec
spec = msgspec.json.decode(Path(sys.argv[-1]).read_bytes(), type=ShimSpec)
print("loads", spec.model_path, "as", spec.engine.model, flush=True)
be_shim(spec)
"""


def use_fetching_node(bench: Bench, directory: Path, *, limit: str = "") -> None:
    """Give the bench's node an environment for `vllm`. `limit`: of its processes, in the words of `ulimit`."""
    shim, guard = directory / "shim", directory / "guard"
    _write_interpreter(shim, _SHIM)
    _write_interpreter(guard, _GUARD.format(shim=str(shim)), limit)
    environment = EngineEnvironment(name="stand-in", python=str(guard), engines=("vllm",), device_kinds=())
    bench.node = msgspec.structs.replace(bench.node, environments=(environment,))


async def place_model(bench: Bench, name: str, model: str, *, environ: dict[str, str], commit: str | None) -> None:
    """Be the scheduler: a replica of a hub's model, placed on this node."""
    record = ReplicaRecord(
        id=ReplicaId(name),
        deployment=DeploymentName("m"),
        generation=1,
        spec=EngineSpec(model=model, commit=commit, engine="vllm", device="cpu", env=environ),
        node=bench.node.name,
        devices=("cpu",),
        phase=Phase.PLACED,
        phase_since_s={Phase.PLACED: time.time()},
    )
    await bench.records.create(ReplicaRecord, record.id, record)


def _write_interpreter(path: Path, program: str, limit: str = "") -> None:
    source = path.with_suffix(".py")
    source.write_text(program)
    limited = f"ulimit {limit}\n" if limit else ""
    path.write_text(f'#!/bin/sh\n{limited}PYTHONPATH="{PACKAGE_HOME}" exec "{sys.executable}" -P "{source}" "$@"\n')
    path.chmod(0o755)

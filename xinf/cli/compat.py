"""`xinf devices --compat MODEL`: which devices can run a model, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from xinf.cli.known import find_known
from xinf.cli.session import run
from xinf.cli.table import print_json, print_table
from xinf.cli.verdict import Judged, judge_devices
from xinf.cli.wish import check_types, find_model
from xinf.core.config import Config
from xinf.core.device import PASSING, Health, Support
from xinf.core.records import EngineSpec, NodeRecord

if TYPE_CHECKING:
    from xinf.registry import Verdict

RUNS = {
    Support.NATIVE: "native",
    Support.WEIGHT_ONLY: "weight-only",
    Support.UNKNOWN: "unknown",
    Support.NONE: "no",
}
_COLUMNS = ("DEVICE", "NAME", "ARCH", "RUNS", "SERVED BY", "WHY")


def print_compat(
    config: Config,
    nodes: Sequence[NodeRecord],
    *,
    model: str,
    engine: str,
    dtype: str,
    quantization: str | None,
    json: bool,
) -> None:
    """Print one line per device. Raises: UnknownModel, InvalidRequest."""
    dtype, quantization = check_types(engine, dtype, quantization)
    found = find_model(config, model, engine)
    spec = EngineSpec(model=found.model, revision=found.revision, engine=engine, dtype=dtype, quantization=quantization)
    facts = run(find_known(config, spec)).facts
    judged = judge_devices(spec, facts, nodes)
    if json:
        print_json([_fields(each) for each in judged])
        return
    is_many = len(nodes) > 1
    rows = [compat_row(each, engine) for each in judged]
    print_table(
        ("NODE", *_COLUMNS) if is_many else _COLUMNS,
        [(each.node, *row) if is_many else row for each, row in zip(judged, rows, strict=True)],
    )
    if any(_is_missing(each, engine) for each in judged):
        print("SERVED BY: in brackets what no environment there has: `xinf engine install`, or --engines-dir")
    if facts is None and engine != "sim":
        print(f"{model} cannot be read from here: its types and its quantization are not known")


def compat_row(judged: Judged, engine: str) -> tuple[str, ...]:
    """One device, in cells."""
    device, outcome = judged.device, outcome_of(judged)
    return (
        device.selector,
        device.name,
        device.arch or "-",
        RUNS[outcome.level],
        served_by(judged, engine),
        str(outcome),
    )


def outcome_of(judged: Judged) -> Verdict:
    """How a device would run it as it is: one without a driver runs nothing, one that is hot will."""
    device, verdict = judged.device, judged.verdict
    if device.health is Health.OK:
        return verdict
    state = f"{device.health.words}: {device.reason}" if device.reason else device.health.words
    if device.health in PASSING:
        return msgspec.structs.replace(verdict, reason=f"{state}; {verdict.reason}")
    return msgspec.structs.replace(verdict, level=Support.NONE, reason=state, suggestion=None, sources=())


def served_by(judged: Judged, engine: str) -> str:
    """The environment that is there, else what would have to be installed."""
    from xinf.registry import shipped

    if judged.environment is not None:
        return judged.environment.name
    backend = shipped().backend_of(engine, judged.device.vendor)
    return "-" if backend is None else f"({backend.distribution})"


def _is_missing(judged: Judged, engine: str) -> bool:
    return served_by(judged, engine).startswith("(")


def _fields(judged: Judged) -> dict[str, object]:
    outcome = outcome_of(judged)
    return {
        "node": judged.node or None,
        "selector": judged.device.selector,
        "uuid": judged.device.uuid,
        "name": judged.device.name,
        "arch": judged.device.arch,
        "health": judged.device.health,
        "level": outcome.level,
        "reason": outcome.reason,
        "suggestion": outcome.suggestion,
        "sources": outcome.sources,
        "environment": None if judged.environment is None else judged.environment.name,
    }

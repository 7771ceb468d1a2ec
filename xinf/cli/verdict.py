"""What the tables of compatibility say of a wish, before anything is written: refused, warned of, or said in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from xinf.core.device import KIND_OF_VENDOR, PASSING, Device, Health, Support, Vendor, is_selected
from xinf.core.errors import PlacementFailed
from xinf.core.records import EngineEnvironment, EngineSpec, NodeRecord

if TYPE_CHECKING:
    from xinf.registry import ModelFacts, Verdict

AUTO = "auto"
_SIMULATED = "sim"
_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one node, and how it would run the wish."""

    node: str
    device: Device
    environment: EngineEnvironment | None  # None: nothing there serves such devices with this engine
    verdict: Verdict

    @property
    def where(self) -> str:
        return f"{self.device.selector} on {self.node}" if self.node else self.device.selector


def judge_devices(spec: EngineSpec, facts: ModelFacts | None, nodes: Sequence[NodeRecord]) -> list[Judged]:
    """Judge every device of every node."""
    from xinf.registry import judge_spec

    found: list[Judged] = []
    for node in nodes:
        for device in node.devices:
            environment = environment_of(node, spec.engine, device)
            verdict = judge_spec(spec, device, environment, facts)
            found.append(Judged(node=node.name, device=device, environment=environment, verdict=verdict))
    return found


def environment_of(node: NodeRecord, engine: str, device: Device) -> EngineEnvironment | None:
    """The environment of a node that serves such a device with an engine."""
    kind = KIND_OF_VENDOR[device.vendor]
    return next(
        (
            environment
            for environment in node.environments
            if engine in environment.engines and (not environment.device_kinds or kind in environment.device_kinds)
        ),
        None,
    )


def check_wish(
    spec: EngineSpec, facts: ModelFacts | None, nodes: Sequence[NodeRecord], say: Callable[[str], None]
) -> None:
    """Refuse a wish that none of the devices it may go to can run; say how the best of them will.

    Silent where it runs natively, and where no node is known yet: the scheduler checks again.

    Raises: PlacementFailed with what each device lacks.
    """
    if (note := context_note(spec, facts)) is not None:
        say(note)
    meant = _candidates(spec, judge_devices(spec, facts, nodes))
    if not meant:
        return
    if all(each.verdict.is_refused for each in meant):
        reasons = dict.fromkeys(f"{each.where}: {each.verdict.reason}" for each in meant)
        raise PlacementFailed(
            f"no device can run {spec.model}: {'; '.join(reasons)}",
            remedy=next((each.verdict.suggestion for each in meant if each.verdict.suggestion), None),
        )
    best = next((each for level in _GOOD_FIRST for each in meant if each.verdict.level is level), None)
    if best is not None and best.verdict.level is not Support.NATIVE:
        word = "not known to run" if best.verdict.level is Support.UNKNOWN else "note"
        say(f"{word}: {best.where}: {best.verdict}")


def context_note(spec: EngineSpec, facts: ModelFacts | None) -> str | None:
    """vLLM refuses more than the model was made for, once it is there and started (0.32, config/model.py)."""
    own = None if facts is None else facts.context_tokens
    asked = spec.max_model_len
    if spec.engine == _SIMULATED or own is None or asked is None or asked <= own or _LONGER in spec.env:
        return None
    return f"note: --max-model-len {asked} is more than the model's {own}: vLLM refuses it without --env {_LONGER}=1"


_GOOD_FIRST = (Support.NATIVE, Support.WEIGHT_ONLY, Support.UNKNOWN)


def _candidates(spec: EngineSpec, judged: Sequence[Judged]) -> list[Judged]:
    """Those the scheduler may choose: healthy, hot or silent, selected, with an environment; `auto`: accelerators."""
    works = (Health.OK, *PASSING)
    usable = [each for each in judged if each.device.health in works and each.environment is not None]
    if spec.device != AUTO:
        return [each for each in usable if any(is_selected(each.device, part) for part in spec.device.split(","))]
    accelerators = [each for each in usable if each.device.vendor is not Vendor.CPU]
    return accelerators or usable

"""What a deployment is to the devices of a kind: whether they can run it, and what it needs of each of them.

Asked once for each kind of device that a plan comes upon: the tables of compatibility and the memory plan see nothing
of a device but what makes its kind (`Alike.key`).
"""

from __future__ import annotations

import logging

import msgspec

from xinf.core.device import Device
from xinf.core.records import DeploymentRecord, EngineEnvironment, MemoryNeed
from xinf.registry import device_share, is_cache_told, is_switched, usable_bytes
from xinf.scheduler.host import Alike
from xinf.scheduler.world import Measured, Rules

logger = logging.getLogger(__name__)


class Appraisal(msgspec.Struct, frozen=True):
    """`refusal`: why its engine cannot run it; None: it can. `need`: None: nobody can tell."""

    refusal: str | None
    need: MemoryNeed | None


class Appraiser:
    """Asks for one deployment. Belongs to one plan."""

    def __init__(self, deployment: DeploymentRecord, rules: Rules, measured: Measured) -> None:
        self._deployment = deployment
        self._rules = rules
        self._measured = measured
        self._known: dict[tuple[object, ...], Appraisal] = {}

    def appraise(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> Appraisal:
        """Judge and plan; equal kinds of device, whichever node they are on, are asked about once.

        With the first of the environments: that is the one in which their agent starts it.
        """
        found = self._known.get(alike.key)
        if found is None:
            found = self._known[alike.key] = self._appraise(alike, environments)
        return found

    def _appraise(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> Appraisal:
        try:
            refusal = self._judge(alike, environments)
            return Appraisal(refusal, self._plan(alike, environments) if refusal is None else None)
        except Exception as error:
            # A wish that nobody can do sums with must not keep others from places: they ask for it what is kept for it.
            logger.exception("what %s needs cannot be told", self._deployment.name)
            return Appraisal(f"what it needs cannot be told: {type(error).__name__}: {error}", None)

    def _judge(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> str | None:
        judge, wish = self._rules.judge, self._deployment
        if judge is None:
            return None
        return judge(wish.spec, alike.devices[0], environments[0], wish.model)

    def _plan(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> MemoryNeed | None:
        wish = self._deployment
        if wish.model is None:
            return None
        device = alike.devices[0]
        need = self._rules.planner(
            wish.spec, wish.model, device, environments[0], identity=wish.model_identity, measured=self._measured
        )
        return need if need is None else _as_told(need, device, wish)


def _as_told(need: MemoryNeed, device: Device, wish: DeploymentRecord) -> MemoryNeed:
    """In the host's memory, which others fill too, an engine that is told a share takes all of that."""
    share, total = device_share(wish.spec), device.memory_bytes
    if share is None or total is None or not device.is_unified or is_cache_told(wish.spec):
        return need
    size = wish.spec.tensor_parallel_size
    told = usable_bytes(
        device.vendor, size, free_bytes=total, total_bytes=total, share=share, is_switched=is_switched(device)
    )
    return msgspec.structs.replace(need, kv_bytes=need.kv_bytes + max(0, told - need.device_bytes))

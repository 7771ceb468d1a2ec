"""What a deployment is to the devices of a kind: whether they can run it, and what it needs of each of them.

Asked once for each kind of device that a plan comes upon: the tables of compatibility and the memory plan see nothing
of a device but what makes its kind (`Alike.key`).
"""

from __future__ import annotations

import msgspec

from xinf.core.records import DeploymentRecord, EngineEnvironment, MemoryNeed
from xinf.scheduler.host import Alike
from xinf.scheduler.world import Measured, Rules


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
            refusal = self._judge(alike, environments)
            need = self._plan(alike, environments) if refusal is None else None
            found = self._known[alike.key] = Appraisal(refusal, need)
        return found

    def _judge(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> str | None:
        judge, wish = self._rules.judge, self._deployment
        if judge is None:
            return None
        return judge(wish.spec, alike.devices[0], environments[0], wish.model)

    def _plan(self, alike: Alike, environments: tuple[EngineEnvironment, ...]) -> MemoryNeed | None:
        wish = self._deployment
        if wish.model is None:
            return None
        return self._rules.planner(
            wish.spec,
            wish.model,
            alike.devices[0],
            environments[0],
            identity=wish.model_identity,
            measured=self._measured,
        )

"""What a model takes of one device: for `xinf plan` and `launch`, and, as a need, for the scheduler.

Pure: no file of the model is looked at. Devices of one kind get equal answers, so the scheduler asks once for each.
"""

from __future__ import annotations

from collections.abc import Mapping

from xinf.core.device import Device
from xinf.core.errors import InvalidRequest
from xinf.core.model import ModelFacts
from xinf.core.records import EngineEnvironment, EngineSpec, MeasuredRecord, MemoryNeed
from xinf.registry.fingerprint import fingerprint
from xinf.registry.load import choose_options
from xinf.registry.memory import MemoryPlan, plan_memory


def plan_on(
    spec: EngineSpec,
    facts: ModelFacts,
    device: Device,
    environment: EngineEnvironment | None,
    *,
    identity: str | None,
    measured: Mapping[str, MeasuredRecord],
) -> MemoryPlan:
    """Plan a load on such a device, from what an earlier one took if that is known.

    `environment`: whose engine runs it; None: nobody's yet. `identity`: the model's files, as `identify_model` names
    them. `measured`: earlier loads by their fingerprints.

    Raises: InvalidRequest when the specification or the facts do not tell enough, or the model cannot be split so.
    """
    options = choose_options(spec, device)
    found = None
    if identity is not None and environment is not None and measured:
        found = measured.get(fingerprint(identity, spec, engine_version=environment.version, device=device))
    return plan_memory(facts, options, measured=found)


def need_on(
    spec: EngineSpec,
    facts: ModelFacts,
    device: Device,
    environment: EngineEnvironment,
    *,
    identity: str | None,
    measured: Mapping[str, MeasuredRecord],
) -> MemoryNeed | None:
    """The same as the scheduler counts it; None: nobody can tell, then the engine's own check is the only one."""
    try:
        return plan_on(spec, facts, device, environment, identity=identity, measured=measured).need
    except InvalidRequest:
        return None

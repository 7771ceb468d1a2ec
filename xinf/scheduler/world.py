"""What plans are made from, and the rules that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from xinf.core.config import Config
from xinf.core.device import Device
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.model import ModelFacts
from xinf.core.records import (
    CordonRecord,
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    MeasuredRecord,
    MemoryNeed,
    NodeRecord,
    ReplicaRecord,
)
from xinf.registry import need_on, refusal_of

# Why an engine of this environment cannot run the spec on this device, in words with values; None: it can. The facts
# are None where nobody could read them.
Judge = Callable[[EngineSpec, Device, EngineEnvironment, ModelFacts | None], str | None]
Measured = Mapping[str, MeasuredRecord]
DEFAULT_HEADROOM_BYTES = 512 << 20


class Planner(Protocol):
    """What a replica needs of such a device; None: nobody can tell. Pure, and the same for devices of one kind."""

    def __call__(
        self,
        spec: EngineSpec,
        facts: ModelFacts,
        device: Device,
        environment: EngineEnvironment,
        /,
        *,
        identity: str | None,
        measured: Measured,
    ) -> MemoryNeed | None: ...


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from. `nodes` are those whose agents are present."""

    deployments: Mapping[DeploymentName, DeploymentRecord]
    replicas: Mapping[ReplicaId, ReplicaRecord]
    nodes: Mapping[NodeName, NodeRecord]
    cordons: Mapping[NodeName, CordonRecord] = {}
    measured: Measured = {}  # earlier loads by fingerprint


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every deployment.

    `headroom_bytes`: stays free on a device that several engines share, beside what they need.
    `judge`: what devices cannot do; None: nobody is asked. `planner`: what is needed of one that can.
    """

    headroom_bytes: int = DEFAULT_HEADROOM_BYTES
    judge: Judge | None = refusal_of
    planner: Planner = need_on


def rules_of(config: Config) -> Rules:
    """The rules that a configuration gives."""
    return Rules(headroom_bytes=config.control.share_headroom)

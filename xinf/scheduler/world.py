"""What plans are made from, and the rules that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from xinf.core.device import Device
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import (
    CordonRecord,
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    NodeRecord,
    ReplicaRecord,
)
from xinf.registry import refusal_of

# Why an engine of this environment cannot run the spec on this device, in words with values; None: it can.
Judge = Callable[[EngineSpec, Device, EngineEnvironment], str | None]
DEFAULT_HEADROOM_BYTES = 512 << 20


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from. `nodes` are those whose agents are present."""

    deployments: Mapping[DeploymentName, DeploymentRecord]
    replicas: Mapping[ReplicaId, ReplicaRecord]
    nodes: Mapping[NodeName, NodeRecord]
    cordons: Mapping[NodeName, CordonRecord] = {}


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every deployment.

    `headroom_bytes`: stays free on a device that several engines share, beside what they need.
    `judge`: what devices cannot do; None: nobody is asked.
    """

    headroom_bytes: int = DEFAULT_HEADROOM_BYTES
    judge: Judge | None = refusal_of

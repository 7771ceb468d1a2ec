"""What a node is for one replica: an offer, or the constraint that bound there."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from xinf.core.device import Device, Distance
from xinf.core.ids import NodeName
from xinf.core.records import MemoryNeed


class Binding(IntEnum):
    """The constraint that bound, in the order they are asked: the greater, the nearer the node came."""

    LABEL = 0
    DEVICE = 1
    HEALTH = 2
    ENGINE = 3
    CAPABILITY = 4
    CORDON = 5
    TAKEN = 6
    MEMORY = 7

    @property
    def words(self) -> str:
        """How nodes are counted that are not told one by one: `12 are without such a device`."""
        return _WORDS[self]

    @property
    def remedy(self) -> str:
        """What the person can do who asked for it."""
        return _REMEDIES[self]


_WORDS = {
    Binding.LABEL: "lack a label",
    Binding.DEVICE: "have no such device",
    Binding.HEALTH: "have none that works",
    Binding.ENGINE: "have no environment for the engine",
    Binding.CAPABILITY: "have none that can do it",
    Binding.CORDON: "are cordoned",
    Binding.TAKEN: "have too few that are free",
    Binding.MEMORY: "have too little memory free",
}
_REMEDIES = {
    Binding.LABEL: "change --label, or give a node that label with `xinf worker --labels`",
    Binding.DEVICE: "change --device, or start a worker on a host that has one",
    Binding.HEALTH: "change --device; `xinf devices --all` says what is wrong with them",
    Binding.ENGINE: "`xinf engine install` there, or start its worker with --engines-dir; or change --device",
    Binding.CAPABILITY: "`xinf devices --all --compat MODEL` says which devices can; change --device or --dtype",
    Binding.CORDON: "open the node with `xinf uncordon`",
    Binding.TAKEN: "change --device or --tensor-parallel-size, or stop what is there",
    Binding.MEMORY: "`xinf plan MODEL --all` says what would fit",
}


class Miss(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node will not do."""

    node: NodeName
    binding: Binding
    text: str
    shortfall: float = 0.0  # how far it is from fitting, among misses of one binding

    @property
    def rank(self) -> tuple[int, float, NodeName]:
        """Ascending: from the nearest to fitting to the farthest."""
        return (-self.binding, self.shortfall, self.node)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of a node that would do, all of one kind."""

    node: NodeName
    kind: str
    devices: tuple[Device, ...]
    has_warning: bool = False  # one of them works, and something is said of it
    n_sharers: int = 0  # engines that are on the fullest of them already
    n_left: int = 0  # devices of the kind that stay without any engine
    need: MemoryNeed | None = None  # of each of them; None: nobody can tell
    spare_bytes: int | None = None  # what is left on the tightest of them; None: not known
    distance: Distance | None = None  # of the two that are farthest apart; None: one device, or not known


Verdict = Offer | Miss

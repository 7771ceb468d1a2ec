"""What a node is to placement whatever runs on it: digested once per record, looked up for every deployment.

    Host    one node: the devices that it can give away; which of them an engine can use; how far they are apart
    Fleet   the hosts, by name

A node's record changes seldom and is asked about a thousand times a second, so everything that follows from the record
and a few words of the spec alone is worked out once and kept with it.

| operation | cost |
|---|---|
| Fleet.set_node, set_cordon | O(devices) |
| Host.match | O(devices x environments) the first time for (device, engine, kinds), O(1) then |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xinf.core.device import DEVICE_KINDS, KIND_OF_VENDOR, PASSING, Device, Health, Vendor, is_selected
from xinf.core.ids import NodeName
from xinf.core.records import CordonRecord, EngineEnvironment, EngineSpec, NodeRecord
from xinf.scheduler.links import Links
from xinf.scheduler.pool import find_pool, foreign_in
from xinf.scheduler.verdict import Binding, Miss

KIND_ORDER = {kind: order for order, kind in enumerate(DEVICE_KINDS)}
AUTO = "auto"
_MAX_MATCHES = 64  # per host: engines x selectors that are asked for; more are worked out again
_SHOWN = 8  # names in a list for a person


class Alike(msgspec.Struct, frozen=True):
    """Devices between which neither what they can do nor what is needed of them can differ."""

    key: tuple[object, ...]  # all of that; the same on other nodes
    devices: tuple[Device, ...]


class Group(msgspec.Struct, frozen=True):
    """Devices of one kind that a spec may use, by index, each with the environments that its engine would run in."""

    kind: str
    devices: tuple[Device, ...]
    environments: tuple[EngineEnvironment, ...]
    unusable: tuple[Device, ...]  # of the same kind, meant as well, and not healthy
    alike: tuple[Alike, ...]  # the same devices


class Host:
    """One node; see above."""

    def __init__(self, record: NodeRecord, cordon: CordonRecord | None = None) -> None:
        self.record = record
        self.cordon = cordon
        self.name = record.name
        self.models = frozenset(record.models)
        self.devices = whole_devices(record)
        self.pool = find_pool(record)
        self._by_uuid = {device.uuid: device for device in reversed(record.devices)}
        self._matches: dict[tuple[str, str, frozenset[str]], tuple[Group, ...] | Miss] = {}
        self._links: dict[tuple[str, ...], Links] = {}

    def device(self, uuid: str) -> Device | None:
        """The device of that UUID, also one that is not given away; None: it is not there (any more)."""
        return self._by_uuid.get(uuid)

    def foreign_bytes(self, device: Device) -> int:
        """What others than our engines use of it, as far as is known."""
        return max(0, self.record.foreign_bytes.get(device.uuid, 0))

    @property
    def pool_foreign_bytes(self) -> int:
        """The same of the host's memory."""
        return foreign_in(self.pool, self.record) if self.pool is not None else 0

    def accelerators_for(self, engine: str) -> set[str]:
        """Kinds of accelerators that are there for an engine which is built for them, taken or not.

        An engine that runs anywhere (`sim`) has no use for an accelerator.
        """
        kinds = {kind for e in self.record.environments if engine in e.engines for kind in e.device_kinds} - {"cpu"}
        is_there = (Health.OK, *PASSING)
        return kinds & {KIND_OF_VENDOR[device.vendor] for device in self.devices if device.health in is_there}

    def match(self, spec: EngineSpec, kinds: frozenset[str]) -> tuple[Group, ...] | Miss:
        """The devices that the spec means, that work and that its engine has an environment for; the best kind first.

        `kinds`: what `auto` means now; not looked at when the spec names devices itself.
        """
        key = (spec.device, spec.engine, kinds if spec.device == AUTO else frozenset())
        found = self._matches.get(key)
        if found is None:
            if len(self._matches) >= _MAX_MATCHES:
                self._matches.clear()
            found = self._matches[key] = self._match(spec, kinds)
        return found

    def links(self, devices: tuple[Device, ...]) -> Links:
        """How far these devices, all of one kind, are apart."""
        key = tuple(device.uuid for device in devices)
        found = self._links.get(key)
        if found is None:
            if len(self._links) >= _MAX_MATCHES:
                self._links.clear()
            found = self._links[key] = Links(key, self.record.topology)
        return found

    def _match(self, spec: EngineSpec, kinds: frozenset[str]) -> tuple[Group, ...] | Miss:
        is_auto = spec.device == AUTO
        parts = spec.device.split(",")
        meant = [
            device
            for device in self.devices
            if (KIND_OF_VENDOR[device.vendor] in kinds if is_auto else any(is_selected(device, p) for p in parts))
        ]
        if not meant:
            what = " or ".join(sorted(kinds)) if is_auto else spec.device
            has = _names(device.selector for device in self.devices)
            return self._miss(Binding.DEVICE, f"{self.name} has no device {what}; it has {has}")
        healthy = [device for device in meant if device.health is Health.OK]
        if not healthy:
            worst = meant[0]
            why = worst.reason or worst.health
            return self._miss(Binding.HEALTH, f"{worst.selector} on {self.name} cannot be used: {why}")
        groups = self._groups(spec.engine, healthy, [device for device in meant if device.health is not Health.OK])
        if not groups:
            has = _names(environment.name for environment in self.record.environments)
            kind = KIND_OF_VENDOR[healthy[0].vendor]
            text = f"{self.name} has no environment for {spec.engine} on {kind}; it has {has}"
            return self._miss(Binding.ENGINE, text)
        return groups

    def _groups(self, engine: str, devices: list[Device], unusable: list[Device]) -> tuple[Group, ...]:
        groups = []
        for kind in sorted({KIND_OF_VENDOR[device.vendor] for device in devices}, key=KIND_ORDER.__getitem__):
            environments = tuple(
                e for e in self.record.environments if engine in e.engines and kind in (e.device_kinds or (kind,))
            )
            if environments:
                found = _of_kind(kind, devices)
                alike = _alike(found, environments)
                groups.append(Group(kind, found, environments, _of_kind(kind, unusable), alike))
        return tuple(groups)

    def _miss(self, binding: Binding, text: str) -> Miss:
        return Miss(node=self.name, binding=binding, text=text)


class Fleet:
    """The hosts that are present; follows the store."""

    def __init__(
        self, nodes: Iterable[NodeRecord] = (), cordons: Mapping[NodeName, CordonRecord] | None = None
    ) -> None:
        self._cordons = dict(cordons or {})
        self.hosts = {node.name: Host(node, self._cordons.get(node.name)) for node in nodes}

    def set_node(self, name: NodeName, record: NodeRecord | None) -> None:
        """Take a node as it is now; None: it is away."""
        if record is None:
            self.hosts.pop(name, None)
        else:
            self.hosts[name] = Host(record, self._cordons.get(name))

    def set_cordon(self, name: NodeName, record: CordonRecord | None) -> None:
        """Take a node's cordon as it is now, also of one that is away."""
        if record is None:
            self._cordons.pop(name, None)
        else:
            self._cordons[name] = record
        if (host := self.hosts.get(name)) is not None:
            self.hosts[name] = Host(host.record, record)


def whole_devices(node: NodeRecord) -> tuple[Device, ...]:
    """Devices that can be given away: a card that is split into MIG instances cannot, its instances can.

    What is listed twice is there once: two cards that call themselves alike could not be told apart by anybody.
    """
    split = {device.parent for device in node.devices if device.parent is not None}
    first = {device.uuid: device for device in reversed(node.devices)}
    return tuple(
        device
        for device in node.devices
        if first[device.uuid] is device
        and device.uuid not in split
        and not (device.extra.get("mig") == "enabled" and device.parent is None)
    )


def _of_kind(kind: str, devices: list[Device]) -> tuple[Device, ...]:
    found = (device for device in devices if KIND_OF_VENDOR[device.vendor] == kind)
    return tuple(sorted(found, key=lambda device: device.index))


def _alike(devices: tuple[Device, ...], environments: tuple[EngineEnvironment, ...]) -> tuple[Alike, ...]:
    engines = tuple((environment.name, environment.version) for environment in environments)
    found: dict[tuple[object, ...], list[Device]] = {}
    for device in devices:
        # Hosts have a few bytes more or less of memory, and nothing of a processor hangs on how much.
        memory_bytes = None if device.vendor is Vendor.CPU else device.memory_bytes
        # Of two processors of one name one may lack a flag: a hypervisor hides some.
        isa = device.extra.get("isa")
        what = (device.vendor, device.name, device.arch, memory_bytes, device.is_unified)
        key = (*what, device.driver, device.runtime, isa, engines)
        found.setdefault(key, []).append(device)
    return tuple(Alike(key, tuple(members)) for key, members in found.items())


def _names(names: Iterable[str]) -> str:
    """A list that stays readable."""
    found = list(names)
    more = len(found) - _SHOWN
    return ", ".join([*found[:_SHOWN], *([f"{more} more"] if more > 0 else [])]) or "none"

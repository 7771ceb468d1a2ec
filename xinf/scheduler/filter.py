"""Whether one node has room for one more replica of a deployment: an offer, or the first constraint that bound.

    labels ─▶ devices meant, healthy, with an environment (host.py) ─▶ capability ─▶ cordon ─▶ free ─▶ enough memory

Room on an accelerator, F what others than our engines use of it:

    nobody on it       the need fits into memory - F, or nothing is known of one of them
    shared             the newcomer and all who are on it share and have a need; the needs and the headroom together
                       fit into memory - F
    anything else      taken

The processor is everybody's: those on it who said what they need count, the others do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xinf.core.device import Device
from xinf.core.records import DeploymentRecord, EngineEnvironment, PlacementPolicy
from xinf.core.units import format_bytes
from xinf.scheduler.claims import CPU, Tally, Use
from xinf.scheduler.host import Group, Host
from xinf.scheduler.verdict import Binding, Miss, Offer, Verdict
from xinf.scheduler.world import Rules

_SHOWN_HOLDERS = 8


class Room(msgspec.Struct, frozen=True):
    """One device that somebody may join. `free_bytes`: None if not known; less than the need: it is too small."""

    device: Device
    n_sharers: int
    free_bytes: int | None


class Filter:
    """Asks for one deployment. Belongs to one plan: what devices can do is asked once per kind of device."""

    def __init__(self, deployment: DeploymentRecord, rules: Rules) -> None:
        self._deployment = deployment
        self._spec = deployment.spec
        self._size = deployment.spec.tensor_parallel_size
        self._need = deployment.need.device_bytes if deployment.need is not None else None
        self._may_share = deployment.shares and deployment.need is not None
        self._labels = tuple(sorted(deployment.labels.items()))
        self._rules = rules
        self._judged: dict[tuple[object, ...], str | None] = {}

    def is_labelled(self, host: Host) -> bool:
        """Whether the node has all labels that are asked for."""
        labels = host.record.labels
        return all(labels.get(key) == value for key, value in self._labels)

    def examine(self, host: Host, tally: Tally, kinds: frozenset[str]) -> Verdict:
        """Look at one node with this much taken of it."""
        if not self.is_labelled(host):
            return self._without_label(host)
        groups = host.match(self._spec, kinds)
        if isinstance(groups, Miss):
            return groups
        nearest: Miss | None = None
        for group in groups:
            found = self._in_group(host, group, tally)
            if isinstance(found, Offer):
                return found
            nearest = found if nearest is None else min(nearest, found, key=lambda miss: miss.rank)
        assert nearest is not None, "a match has groups"
        return nearest

    def _without_label(self, host: Host) -> Miss:
        labels = host.record.labels
        key, value = next((key, value) for key, value in self._labels if labels.get(key) != value)
        has = f"it is {key}={labels[key]}" if key in labels else f"it has no {key}"
        return Miss(node=host.name, binding=Binding.LABEL, text=f"{host.name} lacks the label {key}={value}; {has}")

    def _in_group(self, host: Host, group: Group, tally: Tally) -> Verdict:
        able: Sequence[Device] = group.devices
        if self._rules.judge is not None:
            reasons = {device.uuid: self._judge(device, group.environments) for device in group.devices}
            able = [device for device in group.devices if reasons[device.uuid] is None]
            if not able:
                first = group.devices[0]
                text = f"{host.name}: {first.selector} cannot run it: {reasons[first.uuid]}"
                return Miss(node=host.name, binding=Binding.CAPABILITY, text=text)
        if host.cordon is not None:
            why = f": {host.cordon.reason}" if host.cordon.reason else ""
            words = "is being drained" if host.cordon.is_draining else "is cordoned"
            return Miss(node=host.name, binding=Binding.CORDON, text=f"{host.name} {words}{why}")
        if group.kind == CPU:
            return self._on_processor(host, able[0], tally)
        return self._on_accelerators(host, group, able, tally)

    def _judge(self, device: Device, environments: tuple[EngineEnvironment, ...]) -> str | None:
        """Why no environment can run the spec on this device; None: one can. Equal devices are asked about once."""
        key = (
            *(device.vendor, device.name, device.arch, device.memory_bytes, device.driver, device.runtime),
            *(environment.name for environment in environments),
            *(environment.version for environment in environments),
        )
        if key not in self._judged:
            assert self._rules.judge is not None
            reasons = [self._rules.judge(self._spec, device, environment) for environment in environments]
            self._judged[key] = None if None in reasons else reasons[0]
        return self._judged[key]

    def _on_processor(self, host: Host, device: Device, tally: Tally) -> Verdict:
        use = tally.uses.get(CPU)
        n_sharers = len(use.holders) if use is not None else 0
        if self._need is None or device.memory_bytes is None:
            return Offer(node=host.name, kind=CPU, devices=(device,), n_sharers=n_sharers)
        need = self._need * self._size
        held = use.n_bytes if use is not None else 0
        free = max(0, device.memory_bytes - host.foreign_bytes(device) - held - self._rules.headroom_bytes)
        if need > free:
            return self._too_small(host, device, need, free, use)
        return Offer(node=host.name, kind=CPU, devices=(device,), n_sharers=n_sharers, spare_bytes=free - need)

    def _on_accelerators(self, host: Host, group: Group, able: Sequence[Device], tally: Tally) -> Verdict:
        rooms: list[Room] = []
        short: list[Room] = []
        n_idle = 0
        for device in able:
            use = tally.uses.get(device.uuid)
            n_idle += use is None
            room = self._room(host, device, use)
            if room is None:
                continue
            is_short = self._need is not None and room.free_bytes is not None and room.free_bytes < self._need
            (short if is_short else rooms).append(room)
        if len(rooms) >= self._size:
            return self._offer(host, group, rooms, n_idle)
        if len(rooms) + len(short) >= self._size:
            # With the devices in the order of what is free, this is the last that would have to fit.
            short.sort(key=lambda room: (-(room.free_bytes or 0), room.device.index))
            binding = short[self._size - len(rooms) - 1]
            assert self._need is not None
            use = tally.uses.get(binding.device.uuid)
            return self._too_small(host, binding.device, self._need, binding.free_bytes or 0, use)
        return self._too_few(host, group, len(rooms) + len(short), tally)

    def _room(self, host: Host, device: Device, use: Use | None) -> Room | None:
        """What is free on a device; None: somebody has it to himself."""
        total = device.memory_bytes
        if use is None:
            free = None if total is None else max(0, total - host.foreign_bytes(device))
            return Room(device, 0, free)
        if not self._may_share or not use.is_shareable or total is None:
            return None
        free = max(0, total - host.foreign_bytes(device) - use.n_bytes - self._rules.headroom_bytes)
        return Room(device, len(use.holders), free)

    def _offer(self, host: Host, group: Group, rooms: list[Room], n_idle: int) -> Offer:
        """Take those that the deployment prefers, near each other where that matters."""
        preferred = sorted(rooms, key=self._preference)
        distance = None
        if self._size > 1:
            of_uuid = {room.device.uuid: room for room in preferred}
            uuids, distance = host.links(group.devices).choose(list(of_uuid), self._size)
            preferred = [of_uuid[uuid] for uuid in uuids]
        chosen = sorted(preferred[: self._size], key=lambda room: room.device.index)
        free = [room.free_bytes for room in chosen if room.free_bytes is not None]
        spare = min(free) - (self._need or 0) if len(free) == len(chosen) else None
        return Offer(
            node=host.name,
            kind=group.kind,
            devices=tuple(room.device for room in chosen),
            has_warning=any(room.device.reason is not None for room in chosen),
            n_sharers=max(room.n_sharers for room in chosen),
            n_left=n_idle - sum(room.n_sharers == 0 for room in chosen),
            spare_bytes=spare,
            distance=distance,
        )

    def _preference(self, room: Room) -> tuple[bool, int, int, int]:
        """Spread: the emptiest first. Pack: beside others first, then where least is left over."""
        has_warning = room.device.reason is not None
        if self._deployment.placement is PlacementPolicy.PACK:
            free = room.free_bytes if room.free_bytes is not None else 0
            return (has_warning, int(room.n_sharers == 0), free, room.device.index)
        return (has_warning, room.n_sharers, 0, room.device.index)

    def _too_small(self, host: Host, device: Device, need: int, free: int, use: Use | None) -> Miss:
        text = f"{host.name}: {device.selector} needs {format_bytes(need)}, {format_bytes(free)} free"
        taken = []
        if use is not None and use.n_bytes:
            taken.append(f"{format_bytes(use.n_bytes)} held by {_listed(use.holders)}")
        if foreign := host.foreign_bytes(device):
            taken.append(f"{format_bytes(foreign)} used by others")
        text += f" ({', '.join(taken)})" if taken else ""
        return Miss(node=host.name, binding=Binding.MEMORY, text=text, shortfall=float(need - free))

    def _too_few(self, host: Host, group: Group, n_free: int, tally: Tally) -> Miss:
        why = [
            f"{device.selector} has {_listed(use.holders)}"
            for device in group.devices
            if (use := tally.uses.get(device.uuid)) is not None
        ]
        why += [f"{device.selector} is {device.health.value.replace('_', ' ')}" for device in group.unusable]
        n_all = len(group.devices) + len(group.unusable)
        text = f"{self._size} {group.kind} needed on {host.name}, {n_free} of {n_all} free"
        text += f" ({', '.join(why[:_SHOWN_HOLDERS])}{', …' if len(why) > _SHOWN_HOLDERS else ''})" if why else ""
        return Miss(node=host.name, binding=Binding.TAKEN, text=text, shortfall=float(self._size - n_free))


def _listed(names: Sequence[str]) -> str:
    """Who is on a device, not all of them where they are many."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

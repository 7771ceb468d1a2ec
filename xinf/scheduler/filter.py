"""Whether one node has room for one more replica of a deployment: an offer, or the first constraint that bound.

    labels ─▶ devices meant, healthy, with an environment (host.py) ─▶ capability (appraisal.py) ─▶ cordon ─▶ free
           ─▶ enough memory (room.py)

Room on an accelerator, F what others than our engines use of it; the need is that of its kind:

    nobody on it       the need fits into memory - F, and into what an engine may take of a device at all; or nothing
                       is known of one of them
    shared             the newcomer and all who are on it share and have a need; the needs and the headroom together
                       fit into memory - F
    anything else      taken

The processor is everybody's: the needs of those on it count, and what they hold beyond them. What engines on cards with
memory of their own use of the host's is in F. A GPU without memory of its own has room as above, but no more than the
host's memory has (pool.py), where it and the processor are one account. Who finds room in a host's memory is granted
his cache too (grant.py), and held at that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xinf.core.device import Device, Vendor
from xinf.core.records import DeploymentRecord, MemoryNeed, PlacementPolicy
from xinf.core.units import format_bytes
from xinf.registry import device_share, is_cache_told, is_switched, sockets_of, usable_bytes
from xinf.scheduler.appraisal import Appraiser
from xinf.scheduler.claims import CPU, Tally, Use, list_holders
from xinf.scheduler.grant import grant_on_processor, grant_on_unified
from xinf.scheduler.host import Group, Host
from xinf.scheduler.pool import balance, uses_of
from xinf.scheduler.room import Room, Shortage, fit_rooms
from xinf.scheduler.verdict import Binding, Miss, Offer, Verdict
from xinf.scheduler.world import Measured, Rules

_SHOWN_HOLDERS = 8


class Able(msgspec.Struct, frozen=True):
    """A device that can run it, and what that needs of such a device."""

    device: Device
    need: MemoryNeed | None


class Filter:
    """Asks for one deployment. Belongs to one plan: what devices can do is asked once per kind of device."""

    def __init__(self, deployment: DeploymentRecord, rules: Rules, measured: Measured) -> None:
        self._deployment = deployment
        self._spec = deployment.spec
        self._size = max(1, deployment.spec.tensor_parallel_size)
        self._share = device_share(deployment.spec)
        self._is_told = self._share is not None or is_cache_told(deployment.spec)
        self._labels = tuple(sorted(deployment.labels.items()))
        self._headroom_bytes = rules.headroom_bytes
        self._appraiser = Appraiser(deployment, rules, measured)

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
        able: list[Able] = []
        for alike in group.alike:
            found = self._appraiser.appraise(alike, group.environments)
            if found.refusal is None:
                able += [Able(device, found.need) for device in alike.devices]
        if not able:
            first = self._appraiser.appraise(group.alike[0], group.environments)
            text = f"{host.name}: {group.devices[0].selector} cannot run it: {first.refusal}"
            return Miss(node=host.name, binding=Binding.CAPABILITY, text=text)
        if host.cordon is not None:
            why = f": {host.cordon.reason}" if host.cordon.reason else ""
            words = "is being drained" if host.cordon.is_draining else "is cordoned"
            return Miss(node=host.name, binding=Binding.CORDON, text=f"{host.name} {words}{why}")
        if group.kind == CPU:
            return self._on_processor(host, able[0], tally)
        return self._on_accelerators(host, group, able, tally)

    def _on_processor(self, host: Host, able: Able, tally: Tally) -> Verdict:
        use, device, need, pool = tally.uses.get(CPU), able.device, able.need, host.pool
        n_sharers = len(use.holders) if use is not None else 0
        if need is None or pool is None:
            return Offer(node=host.name, kind=CPU, devices=(device,), n_sharers=n_sharers, need=need)
        free, is_of_host = self._host_free(host, tally), pool.is_shared
        if device.memory_bytes is not None and device.memory_bytes < pool.total_bytes:
            held = balance([use] if use is not None else [], host.record.unplanned_bytes)
            own = device.memory_bytes - host.foreign_bytes(device) - held.n_bytes - self._headroom_bytes
            free, is_of_host = min(free, max(0, own)), is_of_host and free < own
        usable = usable_bytes(
            device.vendor, self._size, free_bytes=free, total_bytes=device.memory_bytes, sockets=sockets_of(device)
        )
        if need.device_bytes > usable:
            room = Room(device, need, n_sharers, free, usable, is_of_host)
            return self._too_small(host, Shortage(room, need.device_bytes), tally)
        given = grant_on_processor(need, usable)
        spare = free - given.device_bytes
        return Offer(node=host.name, kind=CPU, devices=(device,), n_sharers=n_sharers, need=given, spare_bytes=spare)

    def _host_free(self, host: Host, tally: Tally) -> int:
        """What is left of the host's memory, whoever fills it."""
        pool = host.pool
        assert pool is not None, "whoever asks has looked"
        held = balance(uses_of(pool, tally), host.record.unplanned_bytes)
        return max(0, pool.total_bytes - host.pool_foreign_bytes - held.n_bytes - self._headroom_bytes)

    def _on_accelerators(self, host: Host, group: Group, able: Sequence[Able], tally: Tally) -> Verdict:
        rooms: list[Room] = []
        n_idle = 0
        is_pooled = host.pool is not None and host.pool.is_shared
        host_free = self._host_free(host, tally) if is_pooled else None
        for one in able:
            use = tally.uses.get(one.device.uuid)
            n_idle += use is None
            room = self._room(host, one, use, host_free)
            if room is not None:
                rooms.append(room)
        found = fit_rooms(rooms, self._size)
        if found is None:
            is_planned = any(one.need is not None for one in able)
            return self._too_few(host, group, len(rooms), tally, is_planned=is_planned)
        if isinstance(found, Shortage):
            return self._too_small(host, found, tally)
        return self._offer(host, group, found, n_idle)

    def _room(self, host: Host, able: Able, use: Use | None, host_free: int | None) -> Room | None:
        """What is free on a device; None: somebody has it to himself.

        `host_free`: of the host's memory, for all devices of one replica together.
        """
        device, total = able.device, able.device.memory_bytes
        if use is not None and not (self._deployment.shares and able.need is not None and use.is_shareable):
            return None
        if total is None and device.is_unified and host.pool is not None:
            total = host.pool.total_bytes
        if total is None:
            return Room(device, able.need, 0, None, None) if use is None else None
        free = total - host.foreign_bytes(device)
        if use is not None:
            free -= use.n_bytes + self._headroom_bytes
        free, is_of_host = max(0, free), False
        if device.is_unified and host_free is not None and host_free // self._size < free:
            free, is_of_host = host_free // self._size, True
        usable = usable_bytes(
            device.vendor, self._size,
            free_bytes=free, total_bytes=total, share=self._share, is_switched=is_switched(device),
        )  # fmt: skip
        return Room(device, able.need, len(use.holders) if use is not None else 0, free, usable, is_of_host)

    def _offer(self, host: Host, group: Group, rooms: list[Room], n_idle: int) -> Offer:
        """Take those that the deployment prefers, near each other where that matters."""
        preferred = sorted(rooms, key=self._preference)
        distance = None
        if self._size > 1:
            of_uuid = {room.device.uuid: room for room in preferred}
            uuids, distance = host.links(group.devices).choose(list(of_uuid), self._size)
            preferred = [of_uuid[uuid] for uuid in uuids]
        chosen = sorted(preferred[: self._size], key=lambda room: room.device.index)
        needs = [room.need for room in chosen if room.need is not None]
        need = max(needs, key=lambda need: need.device_bytes, default=None)
        if need is not None:
            need = self._given(need, chosen, n_idle)
        free = [room.free_bytes for room in chosen if room.free_bytes is not None]
        spare = min(free) - (need.device_bytes if need is not None else 0) if len(free) == len(chosen) else None
        return Offer(
            node=host.name,
            kind=group.kind,
            devices=tuple(room.device for room in chosen),
            has_warning=any(room.device.reason is not None for room in chosen),
            n_sharers=max(room.n_sharers for room in chosen),
            n_left=n_idle - sum(room.n_sharers == 0 for room in chosen),
            need=need,
            spare_bytes=spare,
            distance=distance,
        )

    def _given(self, need: MemoryNeed, chosen: list[Room], n_idle: int) -> MemoryNeed:
        """The need with the cache that it is given where it is alone on a device without memory of its own."""
        of_host = [room for room in chosen if room.device.is_unified and room.free_bytes is not None]
        if not of_host or self._deployment.shares or self._is_told:
            return need
        return grant_on_unified(
            need,
            free_bytes=min(room.free_bytes or 0 for room in of_host),
            usable_bytes=min(room.usable_bytes or 0 for room in chosen),
            n_devices=self._size,
            n_idle=n_idle,
        )

    def _preference(self, room: Room) -> tuple[bool, int, int, int]:
        """Spread: the emptiest first. Pack: beside others first, then where least is left over."""
        has_warning = room.device.reason is not None
        if self._deployment.placement is PlacementPolicy.PACK:
            free = room.free_bytes if room.free_bytes is not None else 0
            return (has_warning, int(room.n_sharers == 0), free, room.device.index)
        return (has_warning, room.n_sharers, 0, room.device.index)

    def _too_small(self, host: Host, shortage: Shortage, tally: Tally) -> Miss:
        room, pool = shortage.room, host.pool
        device, free, usable = room.device, room.free_bytes or 0, room.usable_bytes or 0
        use = tally.uses.get(CPU if device.vendor is Vendor.CPU else device.uuid)
        of_host, uses, foreign = "", [use] if use is not None else [], host.foreign_bytes(device)
        if room.is_of_host and pool is not None:
            of_host = f" of the host's memory free, shared with {pool.others(device)}"
            uses, foreign = uses_of(pool, tally), host.pool_foreign_bytes
        each = f" on each of {self._size}" if of_host and self._size > 1 else ""
        text = f"{host.name}: {device.selector} needs {format_bytes(shortage.need_bytes)}{each},"
        text += f" {format_bytes(free)}{of_host or ' free'}"
        if is_bound := shortage.need_bytes <= free:
            text += f", of which an engine may take {format_bytes(usable)}"
        taken = []
        held = balance(uses, host.record.unplanned_bytes)
        if held.n_bytes:
            taken.append(f"{format_bytes(held.n_bytes)} held by {list_holders(held.counted)}")
        if foreign:
            taken.append(f"{format_bytes(foreign)} used by others")
        text += f" ({', '.join(taken)})" if taken else ""
        if is_bound and (sockets := sockets_of(device)) is not None:
            text += "; ".join(["", *filter(None, (sockets.words(self._size), sockets.remedy(self._size)))])
        return Miss(node=host.name, binding=Binding.MEMORY, text=text, shortfall=float(shortage.need_bytes - usable))

    def _too_few(self, host: Host, group: Group, n_free: int, tally: Tally, *, is_planned: bool) -> Miss:
        why = [
            f"{device.selector} has {list_holders(use.holders)}"
            for device in group.devices
            if (use := tally.uses.get(device.uuid)) is not None
        ]
        why += [f"{device.selector} {device.health.words}" for device in group.unusable]
        n_all = len(group.devices) + len(group.unusable)
        text = f"{self._size} {group.kind} needed on {host.name}, {n_free} of {n_all} free"
        text += f" ({', '.join(why[:_SHOWN_HOLDERS])}{', …' if len(why) > _SHOWN_HOLDERS else ''})" if why else ""
        if self._deployment.shares and not is_planned:
            text += ", and it cannot share one: no memory plan of it is known"
        return Miss(node=host.name, binding=Binding.TAKEN, text=text, shortfall=float(self._size - n_free))

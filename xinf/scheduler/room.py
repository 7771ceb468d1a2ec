"""What one device has for one more replica, and which devices of a node will do for it together.

One device: each with the need of its own kind. Several devices for one replica: the engine sizes itself by one of them,
so all must hold the need of the greediest that is taken. Sets are looked for by that need, in ascending order:

    need     10        10        12        12          for 2 devices
    free      9        11        12        12
                                                       within 10: one device fits, short by 1
                                                       within 12: two fit: those that need 12

The first at which enough devices have enough is taken; where there is none, what was missing at the one that came
nearest is told. Cost: O(devices x kinds of them), kinds being one on most nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xinf.core.device import Device
from xinf.core.records import MemoryNeed


class Room(msgspec.Struct, frozen=True):
    """One device that somebody may join."""

    device: Device
    need: MemoryNeed | None  # of this kind of device; None: nobody can tell
    n_sharers: int
    free_bytes: int | None  # None: not known, then anything fits
    usable_bytes: int | None  # of that, what an engine may take
    is_of_host: bool = False  # what is free is the host's memory, which other devices fill as well

    @property
    def need_bytes(self) -> int:
        return 0 if self.need is None else self.need.device_bytes

    def lacks(self, need_bytes: int) -> int:
        """How much less than this it has; not more than 0: it is enough."""
        return need_bytes - self.usable_bytes if self.usable_bytes is not None and need_bytes else 0


class Shortage(msgspec.Struct, frozen=True):
    """The device that is nearest to letting a replica in."""

    room: Room
    need_bytes: int

    @property
    def rank(self) -> tuple[int, int]:
        return (self.room.lacks(self.need_bytes), self.room.device.index)


def fit_rooms(rooms: Sequence[Room], size: int) -> list[Room] | Shortage | None:
    """Find the rooms of which any `size` will do together, in the given order; the shortage where there are none.

    None: there are too few devices, however much is free on them.
    """
    if size == 1:
        fitting = [room for room in rooms if room.lacks(room.need_bytes) <= 0]
        return fitting or min((Shortage(room, room.need_bytes) for room in rooms), key=_rank, default=None)
    nearest: Shortage | None = None
    known = [room for room in rooms if room.need is not None]
    for need_bytes in sorted({room.need_bytes for room in known}):
        among = [room for room in known if room.need_bytes <= need_bytes]
        fitting = [room for room in among if room.lacks(need_bytes) <= 0]
        if len(fitting) >= size:
            return fitting
        if len(among) >= size:
            # With the devices in the order of what they lack, this is the last that would have to fit.
            last = sorted((Shortage(room, need_bytes) for room in among), key=_rank)[size - 1]
            nearest = last if nearest is None else min(nearest, last, key=_rank)
    # Those that nobody can plan for are not mixed with others.
    unknown = [room for room in rooms if room.need is None]
    return unknown if len(unknown) >= size else nearest


def _rank(shortage: Shortage) -> tuple[int, int]:
    return shortage.rank

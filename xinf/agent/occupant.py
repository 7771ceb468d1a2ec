"""Which card sits in which slot, where a device is named by its slot (ADR 0024): pure.

What a vendor gives to the card itself is its `extra.uuid` or `extra.serial`. Not every way of asking tells them, so the
last that was told counts, and only like is compared with like. A slot that another card sits in keeps its name; what
was placed on the former card is not there any more, and what was said of it is not true of this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from xinf.core.device import Device

_KEYS = ("uuid", "serial")


class Exchange(msgspec.Struct, frozen=True):
    """A device that is another card than it was."""

    uuid: str  # the name of its slot
    message: str


class Occupants:
    """Remembers who was last told to sit in each slot, also while nobody does. O(1) per device."""

    def __init__(self, told: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """`told`: what an earlier agent of this host left, by the slots' names and the keys of `extra`."""
        self._told = {slot: dict(names) for slot, names in (told or {}).items()}

    @property
    def told(self) -> dict[str, dict[str, str]]:
        """What the next agent needs to go on."""
        return {slot: dict(names) for slot, names in self._told.items()}

    def take(self, devices: Iterable[Device]) -> tuple[Exchange, ...]:
        """Note who sits where now; say which devices are other cards than they were."""
        found: list[Exchange] = []
        for device in devices:
            now = {key: str(device.extra[key]) for key in _KEYS if _is_name(device.extra.get(key))}
            if not now:
                continue
            before = self._told.get(device.uuid, {})
            told = [key for key in _KEYS if key in now and key in before]
            changed = [key for key in told if not _is_same(before[key], now[key])]
            # A new driver may make UUIDs in another way: whoever has one of the names has the other.
            if changed and changed == told:
                key = changed[0]
                found.append(Exchange(device.uuid, _words(before[key], now[key])))
                before = {}  # what else was told is of the former card
            self._told[device.uuid] = {**before, **now}
        return tuple(found)


def _words(before: str, now: str) -> str:
    return f"another card is in its slot ({now}, before {before}): what ran on the former one is placed anew"


def _is_name(text: object) -> bool:
    """Whether it tells one card from another: zeros and words (`N/A`) are from a driver that does not know."""
    return isinstance(text, str) and re.search("[1-9]", text) is not None


def _is_same(one: str, other: str) -> bool:
    """Compare two names that may be written by different sources: in case, dashes and a prefix they differ."""
    first, second = _bare(one), _bare(other)
    return first.endswith(second) or second.endswith(first)


def _bare(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())

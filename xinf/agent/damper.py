"""How long a device counts as ill after nothing says so any more: longer, the more often it fell ill again.

    said    ok   faulty   ok ......   faulty  ok ......................   degraded
    shown   ok   faulty ...........   faulty ..........................   degraded
                          60 s, then ok       120 s, as it came back

What is worse than before is shown at once, what is better only after a calm time in which nothing worse came:
CALM_S, doubled each time that something came back within PEACE_S after it was believed to be over, up to MAX_CALM_S.
Who is marked, written down and planned for then moves a few times an hour at most, whatever flaps.

Pure: `now_s` is of a clock that runs on from one agent to the next, as that of CLOCK_MONOTONIC does until a reboot.
O(1) per device and call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xinf.core.device import Health
from xinf.core.units import format_seconds

CALM_S = 60.0
MAX_CALM_S = 1800.0
PEACE_S = 3600.0
_TELL_AFTER_S = 15.0  # reasons are written to the store: what flaps faster than this does not change them

_SEVERITY = {health: number for number, health in enumerate(Health)}


class Mark(msgspec.Struct, frozen=True):
    """What is said of a device, and why."""

    health: Health
    reason: str | None

    @property
    def severity(self) -> int:
        return _SEVERITY[self.health]


WELL = Mark(Health.OK, None)


class Spell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The illness of one device, also when it is over for less than PEACE_S."""

    mark: Mark  # as it is shown
    n_relapses: int = 0
    calm_since_s: float | None = None  # since when only better was said than is shown
    meanwhile: Mark = WELL  # the worst that was said since then
    eased_s: float | None = None  # when better was last believed, with nothing worse since

    @property
    def calm_s(self) -> float:
        return min(MAX_CALM_S, CALM_S * 2.0 ** min(self.n_relapses, 16))


class Damper:
    """The spells of a node's devices, by UUID."""

    def __init__(self, spells: Mapping[str, Spell] | None = None) -> None:
        """`spells`: those that an earlier agent of this host left."""
        self._spells = dict(spells or {})

    @property
    def spells(self) -> dict[str, Spell]:
        """What the next agent needs to go on."""
        return dict(self._spells)

    def forget_others(self, uuids: Iterable[str]) -> None:
        """Drop the spells of devices that are not there any more."""
        kept = set(uuids)
        self._spells = {uuid: spell for uuid, spell in self._spells.items() if uuid in kept}

    def show(self, uuid: str, said: Mark, now_s: float) -> Mark:
        """Take what is said of a device now and give what it counts as."""
        before = self._spells.get(uuid)
        if before is None:
            if said.severity:
                self._spells[uuid] = Spell(mark=said)
            return said
        if said.severity and said.severity >= before.mark.severity:
            self._spells[uuid] = _worsen(before, said, now_s)
            return said
        if not before.mark.severity:
            if before.eased_s is None or now_s - before.eased_s >= PEACE_S:
                del self._spells[uuid]
            return said
        after = _wait(before, said, now_s)
        self._spells[uuid] = after
        if after.calm_since_s is None:
            return after.mark if after.mark.severity else said
        return _watched(after) if now_s - after.calm_since_s >= _TELL_AFTER_S else after.mark


def _worsen(before: Spell, said: Mark, now_s: float) -> Spell:
    if said.severity == before.mark.severity:
        return Spell(mark=said, n_relapses=before.n_relapses, eased_s=before.eased_s)
    n_relapses = before.n_relapses
    if before.eased_s is not None:
        n_relapses = n_relapses + 1 if now_s - before.eased_s < PEACE_S else 0
    return Spell(mark=said, n_relapses=n_relapses)


def _wait(before: Spell, said: Mark, now_s: float) -> Spell:
    """Go on with the calm time, or believe the worst that was said during it."""
    # A clock that was set back must not prolong it.
    since_s = now_s if before.calm_since_s is None else min(now_s, before.calm_since_s)
    worst = said if before.calm_since_s is None or said.severity >= before.meanwhile.severity else before.meanwhile
    if now_s - since_s < before.calm_s:
        return msgspec.structs.replace(before, calm_since_s=since_s, meanwhile=worst)
    return Spell(mark=worst, n_relapses=before.n_relapses, eased_s=now_s)


def _watched(spell: Spell) -> Mark:
    told = f"{spell.mark.reason or spell.mark.health} (not any more; it is watched for {format_seconds(spell.calm_s)})"
    return Mark(spell.mark.health, told)

"""When a card is ill, from what it counts and measures.

Error counters are kept since the driver was loaded: a count says that something happened once, its growth under our
eyes says that what runs on the card now may be wrong.
"""

from __future__ import annotations

from xinf.core.device import Health


def or_well(health: Health | None, *measured: float | None) -> Health | None:
    """Say OK of a card that has no word on its health but answers: what was said while it did not is over then."""
    return Health.OK if health is None and any(value is not None for value in measured) else health


class HealthWatch:
    """Remembers the lowest error count of each device. One per probe, in the resident child."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def judge(
        self,
        uuid: str,
        *,
        ecc_uncorrected: int | None,
        temp_c: float | None,
        temp_limit_c: float | None = None,
        temp_shutdown_c: float | None = None,
    ) -> tuple[Health | None, str | None]:
        """Say how a device is and why; None: nothing was measured that tells.

        `temp_limit_c`: where the card slows itself down. `temp_shutdown_c`: where it turns itself off.
        """
        if ecc_uncorrected is not None:
            # A count that fell began anew: the driver was loaded again, or the card is another.
            first = self._first[uuid] = min(ecc_uncorrected, self._first.get(uuid, ecc_uncorrected))
            new = ecc_uncorrected - first
            if new > 0:
                return Health.FAULTY, (
                    f"{new} uncorrectable memory errors since the agent started: reset the card and restart the agent"
                )
        # Without the temperature itself: each new reason is written to the store.
        if temp_c is not None and temp_shutdown_c is not None and temp_c >= temp_shutdown_c:
            return (
                Health.FAULTY,
                f"it is at {temp_shutdown_c:g} C or above, where it turns itself off: look at its cooling",
            )
        if temp_c is not None and temp_limit_c is not None and temp_c >= temp_limit_c:
            return Health.DEGRADED, (
                f"it is at its critical limit of {temp_limit_c:g} C or above and slowed down: look at its cooling"
            )
        return (None, None) if ecc_uncorrected is None and temp_c is None else (Health.OK, None)

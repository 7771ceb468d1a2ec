"""The retry budget: retries may be a share of recent requests, so that a dying fleet is not hit twice as hard."""

from __future__ import annotations

# Retries that are always allowed to save up: a quiet gateway must survive one engine's death with its requests.
RESERVE = 32.0


class RetryBudget:
    """A bucket that each request fills by `share` and each retry empties by one. O(1)."""

    __slots__ = ("_share", "_tokens")

    def __init__(self, budget_pct: float) -> None:
        self._share = budget_pct / 100
        self._tokens = RESERVE if budget_pct > 0 else 0.0

    def earn(self) -> None:
        """Count a request."""
        self._tokens = min(RESERVE, self._tokens + self._share)

    def take(self) -> bool:
        """Take one retry if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

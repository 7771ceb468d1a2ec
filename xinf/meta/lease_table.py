"""When each lease ends, in memory: the file knows only how long leases live, so a restart gives each its full ttl.

A lease is alive, or ending (its expiry is being written), or gone. Whoever renews an ending lease is told that it
expired: from `take_due` on its keys are as good as deleted.

| operation | cost |
|---|---|
| add, renew, remove, has | O(1) |
| take_due, next_due_s | O(n), n leases: one per node and control process, so hundreds |
"""

from __future__ import annotations

import threading

import msgspec

from xinf.core.errors import LeaseExpired
from xinf.core.ids import LeaseId


class _Lease(msgspec.Struct):
    ttl_s: float
    due_s: float
    is_ending: bool = False


class LeaseTable:
    """All leases with their deadlines in monotonic seconds. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[LeaseId, _Lease] = {}

    def add(self, lease: LeaseId, ttl_s: float, now_s: float) -> None:
        with self._lock:
            self._leases[lease] = _Lease(ttl_s, now_s + ttl_s)

    def renew(self, lease: LeaseId, now_s: float) -> float:
        """Give a lease its full ttl again and return it. Raises: LeaseExpired."""
        with self._lock:
            found = self._leases.get(lease)
            if found is None or found.is_ending or found.due_s <= now_s:
                raise lease_expired(lease)
            found.due_s = now_s + found.ttl_s
            return found.ttl_s

    def take_due(self, now_s: float) -> list[LeaseId]:
        """Mark the leases that are over as ending and return them, also those whose ending failed before."""
        with self._lock:
            due = [lease for lease, found in self._leases.items() if found.due_s <= now_s]
            for lease in due:
                self._leases[lease].is_ending = True
            return due

    def remove(self, lease: LeaseId) -> None:
        with self._lock:
            self._leases.pop(lease, None)

    def next_due_s(self) -> float | None:
        with self._lock:
            return min((found.due_s for found in self._leases.values()), default=None)


def lease_expired(lease: LeaseId) -> LeaseExpired:
    return LeaseExpired(f"lease {lease} is not known: it expired or was revoked", remedy="grant a new one", lease=lease)

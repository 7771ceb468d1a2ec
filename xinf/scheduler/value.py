"""How much is lost when a replica stops: what is stopped first when somebody has to go."""

from __future__ import annotations

from xinf.core.records import Phase, ReplicaRecord

# How far a replica is on its way to being useful.
_USEFULNESS = {
    Phase.STOPPED: 0,
    Phase.PENDING: 1,
    Phase.FAILED: 2,
    Phase.PLACED: 3,
    Phase.STARTING: 4,
    Phase.LOADING: 5,
    Phase.WARMING: 6,
    Phase.DRAINING: 6,
    Phase.READY: 7,
}
Value = tuple[int, int, float, str]


def usefulness(replica: ReplicaRecord) -> int:
    """From nothing (0) to serving (7)."""
    return _USEFULNESS[replica.phase]


def value_of(replica: ReplicaRecord, priority: int) -> Value:
    """Ascending: priority first, then how far it has come, then age: the older has the warmer cache."""
    return (priority, usefulness(replica), -replica.created_s, replica.id)

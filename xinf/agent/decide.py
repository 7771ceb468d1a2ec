"""What an agent does next about one replica: pure, from its record, what is seen of its process, and the time.

            nothing runs            guard runs                       guard gone, group left
    run     start, or wait for      report phase and facts;          kill, then as if nothing ran
            the end of a back-off   kill when too long or failed
    stop    report stopped          drain, then TERM, then KILL      kill
    (none)  clean up                the same                         kill

Every step can be lost and repeated: what was done follows from the files and /proc, what was told from the record.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from xinf.agent.custody import Custody
from xinf.agent.failure import SHOWN_LINES, Evidence, classify
from xinf.core.config import AgentConfig
from xinf.core.records import Phase, ReplicaFailure, ReplicaRecord
from xinf.core.shim import ShimStatus
from xinf.core.units import format_seconds

STARTING_PHASES = (Phase.STARTING, Phase.LOADING, Phase.WARMING)
TERM_GRACE_S = 10.0  # from TERM to KILL, when requests have been drained already
GUARD_GRACE_S = 40.0  # from KILL to the guard's end: it waits up to 30 s for processes that are stuck in a driver
_POLL_STARTING_S = 0.2  # how fast a phase shows up in `xinf launch`
_POLL_READY_S = 1.0
_POLL_STOPPING_S = 0.1


class Wish(StrEnum):
    """What is to become of a replica on this node."""

    RUN = "run"
    STOP = "stop"  # for good
    PARK = "park"  # the agent stops with its engines: the next one starts them again
    CLEAN = "clean"  # it has no record


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stop has come, by `Facts.seen_s`; kept in memory, a new agent begins again."""

    since_s: float
    is_drained: bool = False
    terminated_s: float | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of a replica on this host.

    All that is waited for is measured from `seen_s`: the time of day may be set forward or back meanwhile.
    """

    seen_s: float  # when, on a clock that does not jump
    custody: Custody | None = None  # None: nothing was started that has not been dealt with
    is_running: bool = False  # its guard lives
    n_members: int = 0  # processes alive in its group
    status: ShimStatus | None = None
    evidence: Evidence = Evidence()  # gathered when it is not running, has failed or takes too long
    may_start: bool = True  # no other engine starts on, or still holds, its devices
    stopping: Stopping | None = None
    killed_s: float | None = None  # when this start was killed first; kept in memory, a new agent begins again


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start the engine and report it."""


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """Report: replace the record."""

    record: ReplicaRecord


class Drain(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the shim to end its requests; goes on in the background."""

    timeout_s: float


class Terminate(msgspec.Struct, frozen=True, kw_only=True):
    """Send TERM to the guard."""


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """Kill the group but its guard, which kills what has left the group, says how it ended and ends."""

    reason: str


class KillGuard(msgspec.Struct, frozen=True, kw_only=True):
    """Kill all of the group: the guard has not ended in time."""

    reason: str


class Clean(msgspec.Struct, frozen=True, kw_only=True):
    """Forget the start: drop custody and socket."""


class LookAgain(msgspec.Struct, frozen=True, kw_only=True):
    """Come back after this time even if nothing is told."""

    delay_s: float


Action = Start | Write | Drain | Terminate | Kill | KillGuard | Clean | LookAgain


def decide(record: ReplicaRecord | None, wish: Wish, facts: Facts, config: AgentConfig, now_s: float) -> list[Action]:
    """List what to do now, in order; an empty list means that all is as it should be."""
    if record is None or wish is not Wish.RUN:
        return _stop(record, wish, facts, config, now_s)
    if facts.is_running:
        return _watch(record, facts, config, now_s)
    if facts.n_members:
        return [KillGuard(reason="its guard is gone"), LookAgain(delay_s=_POLL_STOPPING_S)]
    if facts.custody is not None:
        return _bury(record, facts.custody, facts, config, now_s)
    return _start(record, facts, config, now_s)


def backoff_s(restarts: int, config: AgentConfig) -> float:
    """The wait before the next start after `restarts` failures in a row."""
    return float(min(config.backoff_max, config.backoff_initial * 2 ** min(restarts, 30)))


def quiet_s(custody: Custody, status: ShimStatus | None, seen_s: float) -> float:
    """For how long a start has had its time: since it began, or since files of its model came last."""
    fetched_s = None if status is None else status.fetched_monotonic_s
    return seen_s - max((at_s for at_s in (custody.monotonic_s, fetched_s) if at_s is not None), default=seen_s)


def fail(record: ReplicaRecord, failure: ReplicaFailure, config: AgentConfig, now_s: float) -> ReplicaRecord:
    """The record after a failure: when it starts again, and why it must."""
    return msgspec.structs.replace(
        record,
        phase=Phase.FAILED,
        phase_since_s={**record.phase_since_s, Phase.FAILED: now_s},
        detail=None,
        failure=failure,
        restarts=record.restarts + 1,
        retry_at_s=now_s + backoff_s(record.restarts, config),
    )


def begin(record: ReplicaRecord, custody: Custody, log_path: str) -> ReplicaRecord:
    """The record of a replica whose process has just been started, or was found running and unreported."""
    kept = {phase: at_s for phase, at_s in record.phase_since_s.items() if phase in (Phase.PENDING, Phase.PLACED)}
    return msgspec.structs.replace(
        record,
        phase=Phase.STARTING,
        phase_since_s={**kept, Phase.STARTING: custody.started_s},
        detail=None,
        address=custody.address,
        pid=custody.pid,
        pid_start_ticks=custody.start_ticks,
        log_path=log_path,
        retry_at_s=None,
    )


def _start(record: ReplicaRecord, facts: Facts, config: AgentConfig, now_s: float) -> list[Action]:
    """Nothing runs and nothing is left to report."""
    if record.phase not in (Phase.PLACED, Phase.FAILED):
        # It ran, and not even its files are there: another data directory, or one that was emptied.
        failure = classify(Evidence(), at_s=now_s)
        return [Write(record=fail(record, failure, config, now_s)), LookAgain(delay_s=0)]
    wait_s = (record.retry_at_s or now_s) - now_s if record.phase is Phase.FAILED else 0.0
    # More than the longest wait is left if the time of day was set back: then it is over.
    if 0 < wait_s <= config.backoff_max:
        return [LookAgain(delay_s=wait_s)]
    if not facts.may_start:
        return [LookAgain(delay_s=_POLL_STARTING_S)]
    return [Start(), LookAgain(delay_s=_POLL_STARTING_S)]


def _watch(record: ReplicaRecord, facts: Facts, config: AgentConfig, now_s: float) -> list[Action]:
    """The guard runs: tell what it became, and end it if it takes too long or says that it failed."""
    custody = facts.custody
    assert custody is not None
    if (record.pid, record.pid_start_ticks) != (custody.pid, custody.start_ticks):
        reported = begin(record, custody, record.log_path or "")
        return [Write(record=_with_status(reported, facts.status)), LookAgain(delay_s=_POLL_STARTING_S)]
    if record.phase is Phase.FAILED:
        return _kill("it failed and has not ended", facts)
    if facts.status is not None and facts.status.phase is Phase.FAILED:
        return _end(record, _explain(facts, now_s), config, now_s)
    reported = _with_status(record, facts.status)
    actions: list[Action] = [Write(record=reported)] if reported != record else []
    if reported.phase in STARTING_PHASES:
        if quiet_s(custody, facts.status, facts.seen_s) > config.start_timeout:
            return _end(record, _too_slow(reported, facts, config, now_s), config, now_s)
        return [*actions, LookAgain(delay_s=_POLL_STARTING_S)]
    if reported.restarts and now_s - reported.phase_since_s.get(Phase.READY, now_s) >= config.backoff_reset:
        actions = [Write(record=msgspec.structs.replace(reported, restarts=0))]
    return [*actions, LookAgain(delay_s=_POLL_READY_S)]


def _end(record: ReplicaRecord, failure: ReplicaFailure, config: AgentConfig, now_s: float) -> list[Action]:
    """Report first, so that gateways look elsewhere at once, then kill."""
    return [
        Write(record=fail(record, failure, config, now_s)),
        Kill(reason=failure.message),
        LookAgain(delay_s=_POLL_STOPPING_S),
    ]


def _bury(record: ReplicaRecord, custody: Custody, facts: Facts, config: AgentConfig, now_s: float) -> list[Action]:
    """The whole group is gone: report that once, then forget it."""
    is_same = (record.pid, record.pid_start_ticks) == (custody.pid, custody.start_ticks)
    if record.phase is Phase.FAILED and is_same:
        return [Clean(), LookAgain(delay_s=0)]
    known = msgspec.structs.replace(record, pid=custody.pid, pid_start_ticks=custody.start_ticks)
    return [Write(record=fail(known, _explain(facts, now_s), config, now_s)), Clean(), LookAgain(delay_s=0)]


def _stop(record: ReplicaRecord | None, wish: Wish, facts: Facts, config: AgentConfig, now_s: float) -> list[Action]:
    """Bring a group to its end, then report it gone."""
    if not facts.is_running and not facts.n_members:
        return _stopped(record, wish, facts, now_s)
    if not facts.is_running:
        return [KillGuard(reason="its guard is gone"), LookAgain(delay_s=_POLL_STOPPING_S)]
    look = LookAgain(delay_s=_POLL_STOPPING_S)
    stopping = facts.stopping
    is_serving = facts.status is not None and facts.status.phase in (Phase.READY, Phase.DRAINING)
    if stopping is None:
        # Act, then tell: engines must end on request also while the control process is away.
        actions: list[Action] = [Drain(timeout_s=config.drain_timeout) if is_serving else Terminate()]
        if record is not None and record.phase is not Phase.DRAINING:
            since = {**record.phase_since_s, Phase.DRAINING: now_s}
            draining = msgspec.structs.replace(record, phase=Phase.DRAINING, phase_since_s=since)
            actions.append(Write(record=draining))
        return [*actions, look]
    if stopping.terminated_s is None:
        is_over = stopping.is_drained or facts.seen_s - stopping.since_s > config.drain_timeout
        return [Terminate(), look] if is_over else [look]
    if facts.seen_s > stopping.terminated_s + TERM_GRACE_S:
        return _kill(f"it did not end within {TERM_GRACE_S:g} s of SIGTERM", facts)
    return [look]


def _kill(reason: str, facts: Facts) -> list[Action]:
    """Kill, sparing the guard for as long as it may need to clean up."""
    is_stuck = facts.killed_s is not None and facts.seen_s - facts.killed_s > GUARD_GRACE_S
    return [KillGuard(reason=reason) if is_stuck else Kill(reason=reason), LookAgain(delay_s=_POLL_STOPPING_S)]


def _stopped(record: ReplicaRecord | None, wish: Wish, facts: Facts, now_s: float) -> list[Action]:
    cleaning: list[Action] = [Clean()] if facts.custody is not None else []
    if record is None or wish is Wish.CLEAN:
        return [Clean()]
    phase = Phase.STOPPED if wish is Wish.STOP else Phase.PLACED
    if record.phase is phase:
        return cleaning
    ended = msgspec.structs.replace(
        record,
        phase=phase,
        phase_since_s={**record.phase_since_s, phase: now_s},
        detail=None,
        pid=None,
        pid_start_ticks=None,
        address=None,
        retry_at_s=None,
    )
    return [*cleaning, Write(record=ended)]


def _with_status(record: ReplicaRecord, status: ShimStatus | None) -> ReplicaRecord:
    """The record with what the shim says in it."""
    if status is None or status.phase is Phase.FAILED:
        return record
    return msgspec.structs.replace(
        record,
        phase=status.phase,
        phase_since_s={**record.phase_since_s, **status.phase_since_s},
        detail=status.detail,
        block_tokens=status.block_tokens or record.block_tokens,
        kv_blocks=status.kv_blocks or record.kv_blocks,
        max_model_len=status.max_model_len or record.max_model_len,
    )


def _explain(facts: Facts, now_s: float) -> ReplicaFailure:
    """What the shim said of its failure, else what the evidence says; with the log's end in any case."""
    found = classify(facts.evidence, at_s=now_s)
    said = facts.status.failure if facts.status is not None else None
    if said is None:
        return found
    return msgspec.structs.replace(
        said, exit_status=found.exit_status, log_tail=said.log_tail or found.log_tail, at_s=said.at_s or now_s
    )


def _too_slow(record: ReplicaRecord, facts: Facts, config: AgentConfig, now_s: float) -> ReplicaFailure:
    limit = format_seconds(config.start_timeout)
    return ReplicaFailure(
        cause="start_timeout",
        message=f"not ready after {limit}; it was still {record.phase}",
        remedy="raise agent.start_timeout, or look at what it waits for with `xinf logs`",
        log_tail=facts.evidence.log_tail[-SHOWN_LINES:],
        at_s=now_s,
    )

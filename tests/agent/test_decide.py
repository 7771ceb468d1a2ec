"""The table of decisions: record x what is seen -> what is done."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from xinf.agent.custody import Custody
from xinf.agent.decide import (
    GUARD_GRACE_S,
    TERM_GRACE_S,
    Action,
    Clean,
    Drain,
    Facts,
    Kill,
    KillGuard,
    LookAgain,
    Start,
    Stopping,
    Terminate,
    Wish,
    Write,
    backoff_s,
    decide,
    quiet_s,
)
from xinf.agent.failure import Evidence
from xinf.core.config import load
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineSpec, Phase, ReplicaFailure, ReplicaRecord
from xinf.core.shim import ShimStatus

CONFIG = load(environ={}).agent
NOW = 10_000.0
SEEN = 500.0  # the same moment on the clock that does not jump
CUSTODY = Custody(
    replica=ReplicaId("m-1"), start_id="s1", started_s=NOW - 5, monotonic_s=SEEN - 5, address="unix:/s", pid=77,
    start_ticks=5,
)  # fmt: skip
FAILURE = ReplicaFailure(cause="model_not_found", message="no such model", remedy="check the path")


def record(phase: Phase = Phase.PLACED, **changes: object) -> ReplicaRecord:
    made = ReplicaRecord(
        id=ReplicaId("m-1"),
        deployment=DeploymentName("m"),
        generation=1,
        spec=EngineSpec(model="m"),
        node=NodeName("a"),
        phase=phase,
        phase_since_s={Phase.PENDING: 1.0, Phase.PLACED: 2.0},
    )
    if phase not in (Phase.PLACED, Phase.PENDING):
        made = msgspec.structs.replace(made, pid=77, pid_start_ticks=5, address="unix:/s")
    return msgspec.structs.replace(made, **changes)


def status(phase: Phase, **changes: object) -> ShimStatus:
    made = ShimStatus(start_id="s1", pid=78, phase=phase, phase_since_s={phase: NOW - 1})
    return msgspec.structs.replace(made, **changes)


def facts(**seen: Any) -> Facts:
    return Facts(seen_s=SEEN, **seen)


def running(found: ShimStatus | None = None, **changes: object) -> Facts:
    return facts(custody=CUSTODY, is_running=True, n_members=2, status=found, **changes)


def ended(exit_status: int | None = 1, found: ShimStatus | None = None, *tail: str) -> Facts:
    return facts(custody=CUSTODY, status=found, evidence=Evidence(exit_status=exit_status, log_tail=tail))


def run(made: ReplicaRecord | None, seen: Facts, wish: Wish = Wish.RUN, after_s: float = 0.0) -> list[Action]:
    """`after_s`: both clocks go on so far."""
    return decide(made, wish, msgspec.structs.replace(seen, seen_s=SEEN + after_s), CONFIG, NOW + after_s)


def written(actions: list[Action]) -> ReplicaRecord:
    (write,) = (action for action in actions if isinstance(action, Write))
    return write.record


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


def test_placed_replica_is_started() -> None:
    assert kinds(run(record(), facts())) == [Start, LookAgain]


def test_start_waits_for_the_devices() -> None:
    assert kinds(run(record(), facts(may_start=False))) == [LookAgain]


def test_failed_replica_waits_for_its_time() -> None:
    waiting = record(Phase.FAILED, retry_at_s=NOW + 7)
    assert run(waiting, facts()) == [LookAgain(delay_s=7.0)]
    assert kinds(run(waiting, facts(), after_s=7)) == [Start, LookAgain]


def test_unreported_process_is_reported_not_started_again() -> None:
    """The agent died, or the store was away, between the start and the report."""
    reported = written(run(record(), running(status(Phase.LOADING))))
    assert (reported.pid, reported.pid_start_ticks, reported.address) == (77, 5, "unix:/s")
    assert reported.phase is Phase.LOADING
    assert reported.phase_since_s[Phase.STARTING] == CUSTODY.started_s
    assert reported.phase_since_s[Phase.PLACED] == 2.0


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.LOADING, Phase.WARMING, Phase.READY])
def test_phase_and_facts_come_from_the_shim(phase: Phase) -> None:
    told = status(phase, block_tokens=16, kv_blocks=900, max_model_len=4096)
    reported = written(run(record(Phase.STARTING), running(told)))
    assert (reported.phase, reported.block_tokens, reported.kv_blocks) == (phase, 16, 900)
    assert reported.phase_since_s[phase] == NOW - 1


def test_nothing_is_written_when_nothing_changed() -> None:
    told = status(Phase.READY)
    once = written(run(record(Phase.STARTING), running(told)))
    assert kinds(run(once, running(told))) == [LookAgain]


def test_failure_that_the_shim_tells_is_kept_in_its_words() -> None:
    actions = run(record(Phase.LOADING), running(status(Phase.FAILED, failure=FAILURE)))
    assert kinds(actions) == [Write, Kill, LookAgain]
    reported = written(actions)
    assert reported.failure is not None
    assert (reported.phase, reported.failure.cause, reported.restarts) == (Phase.FAILED, "model_not_found", 1)


def test_failed_engine_that_does_not_end_is_killed() -> None:
    failed = record(Phase.FAILED, phase_since_s={Phase.FAILED: NOW})
    told = running(status(Phase.FAILED))
    assert kinds(run(failed, told)) == [Kill, LookAgain]
    killed = msgspec.structs.replace(told, killed_s=SEEN)
    assert kinds(run(failed, killed, after_s=GUARD_GRACE_S)) == [Kill, LookAgain]
    assert kinds(run(failed, killed, after_s=GUARD_GRACE_S + 1)) == [KillGuard, LookAgain]


def test_start_that_takes_too_long_is_ended() -> None:
    actions = run(record(Phase.LOADING), running(status(Phase.LOADING)), after_s=CONFIG.start_timeout)
    reported = written(actions)
    assert reported.failure is not None
    assert reported.failure.cause == "start_timeout"
    assert "still loading" in reported.failure.message
    assert Kill in kinds(actions)


@pytest.mark.parametrize(("waits_s", "is_ended"), [(1.0, False), (CONFIG.start_timeout + 1, True)])
def test_time_for_a_start_counts_from_the_last_bytes_of_its_model(waits_s: float, is_ended: bool) -> None:
    after_s = 10 * CONFIG.start_timeout
    told = status(Phase.STARTING, fetched_monotonic_s=SEEN + after_s - waits_s, detail="fetching 12 %")
    actions = run(record(Phase.STARTING), running(told), after_s=after_s)
    reported = next(action.record for action in actions if isinstance(action, Write))
    assert (reported.phase is Phase.FAILED) is is_ended
    assert reported.detail == (None if is_ended else "fetching 12 %")


def test_ready_engine_has_no_start_timeout() -> None:
    told = status(Phase.READY)
    once = written(run(record(Phase.STARTING), running(told)))
    assert kinds(run(once, running(told), after_s=CONFIG.start_timeout + 1)) == [LookAgain]


@pytest.mark.parametrize("jump_s", [10 * CONFIG.start_timeout, -10 * CONFIG.start_timeout])
def test_clock_that_is_set_ends_nothing_and_keeps_nothing_from_its_end(jump_s: float) -> None:
    """The time of day jumps forward when a host finds its time server, and back when somebody corrects it."""
    starting, serving = running(status(Phase.LOADING)), running(status(Phase.READY))
    actions = decide(record(Phase.LOADING), Wish.RUN, starting, CONFIG, NOW + jump_s)
    assert Kill not in kinds(actions)
    late = msgspec.structs.replace(starting, seen_s=SEEN + CONFIG.start_timeout)
    assert Kill in kinds(decide(record(Phase.LOADING), Wish.RUN, late, CONFIG, NOW + jump_s))
    draining = msgspec.structs.replace(serving, stopping=Stopping(since_s=SEEN))
    made = record(Phase.DRAINING)
    assert kinds(decide(made, Wish.STOP, draining, CONFIG, NOW + jump_s)) == [LookAgain]
    late = msgspec.structs.replace(draining, seen_s=SEEN + CONFIG.drain_timeout + 1)
    assert kinds(decide(made, Wish.STOP, late, CONFIG, NOW + jump_s)) == [Terminate, LookAgain]
    failed = record(Phase.FAILED, phase_since_s={Phase.FAILED: NOW})
    killed = running(status(Phase.FAILED), killed_s=SEEN)
    assert kinds(decide(failed, Wish.RUN, killed, CONFIG, NOW + jump_s)) == [Kill, LookAgain]


def test_back_off_does_not_last_until_a_clock_that_was_set_back_is_there_again() -> None:
    waiting = record(Phase.FAILED, retry_at_s=NOW + 7)
    assert kinds(decide(waiting, Wish.RUN, facts(), CONFIG, NOW - 30)) == [LookAgain]
    assert kinds(decide(waiting, Wish.RUN, facts(), CONFIG, NOW - 3600)) == [Start, LookAgain]


def test_start_of_which_nothing_is_known_has_its_time_before_it() -> None:
    assert quiet_s(msgspec.structs.replace(CUSTODY, monotonic_s=None), None, SEEN) == 0


def test_rest_of_a_group_is_killed_before_anything_else() -> None:
    left = facts(custody=CUSTODY, n_members=1)
    assert kinds(run(record(Phase.READY), left)) == [KillGuard, LookAgain]
    assert kinds(run(record(Phase.READY), left, Wish.STOP)) == [KillGuard, LookAgain]


def test_end_is_reported_with_status_cause_and_log() -> None:
    actions = run(record(Phase.READY), ended(-9, None, "last words"))
    assert kinds(actions) == [Write, Clean, LookAgain]
    failure = written(actions).failure
    assert failure is not None
    assert (failure.cause, failure.exit_status, failure.log_tail) == ("killed", -9, ("last words",))


def test_shims_own_words_beat_the_log() -> None:
    told = status(Phase.FAILED, failure=FAILURE)
    failure = written(run(record(Phase.LOADING), ended(1, told, "ImportError: x"))).failure
    assert failure is not None
    assert (failure.cause, failure.exit_status, failure.log_tail) == ("model_not_found", 1, ("ImportError: x",))


def test_reported_end_is_only_cleaned_up() -> None:
    once = written(run(record(Phase.READY), ended()))
    assert kinds(run(once, ended())) == [Clean, LookAgain]


def test_start_that_ended_before_it_was_reported_counts_as_a_failure() -> None:
    waiting = record(Phase.FAILED, pid=60, restarts=2)  # of the start before
    assert written(run(waiting, ended())).restarts == 3


def test_ready_replica_without_any_trace_is_started_again() -> None:
    lost = written(run(record(Phase.READY), facts()))
    assert lost.phase is Phase.FAILED
    assert kinds(run(lost, facts(), after_s=100)) == [Start, LookAgain]


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_s(n, CONFIG) for n in (0, 1, 2, 3, 10, 10_000)] == [1, 2, 4, 8, 60, 60]


def test_crash_loop_waits_longer_each_time_and_a_long_life_forgives() -> None:
    made, after_s, waits = record(Phase.LOADING), 0.0, []
    for _ in range(4):
        made = written(run(made, ended(), after_s=after_s))
        assert made.retry_at_s is not None
        waits.append(made.retry_at_s - NOW - after_s)
        after_s += waits[-1]
        made = msgspec.structs.replace(made, phase=Phase.LOADING)
    assert waits == [1, 2, 4, 8]
    serving = msgspec.structs.replace(made, phase=Phase.READY, phase_since_s={Phase.READY: NOW + after_s})
    told = status(Phase.READY, phase_since_s={Phase.READY: NOW + after_s})
    assert kinds(run(serving, running(told), after_s=after_s + CONFIG.backoff_reset - 1)) == [LookAgain]
    forgiven = written(run(serving, running(told), after_s=after_s + CONFIG.backoff_reset))
    assert forgiven.restarts == 0
    assert forgiven.failure is not None, "the last failure stays visible"


@pytest.mark.parametrize("wish", [Wish.STOP, Wish.PARK, Wish.CLEAN])
def test_stop_drains_then_terminates_then_kills(wish: Wish) -> None:
    made = None if wish is Wish.CLEAN else record(Phase.READY)
    serving = running(status(Phase.READY))
    first = run(made, serving, wish)
    assert [kind for kind in kinds(first) if kind is not Write] == [Drain, LookAgain]
    if made is not None:
        assert written(first).phase is Phase.DRAINING
        made = written(first)
    draining = msgspec.structs.replace(serving, stopping=Stopping(since_s=SEEN))
    assert kinds(run(made, draining, wish, 1)) == [LookAgain]
    drained = msgspec.structs.replace(serving, stopping=Stopping(since_s=SEEN, is_drained=True))
    assert kinds(run(made, drained, wish, 1)) == [Terminate, LookAgain]
    assert kinds(run(made, draining, wish, CONFIG.drain_timeout + 1)) == [Terminate, LookAgain]
    told = msgspec.structs.replace(serving, stopping=Stopping(since_s=SEEN, is_drained=True, terminated_s=SEEN))
    assert kinds(run(made, told, wish, TERM_GRACE_S)) == [LookAgain]
    assert kinds(run(made, told, wish, TERM_GRACE_S + 1)) == [Kill, LookAgain]
    killed = msgspec.structs.replace(told, killed_s=SEEN + TERM_GRACE_S + 1)
    assert kinds(run(made, killed, wish, TERM_GRACE_S + GUARD_GRACE_S + 1)) == [Kill, LookAgain]
    assert kinds(run(made, killed, wish, TERM_GRACE_S + GUARD_GRACE_S + 2)) == [KillGuard, LookAgain]


def test_engine_that_loads_is_not_drained() -> None:
    assert kinds(run(record(Phase.LOADING), running(status(Phase.LOADING)), Wish.STOP)) == [Terminate, Write, LookAgain]


def test_stopped_only_when_nothing_is_left() -> None:
    actions = run(record(Phase.DRAINING), ended(0), Wish.STOP)
    assert kinds(actions) == [Clean, Write]
    gone = written(actions)
    assert (gone.phase, gone.pid, gone.address) == (Phase.STOPPED, None, None)
    assert run(gone, facts(), Wish.STOP) == []


def test_replica_that_never_started_is_stopped_at_once() -> None:
    assert written(run(record(Phase.PLACED), facts(), Wish.STOP)).phase is Phase.STOPPED


def test_parked_replica_is_placed_again_for_the_next_agent() -> None:
    assert written(run(record(Phase.DRAINING), ended(0), Wish.PARK)).phase is Phase.PLACED


def test_orphan_is_forgotten_without_a_report() -> None:
    assert kinds(run(None, ended(0), Wish.CLEAN)) == [Clean]

"""The ledger against the naive one: costs, reservations, reports, ties."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import pytest

from tests.model.ledger_model import LedgerModel, ModelReplica, ModelReservation
from xinf._fast import ledger as ledger_module
from xinf._fast.ledger import NOBODY, STALE_S, Ledger


def ledger_of(n: int, *, max_inflight: int = 1000, turn: int = 0, service_s: float = 0.5) -> Ledger:
    ledger = Ledger(max_inflight, turn)
    for replica in range(n):
        ledger.add(
            replica,
            prefill_tokens_per_s=1000.0,
            service_s=service_s,
            max_running=8,
            block_tokens=16,
            identity=replica * 7919,
        )
        ledger.set_ready(replica, True)
    return ledger


def rows(n: int) -> array[int]:
    return array("I", range(n))


@pytest.mark.parametrize("seed", range(40))
def test_ledger_agrees_with_the_naive_one(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    ledger, model = Ledger(10**6), LedgerModel()
    live: list[tuple[int, ModelReservation]] = []
    now_s = 100.0
    next_id = 1
    for _ in range(600):
        now_s += rng.choice([0.0, 0.1, 1.5])
        replica = rng.randrange(5)
        pick = rng.random()
        if replica not in model.replicas:
            row = ModelReplica(
                rng.choice([500.0, 8000.0]), rng.choice([0.1, 2.0]), rng.randrange(1, 9), rng.choice([1, 16])
            )
            model.replicas[replica] = row
            ledger.add(
                replica,
                prefill_tokens_per_s=row.rate,
                service_s=row.service_s,
                max_running=row.max_running,
                block_tokens=row.block_tokens,
                identity=replica,
            )
        elif pick < 0.4:
            prompt, cached = rng.randrange(2000), rng.randrange(2000)
            live.append((ledger.reserve(replica, prompt, cached), model.reserve(replica, prompt, cached)))
        elif pick < 0.6 and live:
            handle, reservation = live.pop(rng.randrange(len(live)))
            model.replicas[reservation.replica].reservations.remove(reservation)
            assert ledger.release(handle)
            assert not ledger.release(handle)
        elif pick < 0.65 and live:
            handle, reservation = rng.choice(live)
            ledger.started(handle)
            reservation.tokens = 0
        elif pick < 0.75 and live:
            handle, reservation = rng.choice(live)
            if reservation.submit_id == 0:
                ledger.submitted(handle, next_id)
                reservation.submit_id = next_id
                report = model.replicas[reservation.replica].report
                reservation.is_counted = report is not None and next_id <= report["last_submit"]
                next_id += 1
        elif pick < 0.9:
            report = {
                "requests": rng.randrange(9),
                "waiting": rng.randrange(3),
                "queued_prefill_tokens": rng.randrange(3000),
                "kv_blocks_used": rng.randrange(100),
                "kv_blocks_total": rng.choice([0, 100]),
                "last_submit": rng.randrange(next_id),
                "now_s": now_s,
            }
            report["waiting"] = min(report["waiting"], report["requests"])
            last = model.replicas[replica].report
            report["last_submit"] = max(report["last_submit"], last["last_submit"] if last else 0)
            ledger.report(replica, **report)
            model.report(replica, report)
        elif pick < 0.93:
            model.replicas[replica].trust = rng.random()
            row = model.replicas[replica]
            row.crowd_s = rng.choice([0.0, 0.01])
            ledger.set_rates(replica, row.rate, row.service_s, row.trust, row.crowd_s)
        elif pick < 0.95:
            ledger.remove(replica)
            gone = model.replicas.pop(replica).reservations
            assert not any(ledger.release(handle) for handle, reservation in live if reservation in gone)
            live = [(handle, reservation) for handle, reservation in live if reservation.replica != replica]
        assert len(ledger) == len(live)
        for number in model.replicas:
            assert ledger.terms(number, 700, 300, now_s) == pytest.approx(model.terms(number, 700, 300, now_s))
            assert ledger.predict(number, 700, 300) == model.believed(number, 700, 300)
            assert ledger.inflight(number) == len(model.replicas[number].reservations)


@pytest.mark.parametrize("n_replicas", range(1, 10))
@pytest.mark.parametrize("n_requests", [2, 3, 9, 17, 64])
def test_identical_requests_spread_within_one(n_replicas: int, n_requests: int) -> None:
    ledger = ledger_of(n_replicas, turn=n_requests)
    counts = Counter(ledger.replica_of(ledger.pick(rows(n_replicas), None, 100, now_s=1.0)) for _ in range(n_requests))
    spread = [counts[replica] for replica in range(n_replicas)]
    assert max(spread) - min(spread) <= 1


def test_ties_rotate_between_requests_that_do_not_overlap() -> None:
    ledger = ledger_of(5, turn=3)
    winners = []
    for _ in range(10):
        handle = ledger.pick(rows(5), None, 10, now_s=1.0)
        winners.append(ledger.replica_of(handle))
        ledger.release(handle)
    assert winners == [3, 4, 0, 1, 2] * 2


def test_the_favourite_wins_exact_ties_only() -> None:
    ledger = ledger_of(4)
    for turn in range(4):
        handle = ledger.pick(rows(4), None, 10, now_s=1.0, favourite=2)
        assert ledger.replica_of(handle) == 2, turn
        ledger.release(handle)
    ledger.reserve(2, 10, 0)
    assert ledger.replica_of(ledger.pick(rows(4), None, 10, now_s=1.0, favourite=2)) != 2


def test_what_is_cached_is_preferred_until_the_queue_outweighs_it() -> None:
    ledger = ledger_of(2, service_s=0.001)
    cached = array("I", [960, 0])
    picked = [ledger.replica_of(ledger.pick(rows(2), cached, 1000, now_s=1.0)) for _ in range(40)]
    assert picked[:10] == [0] * 10
    assert 1 in picked  # 40 tokens each queue up behind each other; after some 24 the other one is cheaper


def test_a_slot_is_waited_for_when_all_are_taken() -> None:
    ledger = ledger_of(1, service_s=0.8)
    for n_there in range(12):
        waited_s = ledger.terms(0, 1000, 0, 1.0)[2] - 1.0 * (4 + min(n_there, 8) / 16 + max(0, n_there - 8) * 4)
        assert waited_s == pytest.approx(max(0, n_there - 7) * 0.1), n_there
        ledger.reserve(0, 1000, 0)


def test_a_miss_goes_where_few_wait_and_few_decode() -> None:
    ledger = ledger_of(3)
    report = {"queued_prefill_tokens": 0, "last_submit": 0, "now_s": 1.0, "kv_blocks_used": 0, "kv_blocks_total": 0}
    ledger.report(0, requests=4, waiting=1, **report)
    ledger.report(1, requests=4, waiting=0, **report)
    ledger.report(2, requests=3, waiting=0, **report)
    costs = [sum(ledger.terms(replica, 1000, 0, 1.0)) for replica in range(3)]
    assert costs[0] > costs[1] > costs[2]


def test_what_has_begun_is_queued_no_more() -> None:
    ledger = ledger_of(1)
    first, second = ledger.reserve(0, 100, 0), ledger.reserve(0, 300, 0)
    ledger.started(first)
    ledger.started(first)
    assert ledger.queued_tokens(0, 1.0) == 300
    ledger.release(first)
    assert ledger.queued_tokens(0, 1.0) == 300
    ledger.started(second)
    assert (ledger.queued_tokens(0, 1.0), ledger.inflight(0)) == (0, 1)


def test_a_full_pool_is_a_barrier() -> None:
    ledger = ledger_of(2)
    report = {"queued_prefill_tokens": 0, "last_submit": 0, "now_s": 1.0, "kv_blocks_total": 100}
    ledger.report(0, requests=1, kv_blocks_used=95, **report)
    ledger.report(1, requests=4, kv_blocks_used=50, **report)
    assert ledger.terms(0, 1600, 0, 1.0)[3] > 0.5
    assert ledger.terms(1, 160, 0, 1.0)[3] == 0
    assert ledger.replica_of(ledger.pick(rows(2), None, 160, now_s=1.0)) == 1


def test_a_stale_report_counts_for_nothing() -> None:
    ledger = ledger_of(1)
    handle = ledger.reserve(0, 100, 0)
    ledger.submitted(handle, 4)
    ledger.report(
        0, requests=7, queued_prefill_tokens=5000, kv_blocks_used=1, kv_blocks_total=100, last_submit=4, now_s=10.0
    )
    assert ledger.terms(0, 1, 0, 10.0 + STALE_S)[0] == 5.0
    assert ledger.terms(0, 1, 0, 10.1 + STALE_S)[0] == 0.1  # our own request, and nothing of the report
    assert ledger.queued_tokens(0, 10.1 + STALE_S) == 100


def test_a_link_that_went_down_forgets_the_report() -> None:
    ledger = ledger_of(1)
    handle = ledger.reserve(0, 100, 0)
    ledger.submitted(handle, 4)
    ledger.report(0, requests=9, queued_prefill_tokens=0, kv_blocks_used=0, kv_blocks_total=0, last_submit=4, now_s=1.0)
    assert ledger.uncounted(0) == 0
    ledger.forget_report(0)
    assert ledger.uncounted(0) == 1
    assert ledger.terms(0, 1, 0, 1.0)[2] == pytest.approx(0.001 * (4 + 1 / 16))  # one request is there, not nine
    ledger.release(handle)
    assert (ledger.uncounted(0), ledger.terms(0, 1, 0, 1.0)[0]) == (0, 0.0)


def test_limits_readiness_and_exclusion_are_kept() -> None:
    ledger = ledger_of(3, max_inflight=2)
    ledger.set_ready(0, False)
    handles = [ledger.pick(rows(3), None, 1, now_s=1.0, excluded={1}) for _ in range(3)]
    assert [ledger.replica_of(handle) for handle in handles[:2]] == [2, 2]
    assert handles[2] == NOBODY
    assert not ledger.is_open(2)
    assert ledger.pick(array("I"), None, 1, now_s=1.0) == NOBODY
    assert ledger.replica_of(NOBODY) == NOBODY
    assert not ledger.release(12345)


def test_handles_of_a_removed_replica_are_dead() -> None:
    ledger = ledger_of(1)
    old = ledger.reserve(0, 10, 0)
    ledger.remove(0)
    with pytest.raises(KeyError):
        ledger.inflight(0)
    ledger.add(0, prefill_tokens_per_s=1.0, service_s=1.0, max_running=1, block_tokens=1, identity=0)
    new = ledger.reserve(0, 10, 0)
    assert not ledger.release(old)
    ledger.submitted(old, 3)
    assert ledger.inflight(0) == 1
    assert ledger.release(new)


def test_rendezvous_moves_only_the_sessions_of_the_replica_that_left() -> None:
    ledger = ledger_of(5)
    before = [ledger.rendezvous(rows(5), session * 2654435761) for session in range(500)]
    assert set(before) == set(range(5))
    assert min(Counter(before).values()) > 60
    ledger.set_ready(3, False)
    after = [ledger.rendezvous(rows(5), session * 2654435761) for session in range(500)]
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 3)
    assert 3 not in after
    assert ledger.rendezvous(rows(5), 1, excluded={0, 1, 2, 4}) == NOBODY


def test_failed_allocations_raise_and_change_nothing() -> None:
    ledger = ledger_of(1)
    ledger_module._fail_allocation(1)
    with pytest.raises(MemoryError):
        ledger.reserve(0, 1, 0)
    assert (len(ledger), ledger.inflight(0)) == (0, 0)
    ledger_module._fail_allocation(1)
    with pytest.raises(MemoryError):
        ledger.add(100, prefill_tokens_per_s=1.0, service_s=1.0, max_running=1, block_tokens=1, identity=0)
    handles = [ledger.reserve(0, 1, 0) for _ in range(200)]
    assert len(ledger) == 200
    assert all(ledger.release(handle) for handle in handles)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        ledger_of(1).set_rates(0, rate, 1.0, 1.0)


def test_pick_passes_over_rows_that_nobody_ever_was_in() -> None:
    ledger = Ledger(4)
    ledger.add(0, prefill_tokens_per_s=1000.0, service_s=1.0, max_running=4, block_tokens=16, identity=1)
    ledger.set_ready(0, True)
    cached = array("I", [0, 64, 64])
    handle = ledger.pick(array("I", [2, 1, 0]), cached, 100, now_s=1.0)
    assert ledger.replica_of(handle) == 0

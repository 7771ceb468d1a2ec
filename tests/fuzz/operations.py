"""Random operation sequences on the prefix index and the ledger, against their naive models."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Any

from tests.fuzz.target import expect, same
from tests.model.chunk_hash import chunk_hash, fold
from tests.model.index_model import IndexModel
from tests.model.ledger_model import LedgerModel, ModelReplica, ModelReservation
from xinf._fast import ledger as ledger_module
from xinf._fast import prefix as prefix_module
from xinf._fast.ledger import NOBODY, Ledger
from xinf._fast.prefix import MIN_BYTES, PrefixIndex

N_REPLICAS = 30
MAX_SETS = 640  # of holders, that a large index has room for in any case
Operation = tuple[Any, ...]


def random_chain(rng: random.Random) -> list[int]:
    """Chains of a small forest, with shared prefixes and hashes bad on purpose; or fresh ones that fill the index."""
    if rng.random() < 0.3:
        return [rng.getrandbits(64) for _ in range(rng.choice([1, 8, 60]))]
    family = rng.randrange(5)
    return [family << rng.choice([0, 32, 60]) | (i if i < 9 else i + 100 * rng.randrange(3)) for i in range(1, 40)]


class IndexTarget:
    """Sizes from the least up: small ones evict all the time, large ones must be exact."""

    name = "index"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> list[Operation]:
        operations: list[Operation] = [("size", rng.choice([MIN_BYTES, MIN_BYTES, MIN_BYTES + 4096, 1 << 20]))]
        n_replicas = rng.choice([2, 9, N_REPLICAS])
        weights = [rng.random() ** 2 for _ in range(5)]  # so that some sequences are all inserts, some mostly drops
        for _ in range(rng.choice([10, 60, 300])):
            replica, chain = rng.randrange(n_replicas), random_chain(rng)
            pick = rng.choices(["insert", "place", "remove", "drop", "fail"], weights)[0]
            if pick == "insert":
                operations.append(("insert", replica, chain))
            elif pick == "place":
                operations.append(("insert", replica, chain, [rng.randrange(50) for _ in chain]))
            elif pick == "remove":
                operations.append(("remove", replica, rng.sample(chain, rng.randrange(1, len(chain) + 1))))
            elif pick == "drop":
                operations.append(("drop", replica))
            else:
                operations.append(("fail", rng.randrange(1, 4)))
            operations.append(("match", chain, rng.choice([0, 1, n_replicas, N_REPLICAS])))
            if rng.random() < 0.3:
                fresh = [rng.getrandbits(64) for _ in range(rng.choice([0, 90]))]
                operations.append(("match_far", chain + fresh, n_replicas, rng.choice([0, 64, 2**32 - 1])))
        return operations

    def check(self, case: Sequence[Operation]) -> None:
        run = _IndexRun(next((operation[1] for operation in case if operation[0] == "size"), MIN_BYTES))
        try:
            for operation in case:
                if operation[0] != "size":
                    getattr(run, operation[0])(*operation[1:])
        finally:
            prefix_module._fail_allocation(0)
        run.finish()

    def exercise(self, case: Sequence[Operation]) -> None:
        self.check(case)


class _IndexRun:
    def __init__(self, max_bytes: int) -> None:
        self.index, self.model = PrefixIndex(max_bytes), IndexModel()
        self.positions: dict[int, set[int]] = {}  # all that a chunk was ever given
        # Smaller ones run out of room for sets of holders before they evict, and then forget holders; so does a large
        # one whose chunks have hundreds of different sets (`is_pressed` in holders.pxd: 768 of 1 MiB).
        self.is_exact = max_bytes >= 1 << 20  # until something had to give

    def insert(self, replica: int, chain: list[int], positions: list[int] | None = None) -> None:
        for i, chunk in enumerate(chain):
            self.positions.setdefault(chunk, set()).add(i + 1 if positions is None else positions[i])
        try:
            self.index.insert(replica, array("Q", chain), None if positions is None else array("I", positions))
        except MemoryError:
            self.is_exact = False
        self.model.insert(replica, chain, positions)
        if self.is_exact and len(self.model) > MAX_SETS:
            self.is_exact = len(set(map(frozenset, self.model.holders.values()))) <= MAX_SETS

    def remove(self, replica: int, chain: list[int]) -> None:
        self.index.remove(replica, array("Q", chain))
        self.model.remove(replica, chain)

    def drop(self, replica: int) -> None:
        self.index.drop(replica)
        self.model.drop(replica)

    def fail(self, k: int) -> None:
        prefix_module._fail_allocation(k)
        self.is_exact = False

    def match(self, chain: list[int], n_replicas: int) -> None:
        lengths, hits = array("I", [7] * n_replicas), array("I", [7] * n_replicas)
        best = self.index.match(array("Q", chain), lengths, hits)
        expect(self.index.nbytes <= self.index.max_bytes, self.index.nbytes, "bytes of", self.index.max_bytes)
        same(best, max(lengths, default=0), "the largest length")
        if self.is_exact and self.index.evictions == 0:
            same((lengths.tolist(), hits.tolist()), self.model.match(chain, n_replicas), "match")
            same(len(self.index), len(self.model), "entries")
            return
        for replica in range(n_replicas):
            # Chunks may be missing; what is there is a chunk that this replica was given, at a position it was given.
            length, hit = lengths[replica], hits[replica]
            expect((length == 0) == (hit == 0) and hit <= len(chain), "replica", replica, "length", length, "hit", hit)
            if hit:
                chunk = chain[hit - 1]
                expect(replica in self.model.holders.get(chunk, ()), replica, "never held", chunk)
                expect(length in self.positions[chunk], length, "is none of", self.positions[chunk])
        expect(len(self.index) <= len(self.model), len(self.index), "entries, at most", len(self.model))

    def match_far(self, chain: list[int], n_replicas: int, window_bytes: int) -> None:
        """What is found by looking at some chunks is there, and no further than what looking at all finds."""
        lengths, hits = array("I", [7] * n_replicas), array("I", [7] * n_replicas)
        whole, ends = array("I", [7] * n_replicas), array("I", [64 * (i + 1) for i in range(len(chain))])
        whole_hits = array("I", [7] * n_replicas)
        self.index.match(array("Q", chain), whole, whole_hits)
        self.index.match_far(array("Q", chain), ends, window_bytes, lengths, hits)
        for replica in range(n_replicas):
            expect(hits[replica] <= whole_hits[replica], "replica", replica, "is found further by looking at less")
            if hits[replica]:
                chunk = chain[hits[replica] - 1]
                expect(replica in self.model.holders.get(chunk, ()), replica, "never held", chunk)
                expect(lengths[replica] in self.positions[chunk], lengths[replica], "is none of its positions")

    def finish(self) -> None:
        self.index._check()
        held = [self.index.held_by(replica) for replica in range(N_REPLICAS)]
        same(sum(held), len(self.index), "entries by replica")
        if self.is_exact and self.index.evictions == 0:
            expected = [
                sum(replica in held_by for held_by in self.model.holders.values()) for replica in range(N_REPLICAS)
            ]
            same(held, expected, "entries by replica")


class LedgerTarget:
    name = "ledger"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> list[Operation]:
        n_replicas = rng.choice([1, 3, 12])
        operations: list[Operation] = [("limit", rng.choice([1, 3, 10**6]))]
        next_id = 1
        for _ in range(rng.choice([10, 60, 300])):
            replica, index, tokens = rng.randrange(n_replicas), rng.randrange(1000), rng.choice([0, 1, 40, 2000, 2**31])
            # Some of the rows, among them ones that are not in the ledger.
            rows = rng.sample(range(n_replicas + 2), rng.randrange(n_replicas + 3))
            made: list[Operation] = [
                ("add", replica, rng.choice([0.5, 8000.0, 8000.0]), rng.choice([0.1, 2.0]), rng.randrange(1, 9),
                 rng.choice([1, 16])),
                ("ready", replica, rng.random() < 0.8),
                ("reserve", replica, rng.randrange(tokens + 1), rng.randrange(tokens + 1)),
                ("pick", rows, rng.randrange(tokens + 1),
                 rng.choice([None, [rng.randrange(tokens + 1) for _ in range(rng.randrange(n_replicas + 2))]]),
                 {rng.randrange(n_replicas)} if rng.random() < 0.2 else set(), rng.randrange(-1, n_replicas)),
                ("rendezvous", rows, rng.getrandbits(64)),
                ("release", index), ("release", index), ("submitted", index, next_id),
                ("report", replica, rng.randrange(9), rng.randrange(3000), rng.randrange(100), rng.choice([0, 100]),
                 rng.randrange(next_id + 1)),
                ("forget", replica), ("rates", replica, rng.random()), ("limits", replica, rng.choice([1, 16])),
                ("wait", rng.choice([0.1, 1.5, 3.0])), ("fail", rng.randrange(1, 3)),
            ]  # fmt: skip
            weights = [6, 2, 4, 16, 2, 6, 6, 6, 4, 1, 1, 1, 2, 1]
            operation = rng.choices([*made, ("remove", replica)], [*weights, 1])[0]
            next_id += operation[0] == "submitted"
            operations.append(operation)
        return operations

    def check(self, case: Sequence[Operation]) -> None:
        run = _LedgerRun(next((operation[1] for operation in case if operation[0] == "limit"), 1000))
        try:
            for operation in case:
                if operation[0] != "limit":
                    getattr(run, operation[0])(*operation[1:])
                    run.compare()
        finally:
            ledger_module._fail_allocation(0)

    def exercise(self, case: Sequence[Operation]) -> None:
        self.check(case)


class _LedgerRun:
    def __init__(self, max_inflight: int) -> None:
        self.ledger, self.model = Ledger(max_inflight), LedgerModel()
        self.live: list[tuple[int, ModelReservation]] = []
        self.dead: list[int] = []
        self.ready_rows: set[int] = set()
        self.max_inflight = max_inflight
        self.now_s = 100.0

    def known(self, replica: int) -> bool:
        if replica in self.model.replicas:
            return True
        try:
            self.ledger.inflight(replica)
        except KeyError:
            return False
        expect(False, "replica", replica, "is in the ledger")
        return False

    def add(self, replica: int, rate: float, service_s: float, max_running: int, block_tokens: int) -> None:
        if replica in self.model.replicas:
            return
        try:
            self.ledger.add(
                replica, prefill_tokens_per_s=rate, service_s=service_s, max_running=max_running,
                block_tokens=block_tokens, identity=replica * 7919,
            )  # fmt: skip
        except MemoryError:
            return
        self.model.replicas[replica] = ModelReplica(rate, service_s, max_running, block_tokens)
        self.ready(replica, True)

    def remove(self, replica: int) -> None:
        if not self.known(replica):
            return
        self.ledger.remove(replica)
        self.ready_rows.discard(replica)
        gone = self.model.replicas.pop(replica).reservations
        self.dead += [handle for handle, reservation in self.live if reservation in gone]
        self.live = [(handle, reservation) for handle, reservation in self.live if reservation not in gone]

    def ready(self, replica: int, is_ready: bool) -> None:
        if self.known(replica):
            self.ledger.set_ready(replica, is_ready)
            (self.ready_rows.add if is_ready else self.ready_rows.discard)(replica)

    def reserve(self, replica: int, prompt: int, cached: int) -> None:
        if not self.known(replica):
            return
        try:
            handle = self.ledger.reserve(replica, prompt, cached)
        except MemoryError:
            return
        expect(handle not in self.dead and all(handle != other for other, _ in self.live), "handle", handle, "twice")
        self.live.append((handle, self.model.reserve(replica, prompt, cached)))

    def able(self, rows: list[int], excluded: set[int]) -> set[int]:
        return {
            row
            for row in rows
            if row in self.ready_rows
            and row not in excluded
            and len(self.model.replicas[row].reservations) < self.max_inflight
        }

    def pick(self, rows: list[int], prompt: int, cached: list[int] | None, excluded: set[int], favourite: int) -> None:
        def cost(row: int) -> float:
            return sum(self.model.terms(row, prompt, cached_of(cached, row), self.now_s))

        able = self.able(rows, excluded)
        try:
            handle = self.ledger.pick(
                array("I", rows), None if cached is None else array("I", cached), prompt, now_s=self.now_s,
                excluded=excluded, favourite=favourite,
            )  # fmt: skip
        except MemoryError:
            return
        same(handle == NOBODY, not able, "nobody is able")
        if handle == NOBODY:
            return
        winner = self.ledger.replica_of(handle)
        expect(winner in able, winner, "is not able", able)
        least = min(map(cost, able))
        expect(cost(winner) <= least * (1 + 1e-9), "picked", winner, "of", cost(winner), "the least is", least)
        self.live.append((handle, self.model.reserve(winner, prompt, cached_of(cached, winner))))

    def rendezvous(self, rows: list[int], session: int) -> None:
        able = self.able(rows, set())
        key = chunk_hash(1, session.to_bytes(8, "little"), 0)
        names = {row: chunk_hash(0, (row * 7919).to_bytes(8, "little"), 0) for row in able}
        weights = {row: fold(name ^ key, 0x9E3779B97F4A7C15) for row, name in names.items()}
        expected = max(weights, key=weights.__getitem__) if able else NOBODY
        same(self.ledger.rendezvous(array("I", rows), session), expected, "rendezvous")

    def release(self, index: int) -> None:
        if self.live:
            handle, reservation = self.live.pop(index % len(self.live))
            self.model.replicas[reservation.replica].reservations.remove(reservation)
            expect(self.ledger.release(handle), "a live handle is released")
            self.dead.append(handle)
        if self.dead:
            handle = self.dead[index % len(self.dead)]
            expect(not self.ledger.release(handle), "a dead handle is released")
            same(self.ledger.replica_of(handle), NOBODY, "replica of a dead handle")

    def submitted(self, index: int, submit_id: int) -> None:
        if not self.live:
            return
        handle, reservation = self.live[index % len(self.live)]
        if reservation.submit_id:
            return
        self.ledger.submitted(handle, submit_id)
        reservation.submit_id = submit_id
        report = self.model.replicas[reservation.replica].report
        reservation.is_counted = report is not None and submit_id <= report["last_submit"]

    def report(self, replica: int, requests: int, queued: int, used: int, total: int, last_submit: int) -> None:
        if not self.known(replica):
            return
        last = self.model.replicas[replica].report
        report = {
            "requests": requests,
            "queued_prefill_tokens": queued,
            "kv_blocks_used": used,
            "kv_blocks_total": total,
            "last_submit": max(last_submit, int(last["last_submit"]) if last else 0),
            "now_s": self.now_s,
        }
        self.ledger.report(replica, **report)  # type: ignore[arg-type]
        self.model.report(replica, dict(report))

    def forget(self, replica: int) -> None:
        if self.known(replica):
            self.ledger.forget_report(replica)
            self.model.replicas[replica].report = None
            for reservation in self.model.replicas[replica].reservations:
                reservation.is_counted = False

    def rates(self, replica: int, trust: float) -> None:
        if self.known(replica):
            row = self.model.replicas[replica]
            row.trust = trust
            row.crowd_s = trust / 100
            self.ledger.set_rates(replica, row.rate, row.service_s, trust, row.crowd_s)

    def limits(self, replica: int, block_tokens: int) -> None:
        if self.known(replica):
            row = self.model.replicas[replica]
            row.block_tokens = block_tokens
            self.ledger.set_limits(replica, row.max_running, block_tokens)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def fail(self, k: int) -> None:
        ledger_module._fail_allocation(k)

    def compare(self) -> None:
        same(len(self.ledger), len(self.live), "reservations")
        for replica, row in self.model.replicas.items():
            got = self.ledger.terms(replica, 700, 300, self.now_s)
            expected = self.model.terms(replica, 700, 300, self.now_s)
            near = all(abs(a - b) <= 1e-9 * max(1.0, abs(b)) for a, b in zip(got, expected, strict=True))
            expect(near, "terms", got, "expected", expected)
            same(self.ledger.inflight(replica), len(row.reservations), "in flight")
            same(self.ledger.uncounted(replica), sum(not one.is_counted for one in row.reservations), "uncounted")
            same(self.ledger.predict(replica, 700, 300), self.model.believed(replica, 700, 300), "prediction")


def cached_of(cached: list[int] | None, row: int) -> int:
    return cached[row] if cached is not None and row < len(cached) else 0

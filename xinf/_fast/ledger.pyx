# cython: autotestdict=False
"""The in-flight ledger of one gateway process and the picker: what each replica has to do, and who is cheapest.

    rows[replica]        the last load report, rates, and sums over the reservations that the report does not count yet
    reservations[slot]   one per request in flight: replica, uncached tokens, KV blocks, submit id; linked per replica

    cost in seconds = (queued + uncounted tokens) / rate                    others' prefill before ours
                    + (prompt - cached) / rate                              our own prefill
                    + requests there x service / max_running                decode pressure: a share of a slot each
                    + (1 + missing / used blocks) x service, if any miss    KV-full barrier: wait until others end

Queued, requests there and used blocks are the report's numbers plus the reservations newer than it (`last_submit` names the
last submit that it counts), so nothing counts twice. A report older than STALE_S counts for nothing: then all of our own
reservations do. xinf/router/cost.py documents where the rates come from.

Invariants: a reservation is released exactly once (handles carry a generation); `uncounted_*` are the sums over the row's
reservations that are not counted; a removed row takes its reservations with it. All sums are integers, so that equal
replicas cost exactly the same and ties are ties.

    pick  O(candidates)     reserve, submitted, release  O(1)     report  O(reservations of the row not counted yet)
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.chunkhash cimport chunk_hash

# What `pick` gives when no candidate is ready below its limit. Handles are never negative.
NOBODY = -1
# A load report that has not been renewed for so long says nothing any more; engines report once a second at least.
STALE_S = 2.0

cdef enum:
    NONE = 0xFFFFFFFF  # end of a list of reservations

cdef struct Row:
    double prefill_tokens_per_s
    double service_s
    double trust  # share of the predicted cached tokens that comes true, 0 to 1
    double report_s  # when the last report came
    uint64_t identity  # for rendezvous hashing
    uint64_t queued_prefill_tokens
    uint64_t kv_blocks_used
    uint64_t kv_blocks_total
    uint64_t last_submit
    uint64_t inflight_tokens
    uint64_t inflight_blocks
    uint64_t uncounted_tokens
    uint64_t uncounted_blocks
    uint32_t requests  # running and waiting in the report
    uint32_t inflight
    uint32_t uncounted
    uint32_t max_running
    uint32_t block_tokens
    uint32_t first  # its newest reservation
    uint8_t is_used
    uint8_t is_ready
    uint8_t has_report

cdef struct Reservation:
    uint64_t submit_id  # 0: not submitted yet
    uint64_t tokens
    uint64_t blocks
    uint32_t row
    uint32_t next
    uint32_t previous
    uint32_t generation  # even: free
    uint8_t is_counted


@cython.final
@cython.auto_pickle(False)
cdef class Ledger:
    """Reservations and costs of the replicas, which are small integers chosen by the caller."""

    cdef Row *rows
    cdef uint32_t n_rows
    cdef Reservation *reservations
    cdef uint32_t n_reservations
    cdef uint32_t free_reservation
    cdef uint32_t turn
    cdef uint32_t total
    cdef readonly uint32_t max_inflight

    def __cinit__(self, max_inflight: int, turn: int = 0):
        """`turn`: where the rotation of ties begins; random per process, so that several do not move in step."""
        if max_inflight < 1:
            raise ValueError(f"max_inflight is {max_inflight}, must be at least 1")
        self.max_inflight = min(max_inflight, 1 << 30)
        self.turn = turn & 0x7FFFFFFF
        self.free_reservation = NONE

    def __dealloc__(self):
        free(self.rows)
        free(self.reservations)

    cdef Row *row(self, replica) except NULL:
        if not 0 <= replica < self.n_rows or not self.rows[<uint32_t>replica].is_used:
            raise KeyError(f"replica {replica} is not in the ledger")
        return &self.rows[<uint32_t>replica]

    # ---- replicas -------------------------------------------------------------------------------------------------

    def add(
        self, replica: int, *, prefill_tokens_per_s: float, service_s: float, max_running: int, block_tokens: int,
        identity: int,
    ) -> None:
        """Enter a replica, not ready yet and idle. `identity`: a hash of its name, for `rendezvous`.

        Raises: ValueError if it is there, MemoryError.
        """
        if not 0 <= replica < 1 << 20:
            raise ValueError(f"replica is {replica}, must be 0 to {(1 << 20) - 1}")
        if max_running < 1 or block_tokens < 1:
            raise ValueError(f"max_running is {max_running}, block_tokens is {block_tokens}, must be at least 1")
        cdef uint32_t n = self.n_rows
        cdef Row *grown
        if replica >= n:
            n = max(8, n * 2, <uint32_t>replica + 1)
            grown = <Row *>xinf_realloc(self.rows, n * sizeof(Row))
            if grown == NULL:
                raise MemoryError("out of memory for the ledger's replicas")
            memset(&grown[self.n_rows], 0, (n - self.n_rows) * sizeof(Row))
            self.rows = grown
            self.n_rows = n
        cdef Row *row = &self.rows[<uint32_t>replica]
        if row.is_used:
            raise ValueError(f"replica {replica} is in the ledger already")
        memset(row, 0, sizeof(Row))
        row.first = NONE
        row.max_running = min(max_running, 1 << 30)
        row.block_tokens = min(block_tokens, 1 << 30)
        row.is_used = 1
        row.identity = <uint64_t>(identity & 0xFFFFFFFFFFFFFFFF)
        self.set_rates(replica, prefill_tokens_per_s, service_s, 1.0)

    def remove(self, replica: int) -> None:
        """Take a replica out with all of its reservations, whose handles mean nothing from then on."""
        cdef Row *row = self.row(replica)
        while row.first != NONE:
            self.let_go(row.first)
        row.is_used = 0

    def set_ready(self, replica: int, is_ready: bool) -> None:
        """Let a replica be picked, or not."""
        self.row(replica).is_ready = bool(is_ready)

    def set_limits(self, replica: int, max_running: int, block_tokens: int) -> None:
        """Change what the engine turned out to be."""
        if max_running < 1 or block_tokens < 1:
            raise ValueError(f"max_running is {max_running}, block_tokens is {block_tokens}, must be at least 1")
        cdef Row *row = self.row(replica)
        row.max_running = min(max_running, 1 << 30)
        row.block_tokens = min(block_tokens, 1 << 30)

    def set_rates(self, replica: int, prefill_tokens_per_s: float, service_s: float, trust: float) -> None:
        """Change what was measured. `service_s`: how long a request stays on average; `trust`: see Row."""
        if not 0 < prefill_tokens_per_s < INFINITY or not 0 < service_s < INFINITY or not 0 <= trust <= 1:
            raise ValueError(f"rates are out of range: {prefill_tokens_per_s} tokens/s, {service_s} s, trust {trust}")
        cdef Row *row = self.row(replica)
        row.prefill_tokens_per_s = prefill_tokens_per_s
        row.service_s = service_s
        row.trust = trust

    def report(
        self, replica: int, *, requests: int, queued_prefill_tokens: int, kv_blocks_used: int, kv_blocks_total: int,
        last_submit: int, now_s: float,
    ) -> None:
        """Take in what an engine says of itself. `last_submit`: the last submit id that the numbers count."""
        cdef Row *row = self.row(replica)
        cdef uint32_t at
        cdef Reservation *reservation
        row.requests = min(requests, 1 << 30)
        row.queued_prefill_tokens = min(queued_prefill_tokens, 1 << 50)
        row.kv_blocks_used = min(kv_blocks_used, 1 << 50)
        row.kv_blocks_total = min(kv_blocks_total, 1 << 50)
        row.last_submit = last_submit
        row.report_s = now_s
        row.has_report = 1
        at = row.first
        while at != NONE:
            reservation = &self.reservations[at]
            if not reservation.is_counted and 0 < reservation.submit_id <= row.last_submit:
                self.count(row, reservation)
            at = reservation.next

    def forget_report(self, replica: int) -> None:
        """The Link is down: the last report and its submit ids mean nothing any more."""
        cdef Row *row = self.row(replica)
        cdef uint32_t at = row.first
        row.has_report = 0
        row.last_submit = 0
        row.uncounted = row.inflight
        row.uncounted_tokens = row.inflight_tokens
        row.uncounted_blocks = row.inflight_blocks
        while at != NONE:
            self.reservations[at].is_counted = 0
            at = self.reservations[at].next

    cdef void count(self, Row *row, Reservation *reservation) noexcept nogil:
        reservation.is_counted = 1
        row.uncounted -= 1
        row.uncounted_tokens -= reservation.tokens
        row.uncounted_blocks -= reservation.blocks

    # ---- cost and choice ------------------------------------------------------------------------------------------

    cdef void terms_of(self, Row *row, uint64_t prompt, uint64_t cached, double now_s, double *out) noexcept nogil:
        """The four terms of the cost, in the order of the picture above."""
        cdef bint is_fresh = row.has_report and now_s - row.report_s <= STALE_SECONDS
        cdef uint64_t queued, requests, used, needed, room
        if is_fresh:
            queued = row.queued_prefill_tokens + row.uncounted_tokens
            requests = row.requests + row.uncounted
            used = row.kv_blocks_used + row.uncounted_blocks
        else:
            queued = row.inflight_tokens
            requests = row.inflight
            used = row.inflight_blocks
        out[0] = queued / row.prefill_tokens_per_s
        cached = believed_tokens(row, prompt, cached)
        out[1] = uncached_tokens(prompt, cached) / row.prefill_tokens_per_s
        out[2] = requests * row.service_s / row.max_running
        out[3] = 0.0
        if row.has_report and row.kv_blocks_total:
            needed = blocks_for(uncached_tokens(prompt, cached), row.block_tokens)
            room = row.kv_blocks_total - used if used < row.kv_blocks_total else 0
            # A replica with nothing to do can evict whatever it holds: there is nobody to wait for.
            if needed > room and requests:
                out[3] = row.service_s * (1.0 + <double>(needed - room) / (used if used else 1))

    def pick(
        self, candidates, cached, prompt_tokens: int, *, now_s: float, excluded=(), favourite: int = NOBODY,
    ) -> int:
        """Reserve the cheapest candidate that is ready and below its limit, and give the handle, or NOBODY.

        `candidates`: (n,) uint32 replicas. `cached`: uint32 tokens of the prompt said to be held, by replica; None for
        none. Exact ties go to `favourite` if it is among them, else round by turns. Raises: MemoryError.
        """
        cdef Py_buffer rows
        cdef Py_buffer hits
        cdef bint has_hits = cached is not None
        cdef uint64_t prompt = prompt_tokens
        cdef int wanted = favourite
        cdef double now = now_s
        cdef uint32_t best
        PyObject_GetBuffer(candidates, &rows, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            if rows.itemsize != 4:
                raise ValueError(f"candidates must be items of 4 bytes, not {rows.itemsize}")
            if has_hits:
                PyObject_GetBuffer(cached, &hits, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
            else:
                memset(&hits, 0, sizeof(hits))
            try:
                if has_hits and hits.itemsize != 4:
                    raise ValueError(f"cached must be items of 4 bytes, not {hits.itemsize}")
                best = self.cheapest(
                    <uint32_t *>rows.buf, rows.len // 4, <uint32_t *>hits.buf if has_hits else NULL, hits.len // 4,
                    prompt, now, excluded, wanted,
                )
                if best == NONE:
                    return NOBODY
                return self.reserve(best, prompt, (<uint32_t *>hits.buf)[best] if has_hits and best < hits.len // 4 else 0)
            finally:
                if has_hits:
                    PyBuffer_Release(&hits)
        finally:
            PyBuffer_Release(&rows)

    cdef uint32_t cheapest(
        self, const uint32_t *candidates, Py_ssize_t n, const uint32_t *cached, Py_ssize_t n_cached, uint64_t prompt,
        double now_s, excluded, int favourite,
    ):
        cdef double best_s = INFINITY, cost_s
        cdef double[4] terms
        cdef uint32_t best = NONE, replica
        cdef Py_ssize_t i, start
        cdef Row *row
        if n == 0:
            return NONE
        # Whoever comes first from the start wins a tie; the start moves on by one per pick.
        start = self.turn % n
        self.turn = (self.turn + 1) & 0x7FFFFFFF
        for i in range(n):
            replica = candidates[start + i if start + i < n else start + i - n]
            if replica >= self.n_rows:
                continue
            row = &self.rows[replica]
            if not row.is_used or not row.is_ready or row.inflight >= self.max_inflight:
                continue
            if excluded and replica in excluded:
                continue
            self.terms_of(row, prompt, cached[replica] if cached != NULL and replica < n_cached else 0, now_s, terms)
            cost_s = terms[0] + terms[1] + terms[2] + terms[3]
            if cost_s < best_s or (cost_s == best_s and <int>replica == favourite):
                best_s = cost_s
                best = replica
        return best

    def terms(self, replica: int, prompt_tokens: int, cached_tokens: int, now_s: float) -> tuple[float, float, float, float]:
        """Give the four terms of the cost of one replica, in seconds: queued, prefill, decode, full."""
        cdef double[4] out
        self.terms_of(self.row(replica), prompt_tokens, cached_tokens, now_s, out)
        return out[0], out[1], out[2], out[3]

    def predict(self, replica: int, prompt_tokens: int, cached_tokens: int) -> int:
        """Give the cached tokens that the engine will find of those said to be there: full blocks, times the trust."""
        return believed_tokens(self.row(replica), prompt_tokens, cached_tokens)

    def rendezvous(self, candidates, session: int, excluded=()) -> int:
        """Give the open candidate that `session` (a hash) weighs most, or NOBODY. O(candidates).

        When a replica comes or goes, only the sessions that it wins or held move.
        """
        cdef Py_buffer rows
        cdef uint64_t key = <uint64_t>(session & 0xFFFFFFFFFFFFFFFF), weight, best_weight = 0
        cdef uint32_t replica
        cdef Row *row
        cdef Py_ssize_t i
        best = NOBODY
        PyObject_GetBuffer(candidates, &rows, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            if rows.itemsize != 4:
                raise ValueError(f"candidates must be items of 4 bytes, not {rows.itemsize}")
            for i in range(rows.len // 4):
                replica = (<uint32_t *>rows.buf)[i]
                if replica >= self.n_rows:
                    continue
                row = &self.rows[replica]
                if not row.is_used or not row.is_ready or row.inflight >= self.max_inflight:
                    continue
                weight = chunk_hash(row.identity, <const uint8_t *>&key, sizeof(key), 0)
                if (best == NOBODY or weight > best_weight) and replica not in excluded:
                    best = replica
                    best_weight = weight
        finally:
            PyBuffer_Release(&rows)
        return best

    def is_open(self, replica: int) -> bool:
        """Whether a replica is ready and below its limit."""
        cdef Row *row = self.row(replica)
        return bool(row.is_ready and row.inflight < self.max_inflight)

    # ---- reservations ---------------------------------------------------------------------------------------------

    def reserve(self, replica: int, prompt_tokens: int, cached_tokens: int) -> int:
        """Count a request as on its way to `replica`, and give its handle. Raises: MemoryError."""
        cdef Row *row = self.row(replica)
        cdef uint32_t at = self.free_reservation
        cdef Reservation *reservation
        if at == NONE:
            self.grow_reservations()
            at = self.free_reservation
        reservation = &self.reservations[at]
        self.free_reservation = reservation.next
        reservation.generation += 1
        reservation.submit_id = 0
        reservation.is_counted = 0
        reservation.row = <uint32_t>replica
        reservation.tokens = uncached_tokens(prompt_tokens, believed_tokens(row, prompt_tokens, cached_tokens))
        reservation.blocks = blocks_for(reservation.tokens, row.block_tokens)
        reservation.previous = NONE
        reservation.next = row.first
        if row.first != NONE:
            self.reservations[row.first].previous = at
        row.first = at
        row.inflight += 1
        row.inflight_tokens += reservation.tokens
        row.inflight_blocks += reservation.blocks
        row.uncounted += 1
        row.uncounted_tokens += reservation.tokens
        row.uncounted_blocks += reservation.blocks
        self.total += 1
        return <uint64_t>reservation.generation << 31 | at

    cdef int grow_reservations(self) except -1:
        cdef uint32_t n = self.n_reservations * 2 if self.n_reservations else 64
        cdef uint32_t i
        cdef Reservation *grown = <Reservation *>xinf_realloc(self.reservations, n * sizeof(Reservation))
        if grown == NULL:
            raise MemoryError(f"out of memory for {n} reservations")
        memset(&grown[self.n_reservations], 0, (n - self.n_reservations) * sizeof(Reservation))
        self.reservations = grown
        for i in range(n, self.n_reservations, -1):
            grown[i - 1].next = self.free_reservation
            self.free_reservation = i - 1
        self.n_reservations = n
        return 0

    cdef uint32_t find(self, int64_t handle) noexcept nogil:
        """The slot of a live handle, or NONE."""
        cdef uint64_t value = <uint64_t>handle
        if handle < 0:
            return NONE
        cdef uint32_t at = <uint32_t>(value & 0x7FFFFFFF)
        if at >= self.n_reservations:
            return NONE
        if self.reservations[at].generation & 1 == 0 or self.reservations[at].generation != <uint32_t>(value >> 31):
            return NONE
        return at

    def submitted(self, handle: int, submit_id: int) -> None:
        """Say under which id a request went out, so that reports can count it. A dead handle is ignored."""
        cdef uint32_t at = self.find(handle)
        cdef Row *row
        if at == NONE:
            return
        row = &self.rows[self.reservations[at].row]
        self.reservations[at].submit_id = submit_id
        if row.has_report and not self.reservations[at].is_counted and 0 < self.reservations[at].submit_id <= row.last_submit:
            self.count(row, &self.reservations[at])

    def release(self, handle: int) -> bool:
        """End a reservation. False if it was ended before, or its replica was removed."""
        cdef uint32_t at = self.find(handle)
        if at == NONE:
            return False
        self.let_go(at)
        return True

    cdef void let_go(self, uint32_t at) noexcept nogil:
        cdef Reservation *reservation = &self.reservations[at]
        cdef Row *row = &self.rows[reservation.row]
        if not reservation.is_counted:
            self.count(row, reservation)
        row.inflight -= 1
        row.inflight_tokens -= reservation.tokens
        row.inflight_blocks -= reservation.blocks
        if reservation.previous != NONE:
            self.reservations[reservation.previous].next = reservation.next
        else:
            row.first = reservation.next
        if reservation.next != NONE:
            self.reservations[reservation.next].previous = reservation.previous
        reservation.generation += 1
        reservation.next = self.free_reservation
        self.free_reservation = at
        self.total -= 1

    def replica_of(self, handle: int) -> int:
        """The replica of a live handle, or NOBODY."""
        cdef uint32_t at = self.find(handle)
        return NOBODY if at == NONE else self.reservations[at].row

    def inflight(self, replica: int) -> int:
        """Requests of ours on a replica."""
        return self.row(replica).inflight

    def queued_tokens(self, replica: int, now_s: float) -> int:
        """Prompt tokens before a new request on a replica, as the cost counts them."""
        cdef Row *row = self.row(replica)
        if row.has_report and now_s - row.report_s <= STALE_SECONDS:
            return row.queued_prefill_tokens + row.uncounted_tokens
        return row.inflight_tokens

    def uncounted(self, replica: int) -> int:
        """Requests of ours that the last report does not count."""
        return self.row(replica).uncounted

    def __len__(self) -> int:
        """Reservations in all."""
        return self.total


cdef double STALE_SECONDS = STALE_S


cdef inline uint64_t uncached_tokens(uint64_t prompt, uint64_t cached) noexcept nogil:
    """An engine computes one token at least, or there would be nothing to sample from."""
    return prompt - cached if prompt > cached else 1


cdef inline uint64_t believed_tokens(Row *row, uint64_t prompt, uint64_t cached) noexcept nogil:
    """Engines find whole blocks only, and never the last token's. Source: vLLM 0.32, v1/core/kv_cache_manager.py."""
    cdef uint64_t most = prompt - 1 if prompt else 0
    if cached > most:
        cached = most
    return <uint64_t>(cached * row.trust) // row.block_tokens * row.block_tokens


cdef inline uint64_t blocks_for(uint64_t tokens, uint32_t block_tokens) noexcept nogil:
    return (tokens + block_tokens - 1) // block_tokens


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

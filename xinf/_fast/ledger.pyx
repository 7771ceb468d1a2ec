# cython: autotestdict=False
"""The in-flight ledger of one gateway process and the picker: what each replica has to do, and who is cheapest.

    rows[replica]        the last load report, rates, and sums over the reservations that the report does not count yet
    lanes[replica]       what a pick reads, in one cache line: worked out from the row whenever that changes
    reservations[slot]   one per request in flight: replica, uncached tokens, KV blocks, submit id; linked per replica

    cost in seconds = (queued + uncounted tokens) / rate                    others' prefill before ours
                    + own = (prompt - cached) / rate                        our own prefill
                    + max(0, requests + 1 - slots) x service / slots        until a slot is free
                    + requests x crowd                                      how much slower others make our answer
                    + own x (lost + running / 16 + waiting x 4)            what our prefill costs others, and later
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
from libc.math cimport INFINITY
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_aligned, xinf_malloc, xinf_realloc
from xinf._fast.buffer cimport Buffer
from xinf._fast.chunkhash cimport chunk_hash, fold
from xinf._fast.losses cimport LEAST_WEIGHT
from xinf._fast.rates cimport set_prior

# What `pick` gives when no candidate is ready below its limit. Handles are never negative.
NOBODY = -1
# A load report that has not been renewed for so long says nothing any more; engines report once a second at least.
STALE_S = 2.0
cdef double STALE_SECONDS = STALE_S
# What weighs how much beside a second until our own first token: xinf/router/cost.py says why, benchmarks/NOTES.md how they
# were found.
cdef double WAITING_WEIGHT = 4.0
cdef double RUNNING_WEIGHT = 1.0 / 16
cdef double CROWD_WEIGHT = 0.5


@cython.final
@cython.auto_pickle(False)
cdef class Ledger:
    """Reservations and costs of the replicas, which are small integers chosen by the caller."""

    def __cinit__(self, max_inflight: int, turn: int = 0):
        """`turn`: where the rotation of ties begins; random per process, so that several do not move in step."""
        if max_inflight < 1:
            raise ValueError(f"max_inflight is {max_inflight}, must be at least 1")
        self.max_inflight = min(max_inflight, 1 << 30)
        self.turn = turn & 0x7FFFFFFF
        self.free_reservation = NONE

    def __dealloc__(self):
        free(self.rows)
        free(self.lanes)
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
        self.check_rates(prefill_tokens_per_s, service_s, 1.0)
        if replica >= self.n_rows:
            self.grow_rows(replica + 1)
        cdef Row *row = &self.rows[<uint32_t>replica]
        cdef uint64_t name_hash = <uint64_t>(identity & 0xFFFFFFFFFFFFFFFF)
        if row.is_used:
            raise ValueError(f"replica {replica} is in the ledger already")
        memset(row, 0, sizeof(Row))
        row.first = NONE
        row.max_running = min(max_running, 1 << 30)
        row.shown = 1 << 30
        row.lost_weight = LEAST_WEIGHT
        row.block_tokens = min(block_tokens, 1 << 30)
        row.is_used = 1
        set_prior(&row.rates, prefill_tokens_per_s, service_s)
        self.lanes[<uint32_t>replica].identity = chunk_hash(0, <const uint8_t *>&name_hash, sizeof(name_hash), 0)
        self.refresh(replica)

    cdef int grow_rows(self, uint32_t n_needed) except -1:
        cdef uint32_t n = max(8, self.n_rows * 2, n_needed), i
        cdef Row *grown = <Row *>xinf_realloc(self.rows, n * sizeof(Row))
        cdef Lane *lanes
        if grown != NULL:
            self.rows = grown
            lanes = <Lane *>xinf_aligned(n * sizeof(Lane))
        if grown == NULL or lanes == NULL:
            raise MemoryError("out of memory for the ledger's replicas")
        memset(&grown[self.n_rows], 0, (n - self.n_rows) * sizeof(Row))
        if self.n_rows:
            memcpy(lanes, self.lanes, self.n_rows * sizeof(Lane))
        free(self.lanes)
        self.lanes = lanes
        i = self.n_rows
        self.n_rows = n
        for i in range(i, n):
            self.refresh(i)
        return 0

    def remove(self, replica: int) -> None:
        """Take a replica out with all of its reservations, whose handles mean nothing from then on."""
        cdef Row *row = self.row(replica)
        while row.first != NONE:
            self.let_go(row.first)
        row.is_used = 0
        self.refresh(replica)

    def set_ready(self, replica: int, is_ready: bool) -> None:
        """Let a replica be picked, or not."""
        self.row(replica).is_ready = bool(is_ready)
        self.refresh(replica)

    def set_limits(self, replica: int, max_running: int, block_tokens: int) -> None:
        """Change what the engine turned out to be."""
        if max_running < 1 or block_tokens < 1:
            raise ValueError(f"max_running is {max_running}, block_tokens is {block_tokens}, must be at least 1")
        cdef Row *row = self.row(replica)
        row.max_running = min(max_running, 1 << 30)
        row.block_tokens = min(block_tokens, 1 << 30)
        self.refresh(replica)

    def set_rates(
        self, replica: int, prefill_tokens_per_s: float, service_s: float, trust: float, crowd_s: float = 0.0
    ) -> None:
        """Change what was measured: see Rates."""
        cdef Row *row = self.row(replica)
        self.check_rates(prefill_tokens_per_s, service_s, trust)
        if not 0 <= crowd_s < INFINITY:
            raise ValueError(f"crowd_s is {crowd_s}, must be 0 or more")
        row.rates.crowd_s = crowd_s
        row.rates.prefill_tokens_per_s = prefill_tokens_per_s
        row.rates.service_s = service_s
        row.rates.trust = trust
        self.refresh(replica)

    cdef int check_rates(self, double prefill_tokens_per_s, double service_s, double trust) except -1:
        if not 0 < prefill_tokens_per_s < INFINITY or not 0 < service_s < INFINITY or not 0 <= trust <= 1:
            raise ValueError(f"rates are out of range: {prefill_tokens_per_s} tokens/s, {service_s} s, trust {trust}")
        return 0

    def report(
        self, replica: int, *, requests: int, waiting: int = 0, queued_prefill_tokens: int, kv_blocks_used: int,
        kv_blocks_total: int, last_submit: int, now_s: float,
    ) -> None:
        """Take in what an engine says of itself. `waiting`: of the requests, those without a slot or blocks.

        `last_submit`: the last submit id that the numbers count.
        """
        cdef Row *row = self.row(replica)
        cdef uint32_t at
        cdef Reservation *reservation
        row.requests = min(requests, 1 << 30)
        row.waiting = min(waiting, row.requests)
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
        self.refresh(replica)

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
        self.refresh(replica)

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
        out[0] = queued / row.rates.prefill_tokens_per_s
        cached = believed_tokens(row, prompt, cached)
        out[1] = uncached_tokens(prompt, cached) / row.rates.prefill_tokens_per_s
        out[2] = decode_s(row, requests) + out[1] * burden(row, requests, row.waiting if is_fresh else 0)
        out[3] = 0.0
        if row.has_report and row.kv_blocks_total:
            needed = blocks_for(uncached_tokens(prompt, cached), row.block_tokens)
            room = row.kv_blocks_total - used if used < row.kv_blocks_total else 0
            # A replica with nothing to do can evict whatever it holds: there is nobody to wait for.
            if needed > room and requests:
                out[3] = row.rates.service_s * (1.0 + <double>(needed - room) / (used if used else 1))

    cdef void refresh(self, uint32_t replica) noexcept nogil:
        """Work out a replica's lane again; whatever changes its row calls this."""
        cdef Row *row = &self.rows[replica]
        cdef Lane *lane = &self.lanes[replica]
        cdef double s_per_token
        cdef uint64_t requests = row.requests + row.uncounted
        lane.room_tokens[0] = lane.room_tokens[1] = UINT64_MAX
        if not row.is_used or not row.is_ready or row.inflight >= self.max_inflight:
            lane.base_s[0] = lane.base_s[1] = INFINITY
            return
        s_per_token = 1 / row.rates.prefill_tokens_per_s
        lane.s_per_token[0] = s_per_token * (1 + burden(row, requests, row.waiting))
        lane.s_per_token[1] = s_per_token * (1 + burden(row, row.inflight, 0))
        lane.fresh_until_s = row.report_s + STALE_SECONDS if row.has_report else -INFINITY
        lane.base_s[0] = (row.queued_prefill_tokens + row.uncounted_tokens) * s_per_token + decode_s(row, requests)
        lane.base_s[1] = row.inflight_tokens * s_per_token + decode_s(row, row.inflight)
        if row.has_report and row.kv_blocks_total:
            # A replica with nothing to do can evict whatever it holds: there is nobody to wait for.
            if requests:
                lane.room_tokens[0] = room_for(row, row.kv_blocks_used + row.uncounted_blocks)
            if row.inflight:
                lane.room_tokens[1] = room_for(row, row.inflight_blocks)

    cdef double cost_of(self, uint32_t replica, uint64_t prompt, uint64_t cached, double now_s) noexcept nogil:
        """The sum of the terms, INFINITY for a replica that is not open."""
        cdef Lane *lane = &self.lanes[replica]
        cdef double[4] terms
        cdef bint is_stale = now_s > lane.fresh_until_s
        cdef double cost_s = lane.base_s[is_stale]
        cdef uint64_t own
        if cost_s == INFINITY:  # also of a row that nobody ever was in, whose blocks have no size to divide by
            return INFINITY
        own = uncached_tokens(prompt, believed_tokens(&self.rows[replica], prompt, cached) if cached else 0)
        cost_s += own * lane.s_per_token[is_stale]
        if own > lane.room_tokens[is_stale]:
            self.terms_of(&self.rows[replica], prompt, cached, now_s, terms)
            cost_s += terms[3]
        return cost_s

    cdef Pick cheapest(
        self, const uint32_t *candidates, size_t n, const uint32_t *cached, size_t n_cached, uint64_t prompt, double now_s,
        const Excluded *excluded,
    ) noexcept nogil:
        """The open candidate that costs least. `cached`: by replica; NULL for nothing. Ties go round by turns."""
        cdef Pick pick
        cdef size_t i, start
        cdef uint32_t replica
        cdef double cost_s
        pick.replica = NONE
        pick.n_ties = 0
        pick.cost_s = INFINITY
        if n == 0:
            return pick
        # Whoever comes first from the start wins a tie; the start moves on by one per pick.
        start = self.turn % n
        self.turn = (self.turn + 1) & 0x7FFFFFFF
        for i in range(start, start + n):
            replica = candidates[i if i < n else i - n]
            if replica >= self.n_rows:
                continue
            cost_s = self.cost_of(replica, prompt, cached[replica] if replica < n_cached else 0, now_s)
            if cost_s > pick.cost_s or cost_s == INFINITY:
                continue
            if excluded.n and is_excluded(excluded, replica):
                continue
            if cost_s < pick.cost_s:
                pick.replica = replica
                pick.cost_s = cost_s
                pick.n_ties = 0
            pick.n_ties += 1
        return pick

    def pick(
        self, candidates, cached, prompt_tokens: int, *, now_s: float, excluded=(), favourite: int = NOBODY,
    ) -> int:
        """Reserve the cheapest candidate that is ready and below its limit, and give the handle, or NOBODY.

        `candidates`: (n,) uint32 replicas. `cached`: uint32 tokens of the prompt said to be held, by replica; None for
        none. Exact ties go to `favourite` if it is among them, else round by turns. Raises: MemoryError.
        """
        cdef Buffer rows = Buffer(candidates, 4, False, "candidates")
        cdef Buffer hits = None if cached is None else Buffer(cached, 4, False, "cached")
        cdef const uint32_t *replicas = <const uint32_t *>rows.items
        cdef const uint32_t *held = NULL if hits is None else <const uint32_t *>hits.items
        cdef size_t n_held = 0 if hits is None else hits.n
        cdef Excluded out
        cdef Pick pick
        cdef uint64_t prompt = prompt_tokens
        cdef size_t i
        cdef uint32_t *banned = self.banned(excluded, &out)
        try:
            pick = self.cheapest(replicas, rows.n, held, n_held, prompt, now_s, &out)
            if pick.n_ties > 1 and 0 <= favourite < self.n_rows and not is_excluded(&out, favourite):
                for i in range(rows.n):
                    if replicas[i] == favourite and pick.cost_s == self.cost_of(
                        favourite, prompt, held[<size_t>favourite] if favourite < n_held else 0, now_s
                    ):
                        pick.replica = favourite
        finally:
            free(banned)
        if pick.replica == NONE:
            return NOBODY
        return self.reserve(pick.replica, prompt, held[pick.replica] if pick.replica < n_held else 0)

    cdef uint32_t *banned(self, excluded, Excluded *out) except? NULL:
        """The replicas to leave out; the caller frees them."""
        cdef uint32_t *rows
        out.rows = NULL
        out.n = 0
        if not excluded:
            return NULL
        rows = <uint32_t *>xinf_malloc(self.n_rows * sizeof(uint32_t))
        if rows == NULL:
            raise MemoryError("out of memory for the replicas to leave out")
        for replica in range(self.n_rows):
            if replica in excluded:
                rows[out.n] = replica
                out.n += 1
        out.rows = rows
        return rows

    def terms(self, replica: int, prompt_tokens: int, cached_tokens: int, now_s: float) -> tuple[float, float, float, float]:
        """Give the four terms of the cost of one replica, in seconds: queued, prefill, decode, full."""
        cdef double[4] out
        self.terms_of(self.row(replica), prompt_tokens, cached_tokens, now_s, out)
        return out[0], out[1], out[2], out[3]

    def predict(self, replica: int, prompt_tokens: int, cached_tokens: int) -> int:
        """Give the cached tokens that the engine will find of those said to be there: full blocks, times the trust."""
        return believed_tokens(self.row(replica), prompt_tokens, cached_tokens)

    cdef uint64_t believed(self, uint32_t replica, uint64_t prompt, uint64_t cached) noexcept nogil:
        return believed_tokens(&self.rows[replica], prompt, cached)

    def rendezvous(self, candidates, session: int, excluded=()) -> int:
        """Give the open candidate that `session` (a hash) weighs most, or NOBODY. O(candidates).

        When a replica comes or goes, only the sessions that it wins or held move.
        """
        cdef Buffer rows = Buffer(candidates, 4, False, "candidates")
        cdef Excluded out
        cdef uint32_t *banned = self.banned(excluded, &out)
        cdef uint32_t best
        try:
            best = self.heaviest(<const uint32_t *>rows.items, rows.n, <uint64_t>(session & 0xFFFFFFFFFFFFFFFF), &out)
        finally:
            free(banned)
        return NOBODY if best == NONE else best

    cdef uint32_t heaviest(
        self, const uint32_t *candidates, size_t n, uint64_t session, const Excluded *excluded,
    ) noexcept nogil:
        """See rendezvous. NONE: nobody is open."""
        cdef uint64_t weight, best_weight = 0
        cdef uint32_t replica, best = NONE
        cdef size_t i
        cdef uint64_t key = chunk_hash(1, <const uint8_t *>&session, sizeof(session), 0)
        for i in range(n):
            replica = candidates[i]
            if replica >= self.n_rows or self.lanes[replica].base_s[0] == INFINITY:
                continue
            # One multiplication: both sides are hashes already.
            weight = fold(self.lanes[replica].identity ^ key, <uint64_t>0x9E3779B97F4A7C15)
            if (best == NONE or weight > best_weight) and not is_excluded(excluded, replica):
                best = replica
                best_weight = weight
        return best

    def is_open(self, replica: int) -> bool:
        """Whether a replica is ready and below its limit."""
        self.row(replica)
        return bool(self.opens(replica))

    cdef bint opens(self, uint32_t replica) noexcept nogil:
        return replica < self.n_rows and self.lanes[replica].base_s[0] != INFINITY

    # ---- reservations ---------------------------------------------------------------------------------------------

    def reserve(self, replica: int, prompt_tokens: int, cached_tokens: int) -> int:
        """Count a request as on its way to `replica`, and give its handle. Raises: MemoryError."""
        self.row(replica)
        cdef int64_t handle = self.take(replica, prompt_tokens, cached_tokens)
        if handle < 0:
            raise MemoryError(f"out of memory for more than {self.n_reservations} reservations")
        return handle

    cdef int64_t take(self, uint32_t replica, uint64_t prompt, uint64_t cached) noexcept nogil:
        """See reserve. -1: out of memory."""
        cdef Row *row = &self.rows[replica]
        cdef uint32_t at
        cdef Reservation *reservation
        if self.free_reservation == NONE and not self.grow_reservations():
            return -1
        at = self.free_reservation
        reservation = &self.reservations[at]
        self.free_reservation = reservation.next
        reservation.generation += 1
        reservation.submit_id = 0
        reservation.is_counted = 0
        reservation.row = replica
        reservation.tokens = uncached_tokens(prompt, believed_tokens(row, prompt, cached))
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
        self.refresh(replica)
        return <int64_t>(<uint64_t>reservation.generation << 31 | at)

    cdef bint grow_reservations(self) noexcept nogil:
        cdef uint32_t n = self.n_reservations * 2 if self.n_reservations else 64
        cdef uint32_t i
        cdef Reservation *grown = <Reservation *>xinf_realloc(self.reservations, n * sizeof(Reservation))
        if grown == NULL:
            return 0
        memset(&grown[self.n_reservations], 0, (n - self.n_reservations) * sizeof(Reservation))
        self.reservations = grown
        for i in range(n, self.n_reservations, -1):
            grown[i - 1].next = self.free_reservation
            self.free_reservation = i - 1
        self.n_reservations = n
        return 1

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
        self.submit(handle, submit_id)

    cdef void submit(self, int64_t handle, uint64_t submit_id) noexcept nogil:
        cdef uint32_t at = self.find(handle)
        cdef Row *row
        if at == NONE:
            return
        row = &self.rows[self.reservations[at].row]
        self.reservations[at].submit_id = submit_id
        if row.has_report and not self.reservations[at].is_counted and 0 < submit_id <= row.last_submit:
            self.count(row, &self.reservations[at])
            self.refresh(self.reservations[at].row)

    def release(self, handle: int) -> bool:
        """End a reservation. False if it was ended before, or its replica was removed."""
        return bool(self.give_back(handle))

    cdef bint give_back(self, int64_t handle) noexcept nogil:
        cdef uint32_t at = self.find(handle)
        if at == NONE:
            return 0
        self.let_go(at)
        self.refresh(self.reservations[at].row)
        return 1

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

    def started(self, handle: int) -> None:
        """Say that the first token came: nothing of the request's prefill is queued any more."""
        self.begin(handle)

    cdef void begin(self, int64_t handle) noexcept nogil:
        cdef uint32_t at = self.find(handle)
        cdef Reservation *reservation
        cdef Row *row
        if at == NONE:
            return
        reservation = &self.reservations[at]
        row = &self.rows[reservation.row]
        row.inflight_tokens -= reservation.tokens
        if not reservation.is_counted:
            row.uncounted_tokens -= reservation.tokens
        reservation.tokens = 0
        self.refresh(reservation.row)

    def replica_of(self, handle: int) -> int:
        """The replica of a live handle, or NOBODY."""
        cdef uint32_t at = self.find(handle)
        return NOBODY if at == NONE else self.reservations[at].row

    def inflight(self, replica: int) -> int:
        """Requests of ours on a replica."""
        return self.row(replica).inflight

    def queued_tokens(self, replica: int, now_s: float) -> int:
        """Prompt tokens before a new request on a replica, as the cost counts them."""
        self.row(replica)
        return self.queued(replica, now_s)

    cdef bint is_clear(self, uint32_t replica, uint64_t own, double now_s) noexcept nogil:
        """Whether all that a request just reserved waits for is prefill: it has a slot, and blocks.

        `own`: tokens that it computes. Without reports nobody knows what of the others' prefill is done.
        """
        cdef Row *row = &self.rows[replica]
        cdef uint64_t requests = row.requests + row.uncounted
        if not row.has_report or now_s - row.report_s > STALE_SECONDS:
            return row.inflight_tokens <= own and row.inflight <= row.max_running
        if requests <= 1:
            return 1
        return row.waiting == 0 and requests <= row.max_running and (
            row.kv_blocks_total == 0 or row.kv_blocks_used + row.uncounted_blocks <= row.kv_blocks_total
        )

    cdef uint64_t requests_at(self, uint32_t replica, double now_s) noexcept nogil:
        """Requests on a replica, as the cost counts them."""
        cdef Row *row = &self.rows[replica]
        if row.has_report and now_s - row.report_s <= STALE_SECONDS:
            return row.requests + row.uncounted
        return row.inflight

    cdef uint64_t queued(self, uint32_t replica, double now_s) noexcept nogil:
        cdef Row *row = &self.rows[replica]
        if row.has_report and now_s - row.report_s <= STALE_SECONDS:
            return row.queued_prefill_tokens + row.uncounted_tokens
        return row.inflight_tokens

    def uncounted(self, replica: int) -> int:
        """Requests of ours that the last report does not count."""
        return self.row(replica).uncounted

    def __len__(self) -> int:
        """Reservations in all."""
        return self.total


cdef inline uint64_t uncached_tokens(uint64_t prompt, uint64_t cached) noexcept nogil:
    """An engine computes one token at least, or there would be nothing to sample from."""
    return prompt - cached if prompt > cached else 1


cdef inline uint64_t believed_tokens(Row *row, uint64_t prompt, uint64_t cached) noexcept nogil:
    """Engines find whole blocks only, and never the last token's. Source: vLLM 0.32, v1/core/kv_cache_manager.py."""
    cdef uint64_t most = prompt - 1 if prompt else 0
    if cached > most:
        cached = most
    return <uint64_t>(cached * row.rates.trust) // row.block_tokens * row.block_tokens


cdef inline double decode_s(const Row *row, uint64_t requests) noexcept nogil:
    """Until there is a slot, and how much longer the answer takes for those who are there."""
    cdef uint32_t slots = slots_of(row)
    cdef uint64_t before = requests + 1 - slots if requests + 1 > slots else 0
    return before * row.rates.service_s / slots + requests * row.rates.crowd_s * CROWD_WEIGHT


cdef inline double burden(const Row *row, uint64_t requests, uint64_t waiting) noexcept nogil:
    """What a second of our own prefill costs others, in seconds. `waiting`: of the requests, as far as reported."""
    cdef uint64_t running = min(requests - waiting, row.max_running)
    return row.lost_weight + running * RUNNING_WEIGHT + (requests - running) * WAITING_WEIGHT


cdef inline uint64_t blocks_for(uint64_t tokens, uint32_t block_tokens) noexcept nogil:
    return (tokens + block_tokens - 1) // block_tokens


cdef inline uint64_t room_for(Row *row, uint64_t used) noexcept nogil:
    """Tokens that the KV pool has room for. Free blocks fit 50 bits: capped, so that the product fits."""
    cdef uint64_t room = row.kv_blocks_total - used if used < row.kv_blocks_total else 0
    return min(room, <uint64_t>1 << 33) * row.block_tokens


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

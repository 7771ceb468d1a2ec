# cython: autotestdict=False
"""One decision per request without Python in between: chain, match, estimate, pick, reserve, hold; and what comes after.

    choose    scan ─▶ sink (hashes, ends) ─┬─▶ marks ─▶ index.reach ──────┬─▶ tokens ─▶ policy: ledger.cheapest / ...
                                           └─▶ exact.reach_far, if told ──┘             ─▶ ledger.take ─▶ index.hold
    submitted, started ─▶ ledger        finished ─▶ ledger.give_back ─▶ rates, density ─▶ index.hold, if its end was wrong
    what engines say of their caches ─▶ fleet: exact                                   ─▶ standing: did it come true?

It chooses among the rows of a `Fleet` (fleet.pyx), of which those that serve one model under one policy are a `Group`. Buffers
are kept from one request to the next.

Two indexes. `exact` holds what engines say, chunk by chunk, with the engine's own token positions; a look-up goes over the
whole chain. `index` holds what was routed, by a few of a prompt's chunks, its marks (marks.pxd: at most some hundred; a
`Choice` keeps theirs until it ends, 12 bytes each), with estimated positions that the usage of the answer sets right. A
row goes by one of them (standing.pxd). Of a row that goes by `exact`, `index` holds the prompts in flight alone: what was
sent and is not told yet. It counts where its text goes further than what is told, by more than a block.

Invariants: a choice is reserved in the ledger in the same call; a reservation is released once; everything runs on one
thread and never blocks.

    choose  O(prompt bytes + marks + replicas of the model + replicas that hold any of it)    submitted, started  O(1)
    finished  O(1), O(marks) when positions were wrong        marks  O(log chunks)
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.math cimport NAN, isnan
from libc.stdint cimport UINT32_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_malloc
from xinf._fast.canonical cimport is_order
from xinf._fast.choice cimport Choice
from xinf._fast.chunkhash cimport hash_bytes
from xinf._fast.fleet cimport Fleet, capacity_for, grown
from xinf._fast.group cimport BY_COST, BY_LOAD, BY_PREFIX, BY_SESSION, BY_TURN, Group, uses_prefixes
from xinf._fast.ledger cimport NONE, Excluded, Ledger, Pick, Row, is_excluded
from xinf._fast.losses cimport SEEN_PLACES, note_seen, recall
from xinf._fast.marks cimport MAX_MARKS, marks_room, take_marks
from xinf._fast.positions cimport line, place_chunks, place_rest
from xinf._fast.prefix cimport MIN_INDEX_BYTES
from xinf._fast.rates cimport learn_crowd, learn_density, learn_prefill, learn_service, learn_trust
from xinf._fast.record cimport Record
from xinf._fast.scan cimport Scan
from xinf._fast.sink cimport MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, Sink, free_sink, init_sink
from xinf._fast.standing cimport BY_CHECK, BY_RECOVERY, Standing, VIEW_MARKS, check, is_told
from xinf._fast.tokens cimport above, distance, usable

from xinf._fast.fleet import VIEWS

# Policies, as numbers. See xinf/router/README.md.
AUTO = BY_COST
LEAST_LOAD = BY_LOAD
ROUND_ROBIN = BY_TURN
SESSION = BY_SESSION
PREFIX = BY_PREFIX

cdef enum:
    WINDOW_BLOCKS = 3  # text of so many blocks holds an entry of whoever holds it: two may be missing
    # A prompt has no more tokens than that, whatever an engine says: else one could make all others look dear.
    MAX_TOKENS_PER_BYTE = 4
    MAX_TEMPLATE_TOKENS = 1 << 14
    SLOTS_PER_ANSWER = 2  # that a replica counts as having, up to what it said
    COMPARED_REPLICAS = 32  # of more than so many, one choice in 16 is compared with least-load

cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? -1


@cython.auto_pickle(False)
cdef class Decider(Fleet):
    """Chooses among the replicas that it was told of. `xinf.router.Router` is made of it: names, settings and views."""

    cdef uint32_t chunk_bytes
    # By row, of the fleet's capacity.
    cdef uint32_t *lengths  # filled by each match: tokens
    cdef uint32_t *hits  # filled by each match: marks; 0 where `lengths` goes by what is told
    cdef uint32_t *told_lengths  # the same of what is told
    cdef uint32_t *told_hits  # chunks of the chain
    cdef uint32_t *scratch
    cdef uint32_t *banned
    cdef uint64_t *seen  # marks of prompts that were asked for before
    # Of the prompt being looked at.
    cdef Sink sink
    cdef uint32_t[MAX_MARKS] positions
    cdef uint32_t furthest  # mark
    cdef uint32_t told_furthest  # chunk
    cdef bint has_told

    def __cinit__(self, *args, **kwargs):
        init_sink(&self.sink)

    def __init__(
        self, *, max_inflight: int, index_max_bytes: int, exact_index_max_bytes: int = 0, chunk_bytes: int = 64,
        prior_prefill_tokens_per_s: float, prior_bytes_per_token: float, prior_service_s: float, clock=None, turn: int = 0,
    ) -> None:
        """`clock`: has monotonic_s(); the system's own when None. `turn`: where the rotation of ties begins.

        `index_max_bytes`, `exact_index_max_bytes`: too few for an index turn it off. The priors hold until something was
        measured. `chunk_bytes`: where an engine does not say.
        """
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, must be {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}")
        Fleet.__init__(
            self,
            max_inflight=max_inflight,
            index_max_bytes=index_max_bytes,
            exact_index_max_bytes=exact_index_max_bytes,
            prior_prefill_tokens_per_s=prior_prefill_tokens_per_s,
            prior_bytes_per_token=prior_bytes_per_token,
            prior_service_s=prior_service_s,
            clock=clock,
            turn=turn,
        )
        self.chunk_bytes = chunk_bytes
        self.seen = <uint64_t *>calloc(SEEN_PLACES, sizeof(uint64_t))
        if self.seen == NULL:
            raise MemoryError("out of memory for what was asked for before")

    def __dealloc__(self):
        free_sink(&self.sink)
        free(self.lengths)
        free(self.hits)
        free(self.told_lengths)
        free(self.told_hits)
        free(self.scratch)
        free(self.banned)
        free(self.seen)

    cdef int reserve_rows(self, uint32_t n) except -1:
        cdef size_t n_bytes = capacity_for(self.capacity) * sizeof(uint32_t)
        if n <= self.capacity:
            return 0
        self.lengths = <uint32_t *>grown(self.lengths, n_bytes)
        self.hits = <uint32_t *>grown(self.hits, n_bytes)
        self.told_lengths = <uint32_t *>grown(self.told_lengths, n_bytes)
        self.told_hits = <uint32_t *>grown(self.told_hits, n_bytes)
        self.scratch = <uint32_t *>grown(self.scratch, n_bytes)
        self.banned = <uint32_t *>grown(self.banned, n_bytes)
        return Fleet.reserve_rows(self, n)

    # ---- choosing -------------------------------------------------------------------------------------------------

    def choose(
        self, str model not None, Scan scan, *, seed: int, exclude=(), order: int = 0, bytes session=None,
        uint32_t chunk_bytes=0,
    ) -> Choice | None:
        """Pick a replica and reserve it. None: no replica of the model is ready and below its limit.

        `scan`: None for a body that is no JSON. `seed`: keeps prefixes of models and tenants apart. `exclude`: ids of
        replicas that were tried. `order`, `chunk_bytes` (0: as configured): see Scan.chain. `session`: beats the one in
        the body. Raises: MemoryError.
        """
        cdef PyObject *found = PyDict_GetItem(self.groups, model)
        cdef Choice choice
        cdef Excluded excluded
        cdef uint64_t key = 0
        cdef bint has_match, has_key
        cdef uint32_t row, held
        if found == NULL:
            return None
        choice = Choice.__new__(Choice)
        choice.group = <Group>found
        choice.chosen_s = self.now()
        excluded.rows = self.banned
        excluded.n = self.ban(exclude) if exclude else 0
        has_match = scan is not None and self.look_up(
            choice, scan, PyLong_AsUnsignedLongLongMask(seed), order, chunk_bytes
        )
        has_key = self.session_key(scan, session, &key)
        row = self.pick(choice, has_match, has_key, key, &excluded)
        if row == NONE:
            return None
        held = self.lengths[row] if has_match else 0
        self.weigh_in(choice, row, held)
        choice.handle = self.ledger.take(row, choice.prompt_tokens, held)
        if choice.handle < 0:
            raise MemoryError("out of memory for a reservation")
        self.settle(choice, row, has_match)
        return choice

    cdef void weigh_in(self, Choice choice, uint32_t row, uint64_t held) noexcept nogil:
        """Keep what a row costs, before the choice itself makes it dearer."""
        cdef double[4] terms
        self.ledger.terms_of(&self.ledger.rows[row], choice.prompt_tokens, held, choice.chosen_s, terms)
        choice.queued_s, choice.prefill_s, choice.decode_s, choice.full_s = terms[0], terms[1], terms[2], terms[3]

    cdef size_t ban(self, exclude) except? 0:
        """Note the rows of replicas to leave out."""
        cdef size_t n = 0
        for name in exclude:
            row = self.row_of.get(name)
            if row is not None and n < self.capacity:
                self.banned[n] = row
                n += 1
        return n

    cdef bint session_key(self, Scan scan, bytes session, uint64_t *key) except -1:
        if session:
            key[0] = hash_bytes(session)
            return 1
        return scan is not None and scan.session_hash(key)

    cdef bint look_up(self, Choice choice, Scan scan, uint64_t seed, int order, uint32_t chunk_bytes) except -1:
        """Fill in the marks and the estimate of the prompt, `lengths` and `hits`. 1 if anyone holds any of it."""
        cdef Group group = choice.group
        cdef double density = group.density.bytes_per_token
        cdef uint32_t most = 0
        choice.is_stream = scan.is_stream()
        self.has_told = 0
        if not uses_prefixes(group.policy) or (self.index is None and self.exact is None):
            choice.prompt_tokens = max(1, <uint64_t>(scan.text_bytes() / density))
            return 0
        if chunk_bytes == 0:
            chunk_bytes = self.chunk_bytes
        if not is_order(order) or not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"order is {order}, must be 0, 1 or 2 and flags; chunk_bytes is {chunk_bytes}")
        choice.can_learn = scan.asks_for_one()
        scan.feed(&self.sink, seed, order, chunk_bytes)
        if self.sink.has_failed:
            raise MemoryError("out of memory while hashing a prompt")
        self.furthest = self.told_furthest = 0
        if self.sink.n:
            self.keep_marks(choice)
            choice.n_seen = recall(self.seen, choice.hashes, choice.n_marks)
            most = self.reach(choice)
        choice.prompt_tokens = scan.token_ids() or self.estimate(choice, density)
        return most > 0

    cdef uint32_t reach(self, Choice choice) noexcept:
        """How far each replica holds the prompt. Gives the largest length in any index."""
        cdef Group group = choice.group
        cdef size_t n_rows = len(self.names)
        cdef uint32_t most = 0, most_told = 0
        cdef double window = WINDOW_BLOCKS * group.block_tokens * group.density.bytes_per_token
        if self.index is not None:
            most = self.index.reach(choice.hashes, choice.n_marks, self.lengths, self.hits, n_rows, &self.furthest, 1)
        else:
            memset(self.lengths, 0, n_rows * sizeof(uint32_t))
            memset(self.hits, 0, n_rows * sizeof(uint32_t))
        if group.n_followed:
            self.has_told = 1
            most_told = self.exact.reach_far(
                self.sink.hashes, self.sink.ends, self.sink.n, <uint32_t>window if window < UINT32_MAX else UINT32_MAX,
                self.told_lengths, self.told_hits, n_rows, &self.told_furthest,
            )
            if most_told:
                self.prefer_told(choice)
        return max(most, most_told)

    cdef void prefer_told(self, Choice choice) noexcept:
        """Let rows that go by what is told do so, unless what is in flight goes further by more than a block."""
        cdef const uint32_t *ends = self.sink.ends
        cdef Group group = choice.group
        cdef double density = group.density.bytes_per_token
        cdef uint32_t i, row, hit
        for i in range(group.n):
            row = group.rows[i]
            hit = self.told_hits[row]
            if hit == 0 or not self.is_told[row]:
                continue
            if self.hits[row] and choice.ends[self.hits[row] - 1] > (
                ends[hit - 1] + self.ledger.rows[row].block_tokens * density
            ):
                continue
            self.lengths[row] = self.told_lengths[row]
            self.hits[row] = 0

    cdef uint64_t estimate(self, Choice choice, double density) noexcept:
        """Tokens of the prompt. What a prefix of it really took is better known than what the rest will take."""
        cdef double n_bytes = self.sink.n_bytes, known_bytes = 0, known_tokens = 0
        if self.furthest:
            known_bytes = choice.ends[self.furthest - 1]
            known_tokens = self.index.position_of(choice.hashes[self.furthest - 1])
        if self.told_furthest and self.sink.ends[self.told_furthest - 1] + (
            choice.group.block_tokens * density
        ) >= known_bytes:
            known_bytes = self.sink.ends[self.told_furthest - 1]
            known_tokens = self.exact.position_of(self.sink.hashes[self.told_furthest - 1])
        known_tokens = min(known_tokens, MAX_TOKENS_PER_BYTE * n_bytes + MAX_TEMPLATE_TOKENS)
        return max(1, <uint64_t>(known_tokens + (n_bytes - known_bytes) / density))

    cdef int keep_marks(self, Choice choice) except -1:
        cdef size_t room = marks_room(self.sink.n)
        choice.hashes = <uint64_t *>xinf_malloc(room * (sizeof(uint64_t) + sizeof(uint32_t)))
        if choice.hashes == NULL:
            raise MemoryError(f"out of memory for the marks of {self.sink.n} chunks")
        choice.ends = <uint32_t *>(choice.hashes + room)
        choice.n_marks = take_marks(&self.sink, choice.hashes, choice.ends)
        return 0

    cdef uint32_t pick(
        self, Choice choice, bint has_match, bint has_key, uint64_t key, const Excluded *excluded
    ) noexcept:
        """Apply the group's policy. Gives a row, or NONE."""
        cdef Group group = choice.group
        cdef Ledger ledger = self.ledger
        cdef const uint32_t *rows = group.rows
        cdef uint32_t n = group.n, favourite
        cdef size_t n_cached = len(self.names) if has_match else 0
        cdef Pick pick
        if group.policy == BY_TURN:
            choice.reason = "round_robin"
            return self.next_turn(group, excluded)
        if group.policy == BY_SESSION and has_key:
            favourite = ledger.heaviest(rows, n, key, excluded)
            if favourite != NONE:
                choice.reason = "session"
                return favourite
        if group.policy == BY_PREFIX and has_match:
            n = self.furthest_rows(group, choice.prompt_tokens, excluded)
            rows = self.scratch
        group.n_choices += 1
        pick = ledger.cheapest(rows, n, self.lengths, n_cached, choice.prompt_tokens, choice.chosen_s, excluded)
        if group.policy == BY_COST and (n <= COMPARED_REPLICAS or group.n_choices % 16 == 0):
            self.compare(choice, &pick, has_match, excluded)
        if has_key and pick.n_ties > 1:
            # Of replicas that cost exactly the same, the session's favourite. Looked for only now: it costs a walk.
            favourite = ledger.heaviest(group.rows, group.n, key, excluded)
            if favourite != NONE and pick.cost_s == ledger.cost_of(
                favourite, choice.prompt_tokens, self.lengths[favourite] if n_cached else 0, choice.chosen_s
            ) and (rows != self.scratch or self.promise(favourite, choice.prompt_tokens) == self.promise(
                pick.replica, choice.prompt_tokens
            )):
                return favourite
        return pick.replica

    cdef void compare(self, Choice choice, const Pick *pick, bint has_match, const Excluded *excluded) noexcept:
        """Note what the replica would cost that least-load would have chosen. Once the answer is there, it is compared."""
        cdef Ledger ledger = self.ledger
        cdef uint32_t turn = ledger.turn
        cdef Pick least
        choice.cost_s = choice.least_s = pick.cost_s
        if not has_match or pick.replica == NONE:
            return  # the same one
        ledger.turn = turn - 1  # where the pick before began, or ties would be others
        least = ledger.cheapest(
            choice.group.rows, choice.group.n, NULL, 0, choice.prompt_tokens, choice.chosen_s, excluded
        )
        ledger.turn = turn
        if least.replica != pick.replica:
            choice.least_s = ledger.cost_of(
                least.replica, choice.prompt_tokens, self.lengths[least.replica], choice.chosen_s
            )

    cdef uint32_t next_turn(self, Group group, const Excluded *excluded) noexcept nogil:
        """The next open row in turn."""
        cdef uint32_t step, at
        for step in range(group.n):
            at = (group.turn + step) % group.n
            if self.ledger.opens(group.rows[at]) and not is_excluded(excluded, group.rows[at]):
                group.turn = (at + 1) % group.n
                return group.rows[at]
        return NONE

    cdef uint64_t promise(self, uint32_t row, uint64_t prompt_tokens) noexcept nogil:
        """Tokens of the prompt that a row is said to hold in whole blocks."""
        return usable(self.lengths[row], prompt_tokens, self.ledger.rows[row].block_tokens)

    cdef uint32_t furthest_rows(self, Group group, uint64_t prompt_tokens, const Excluded *excluded) noexcept nogil:
        """The open rows that hold most blocks of the prompt, however busy they are, into `scratch`. Gives how many.

        Whole blocks: all prompts share the token of the first role header, which saves nobody anything.
        """
        cdef uint32_t i, row, n = 0
        cdef uint64_t most = 0, held
        for i in range(group.n):
            row = group.rows[i]
            held = self.promise(row, prompt_tokens)
            if held < most or not self.ledger.opens(row) or is_excluded(excluded, row):
                continue
            if held > most:
                most = held
                n = 0
            self.scratch[n] = row
            n += 1
        return n

    cdef int settle(self, Choice choice, uint32_t row, bint has_match) except -1:
        """Complete a choice that is reserved, and let the index hold its prompt."""
        cdef Record *record = &self.records[row]
        choice.row = row
        choice.replica_id = <str>self.names[row]
        choice.index_state = <str>VIEWS[record.standing.view]
        choice.queued_tokens = self.ledger.queued(row, choice.chosen_s)
        choice.requests = self.ledger.requests_at(row, choice.chosen_s)
        if self.has_told and record.standing.is_followed:
            choice.is_followed = 1
            choice.told_tokens = self.told_lengths[row]
        if has_match and self.lengths[row]:
            self.note_match(choice)
        note_seen(self.seen, choice.hashes, choice.n_seen, choice.n_marks)
        choice.is_clear = self.ledger.is_clear(row, own_tokens(choice), choice.chosen_s)
        if is_told(&record.standing):
            self.overlay(choice)
        elif record.standing.view == VIEW_MARKS:
            self.hold(choice, choice.prompt_tokens, choice.n_hits)
        return 0

    cdef void note_match(self, Choice choice) noexcept:
        """Note how much of the prompt the replica holds, and what of that the engine will find."""
        cdef uint32_t row = choice.row
        choice.matched_tokens = self.lengths[row]
        if self.hits[row]:
            choice.n_hits = self.hits[row]
            choice.matched_bytes = choice.ends[choice.n_hits - 1]
        else:
            choice.matched_bytes = self.sink.ends[self.told_hits[row] - 1]
            while choice.n_hits < choice.n_marks and choice.ends[choice.n_hits] <= choice.matched_bytes:
                choice.n_hits += 1
        choice.promised_tokens = self.promise(row, choice.prompt_tokens)
        choice.predicted_cached_tokens = self.ledger.believed(row, choice.prompt_tokens, choice.matched_tokens)
        if choice.predicted_cached_tokens and choice.reason == "load":
            choice.reason = "prefix"

    cdef void overlay(self, Choice choice) noexcept:
        """Let the index hold what the engine will be told to compute, until the request ends."""
        cdef uint32_t *positions = self.positions
        cdef uint32_t n_known = choice.n_hits, n = choice.n_marks
        if n_known == n or not self.records[choice.row].has_index:
            return
        if n_known:
            positions[n_known - 1] = choice.matched_tokens  # those behind it are no lower
        line(
            choice.ends, n_known, n, choice.matched_bytes, choice.matched_tokens, choice.ends[n - 1],
            max(<double>choice.prompt_tokens, choice.matched_tokens), positions,
        )
        if not self.index.hold(choice.row, choice.hashes + n_known, n - n_known, positions + n_known, 0):
            self.records[choice.row].index_failures += 1

    cdef void hold(self, Choice choice, uint64_t prompt_tokens, uint32_t n_known) noexcept:
        """Let the index hold the prompt of a choice, which has `prompt_tokens` as far as known.

        `n_known`: marks whose positions are known as far as the replica holds them, up to the one at `matched_tokens`.
        """
        cdef uint32_t *positions = self.positions
        cdef uint32_t n = choice.n_marks, n_done = 0
        if n == 0:
            return
        if n_known and self.index.touch(choice.row, choice.hashes, n_known) == n_known:
            place_rest(choice.ends, n, prompt_tokens, n_known, choice.matched_tokens, positions)
            n_done = n_known
        else:
            place_chunks(choice.ends, n, prompt_tokens, n_known, choice.matched_tokens, positions)
        if not self.index.hold(
            choice.row, choice.hashes + n_done, n - n_done, positions + n_done, n_known - n_done
        ):
            self.records[choice.row].index_failures += 1  # routing goes on by load

    # ---- afterwards -----------------------------------------------------------------------------------------------

    def submitted(self, Choice choice not None, submit_id: int) -> None:
        """Say under which id of its Link a request went out, so that load reports can count it."""
        self.ledger.submit(choice.handle, submit_id)

    def started(self, Choice choice not None) -> None:
        """Say that the first byte of an answer came. Optional: of streams, the prefill rate is learnt from it."""
        if choice.is_stream and isnan(choice.begun_s):  # the first byte of any other answer is its last one
            choice.begun_s = self.now()
            self.ledger.begin(choice.handle)

    def finished(
        self, Choice choice not None, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, is_ok: bool
    ) -> None:
        """Release the reservation and learn from the usage. Only the first call for a choice does anything.

        Call it for every choice, however it ended; token counts are 0 when unknown. Afterwards a choice has no marks any
        more, so that one can be kept for a look back.
        """
        if choice.is_done:
            return
        choice.is_done = True
        # False: the replica was removed meanwhile (and perhaps another one has its name now).
        if self.ledger.give_back(choice.handle):
            self.look_back(choice, prompt_tokens, cached_tokens, completion_tokens, is_ok)
        free(choice.hashes)
        choice.hashes = NULL
        choice.ends = NULL

    cdef int look_back(
        self, Choice choice, int64_t n_prompt, int64_t n_cached, int64_t completion_tokens, bint is_ok
    ) except -1:
        """Learn from how a choice ended."""
        cdef Record *record = &self.records[choice.row]
        cdef bint was_told = is_told(&record.standing)
        if n_prompt > 0 and is_ok:
            self.learn(choice, n_prompt, max(n_cached, 0), completion_tokens)
        if was_told or (n_prompt <= 0 and not is_ok):
            # It is told by now, or nothing was computed: take out what the choice added.
            if record.has_index and choice.n_marks:
                self.index.let_go(choice.row, choice.hashes + choice.n_hits, choice.n_marks - choice.n_hits)
        return 0

    cdef int learn(self, Choice choice, uint64_t prompt_tokens, uint64_t cached_tokens, int64_t completion_tokens) except -1:
        cdef Row *row = &self.ledger.rows[choice.row]
        cdef Record *record = &self.records[choice.row]
        cdef double now_s = self.now(), first_s, requests
        cdef uint64_t own = max(1, above(prompt_tokens, cached_tokens)), others
        cdef uint32_t n_points = row.rates.prefill.n
        if not isnan(choice.begun_s) or completion_tokens <= 1:
            first_s = (now_s if isnan(choice.begun_s) else choice.begun_s) - choice.chosen_s
            if choice.is_clear:
                # `queued_tokens` was read with the request's own reservation in it; count what it really took instead.
                others = above(choice.queued_tokens, own_tokens(choice))
                learn_prefill(&row.rates, &choice.group.peers, others + own, first_s)
        if isnan(choice.begun_s):
            learn_service(&row.rates, now_s - choice.chosen_s)
        else:
            # Without the time that it waited for its turn.
            learn_service(&row.rates, now_s - choice.begun_s + own / row.rates.prefill_tokens_per_s)
            requests = 0.5 * (choice.requests + self.ledger.requests_at(choice.row, now_s))
            learn_crowd(&row.rates, requests, completion_tokens, now_s - choice.begun_s)
        if row.rates.prefill.n != n_points and row.rates.prefill.n & n_points == 0:  # the 1st, 2nd, 4th, 8th, ...
            choice.group.lend_rates(self.ledger)
        if row.shown < row.max_running:
            row.shown += SLOTS_PER_ANSWER
        if not isnan(choice.cost_s):
            self.settle_comparison(choice, prompt_tokens, cached_tokens)
        if choice.can_learn:
            if choice.n_marks:
                self.learn_losses(choice, prompt_tokens, cached_tokens, own)
                learn_density(&choice.group.density, choice.ends[choice.n_marks - 1], prompt_tokens)
            if record.standing.view == VIEW_MARKS:
                if choice.n_marks:
                    self.correct(choice, prompt_tokens, row.block_tokens)
                learn_trust(&row.rates, choice.promised_tokens, cached_tokens)
            record.answers += 1
            record.answers_within_block += distance(choice.predicted_cached_tokens, cached_tokens) <= row.block_tokens
            record.predicted_cached_tokens += choice.predicted_cached_tokens
            record.cached_tokens += cached_tokens
            # Of one that had to wait, what it would have found may be thrown out before its turn.
            if choice.is_followed and record.standing.is_followed and choice.is_clear:
                self.check(choice, prompt_tokens, cached_tokens)
        self.ledger.refresh(choice.row)
        return 0

    cdef void learn_losses(self, Choice choice, uint64_t prompt_tokens, uint64_t cached_tokens, uint64_t own):
        """See how much of what a request computed had been asked for before, and let our own prefill cost accordingly."""
        cdef double seen_tokens = 0
        if choice.n_seen:
            seen_tokens = <double>choice.ends[choice.n_seen - 1] / choice.ends[choice.n_marks - 1] * prompt_tokens
        seen_tokens -= <double>cached_tokens + self.ledger.rows[choice.row].block_tokens
        choice.group.learn_loss(self.ledger, own, max(0.0, seen_tokens))

    cdef void check(self, Choice choice, uint64_t prompt_tokens, uint64_t cached_tokens):
        """See whether what the engine said of its cache came true."""
        cdef Standing *standing = &self.records[choice.row].standing
        cdef uint32_t block_tokens = self.ledger.rows[choice.row].block_tokens
        cdef uint64_t predicted = choice.predicted_cached_tokens
        if not is_told(standing):
            predicted = usable(choice.told_tokens, prompt_tokens, block_tokens)
        if (predicted or cached_tokens) and check(standing, distance(predicted, cached_tokens) <= block_tokens):
            self.review(choice.row, BY_CHECK if standing.is_doubted else BY_RECOVERY)

    cdef void settle_comparison(self, Choice choice, uint64_t prompt_tokens, uint64_t cached_tokens) noexcept:
        """Count what the choice saved over least-load's, or lost, by what the engine really found."""
        cdef Group group = choice.group
        cdef double saved_s = 0
        group.n_compared += 1
        if choice.least_s != choice.cost_s:
            # What was not found after all had to be computed, at the weight of our own prefill.
            saved_s = choice.least_s - choice.cost_s + (1.0 + self.ledger.rows[choice.row].lost_weight) * (
                <double>cached_tokens - <double>choice.predicted_cached_tokens
            ) / self.ledger.rows[choice.row].rates.prefill_tokens_per_s
        if saved_s > 0:
            group.saved_s += saved_s
        else:
            group.regret_s -= saved_s

    cdef void correct(self, Choice choice, uint64_t prompt_tokens, uint32_t block_tokens) noexcept:
        """Set positions right, unless the index knows the end of the prompt to within a quarter of a block."""
        cdef const uint64_t *hashes = choice.hashes
        cdef uint32_t n_known = choice.n_hits, predicted = choice.matched_tokens
        cdef uint64_t position
        position = self.index.position_held(choice.row, hashes[choice.n_marks - 1])
        if position and distance(position, prompt_tokens) <= max(1, block_tokens // 4):
            return
        if n_known:
            # Others may have set it right meanwhile.
            choice.matched_tokens = self.index.position_held(choice.row, hashes[n_known - 1])
            if n_known == choice.n_marks or not 0 < choice.matched_tokens <= prompt_tokens:
                n_known = 0  # what was known is wrong by what the usage says, or gone
        self.index.forget_trail()
        self.hold(choice, prompt_tokens, n_known)
        choice.matched_tokens = predicted

    # ---- what it would choose -------------------------------------------------------------------------------------

    def _weigh(
        self, str model not None, Scan scan, make, *, seed: int, exclude=(), order: int = 0, bytes session=None,
        uint32_t chunk_bytes=0,
    ) -> list:
        """Show what `choose` would weigh and whom it would pick, each as make(replica_id=..., ...). Changes nothing."""
        cdef Group group = self.groups.get(model)
        cdef Choice choice
        cdef Excluded excluded
        cdef uint64_t key = 0
        cdef bint has_match, has_key
        cdef uint32_t i, row, picked, turn, ledger_turn, n_choices
        if group is None:
            return []
        choice = Choice.__new__(Choice)
        choice.group = group
        choice.chosen_s = self.now()
        excluded.rows = self.banned
        excluded.n = self.ban(exclude) if exclude else 0
        has_match = scan is not None and self.look_up(
            choice, scan, PyLong_AsUnsignedLongLongMask(seed), order, chunk_bytes
        )
        has_key = self.session_key(scan, session, &key)
        turn, ledger_turn, n_choices = group.turn, self.ledger.turn, group.n_choices
        picked = self.pick(choice, has_match, has_key, key, &excluded)
        group.turn, self.ledger.turn, group.n_choices = turn, ledger_turn, n_choices
        reason = choice.reason
        shown = []
        for i in range(group.n):
            row = group.rows[i]
            choice.reason = reason
            shown.append(self.shown(choice, row, self.lengths[row] if has_match else 0, row == picked, &excluded, make))
        return shown

    cdef object shown(self, Choice choice, uint32_t row, uint32_t held, bint is_picked, const Excluded *excluded, make):
        """One replica of `_weigh`."""
        cdef Row *ledger_row = &self.ledger.rows[row]
        self.weigh_in(choice, row, held)
        choice.row = row
        choice.n_hits = choice.matched_bytes = choice.matched_tokens = choice.predicted_cached_tokens = 0
        if held:
            self.note_match(choice)
        return make(
            replica_id=self.names[row],
            index_state=VIEWS[self.records[row].standing.view],
            is_ready=bool(ledger_row.is_ready),
            is_open=bool(self.ledger.opens(row)),
            is_excluded=bool(is_excluded(excluded, row)),
            reason=choice.reason if is_picked else None,
            inflight=ledger_row.inflight,
            matched_bytes=choice.matched_bytes,
            matched_tokens=choice.matched_tokens,
            predicted_cached_tokens=choice.predicted_cached_tokens,
            prompt_tokens=choice.prompt_tokens,
            terms=(choice.queued_s, choice.prefill_s, choice.decode_s, choice.full_s),
        )


cdef inline uint64_t own_tokens(Choice choice) noexcept:
    """Tokens that the engine was thought to compute for a request."""
    return max(1, above(choice.prompt_tokens, choice.predicted_cached_tokens))



def _marks(Scan scan not None, *, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[bytes, bytes]:
    """The hashes and ends of a prompt's marks, as Scan.chain_with_ends gives those of all its chunks. For tests."""
    cdef Decider decider = Decider(
        max_inflight=1, index_max_bytes=MIN_INDEX_BYTES, chunk_bytes=chunk_bytes, prior_prefill_tokens_per_s=1.0,
        prior_bytes_per_token=1.0, prior_service_s=1.0,
    )
    cdef Choice choice = Choice.__new__(Choice)
    choice.group = Group("")
    choice.group.density.bytes_per_token = 1.0
    decider.look_up(choice, scan, PyLong_AsUnsignedLongLongMask(seed), order, 0)
    if choice.n_marks == 0:
        return b"", b""
    return (PyBytes_FromStringAndSize(<char *>choice.hashes, choice.n_marks * sizeof(uint64_t)),
            PyBytes_FromStringAndSize(<char *>choice.ends, choice.n_marks * sizeof(uint32_t)))


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none. Index and ledger have their own."""
    alloc.xinf_fail_in = k

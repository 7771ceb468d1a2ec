# cython: autotestdict=False
"""The replicas that requests can go to, as rows: what each is, by what its cache is known, what was learnt of it.

    replica id ──row_of──▶ row ──▶ names, group_of, records, is_told      and the same row in ledger, index and exact
    model ──groups──▶ Group: its rows, its policy

Rows are small integers, given out again when a replica left. A row goes by one of two indexes, or by none (standing.pxd):
`exact` holds what its engine says, `index` what was routed there. decide.pyx chooses among them.

    _enter, _leave, _say  O(1), O(replicas of the model) when a policy changes        _hear  O(chunks said)
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.chunkhash cimport hash_bytes
from xinf._fast.group cimport Group, uses_prefixes
from xinf._fast.ledger cimport Ledger, Row
from xinf._fast.prefix cimport MIN_INDEX_BYTES, PrefixIndex
from xinf._fast.rates cimport forget_prefill
from xinf._fast.record cimport Record
from xinf._fast.standing cimport (
    BY_ENGINE, BY_FORM, BY_POLICY, N_CAUSES, N_VIEWS, SAYS_APPROX, SAYS_EXACT, SAYS_NOTHING, SAYS_OFF, Standing,
    begin_standing, is_told, review,
)

cdef enum:
    FIRST_SLOTS = 4  # a new replica counts as having so many, and more with each answer: how fast it is nobody knows yet

SAYS = {"": SAYS_NOTHING, "off": SAYS_OFF, "approx": SAYS_APPROX, "exact": SAYS_EXACT}
VIEWS = ("off", "approx", "approx", "exact")
CAUSES = ("beginning", "policy", "engine", "form", "check", "recovery")


@cython.auto_pickle(False)
cdef class Fleet:
    """See the module."""

    def __init__(
        self, *, max_inflight: int, index_max_bytes: int, exact_index_max_bytes: int, prior_prefill_tokens_per_s: float,
        prior_bytes_per_token: float, prior_service_s: float, clock, turn: int,
    ) -> None:
        """See Decider."""
        if self.groups is not None:
            raise ValueError(f"a {type(self).__name__} is set up once")
        self.ledger = Ledger(max_inflight, turn)
        self.index = PrefixIndex(index_max_bytes) if index_max_bytes >= MIN_INDEX_BYTES else None
        self.exact = PrefixIndex(exact_index_max_bytes) if exact_index_max_bytes >= MIN_INDEX_BYTES else None
        self.clock = clock
        self.prior_bytes_per_token = prior_bytes_per_token
        self.prior_prefill_tokens_per_s = prior_prefill_tokens_per_s
        self.prior_service_s = prior_service_s
        self.start = turn & 0x7FFFFFFF
        self.groups = {}
        self.row_of = {}
        self.names = []
        self.group_of = []
        self.free_rows = []

    def __dealloc__(self):
        free(self.is_told)
        free(self.records)

    cdef double now(self) except -1:
        cdef timespec t
        if self.clock is not None:
            return self.clock.monotonic_s()
        clock_gettime(CLOCK_MONOTONIC, &t)
        return t.tv_sec + 1e-9 * t.tv_nsec

    # ---- replicas -------------------------------------------------------------------------------------------------

    def _enter(
        self, str replica_id not None, str model not None, policy: int, *, block_tokens: int, max_running: int,
        is_ready: bool,
    ) -> None:
        """Enter a replica, or say what changed. Raises: MemoryError."""
        cdef uint32_t row, i
        cdef Group group
        known = self.row_of.get(replica_id)
        if known is not None and (<Group>self.group_of[known]).model != model:
            self._leave(replica_id)
            known = None
        if known is None:
            known = self.add(replica_id, model, policy, block_tokens, max_running)
        else:
            self.ledger.set_limits(known, max_running, block_tokens)
        row = known
        group = self.group_of[row]
        group.block_tokens = max(group.block_tokens, self.ledger.rows[row].block_tokens)
        if group.policy != policy:
            group.policy = policy
            for i in range(group.n):
                self.review(group.rows[i], BY_POLICY)
        if self.ledger.rows[row].is_ready and not is_ready:
            # Its Link is going or gone: what the engine said last, and its submit ids, no longer hold.
            self.ledger.forget_report(row)
        self.ledger.set_ready(row, is_ready)

    cdef object add(self, str replica_id, str model, policy, block_tokens, max_running):
        cdef Group group = self.groups.get(model)
        cdef Record *record
        cdef uint32_t row
        self.reserve_rows(len(self.names) + 1)
        number = self.free_rows[len(self.free_rows) - 1] if self.free_rows else len(self.names)
        row = number
        self.ledger.add(
            number,
            # What others of the model do is the better guess, if it is known.
            prefill_tokens_per_s=self.prior_prefill_tokens_per_s if group is None else group.prefill_rate(
                self.prior_prefill_tokens_per_s
            ),
            service_s=self.prior_service_s if group is None else group.service(self.ledger, self.prior_service_s),
            max_running=max_running,
            block_tokens=block_tokens,
            identity=hash_bytes(replica_id.encode()),
        )
        self.ledger.rows[row].shown = FIRST_SLOTS
        if group is not None:
            self.ledger.rows[row].lost_weight = group.lost_weight
            self.ledger.refresh(row)
        if group is None:
            group = Group(model)
            group.policy = policy
            group.turn = self.start
            group.density.bytes_per_token = self.prior_bytes_per_token
        try:
            group.add(row)
        except MemoryError:
            self.ledger.remove(number)
            raise
        self.groups[model] = group
        record = &self.records[row]
        memset(record, 0, sizeof(Record))
        record.trust = 1.0
        record.has_index = self.index is not None and row < self.index.max_replicas
        record.has_exact = self.exact is not None and row < self.exact.max_replicas
        begin_standing(&record.standing, record.has_index, record.has_exact, uses_prefixes(group.policy))
        self.is_told[row] = 0
        if self.free_rows:
            self.free_rows.pop()
            self.names[row] = replica_id
            self.group_of[row] = group
        else:
            self.names.append(replica_id)
            self.group_of.append(group)
        self.row_of[replica_id] = number
        return number

    cdef int reserve_rows(self, uint32_t n) except -1:
        """Room for so many rows in all tables by row."""
        cdef uint32_t capacity = capacity_for(self.capacity)
        if n <= self.capacity:
            return 0
        self.is_told = <uint8_t *>grown(self.is_told, capacity * sizeof(uint8_t))
        self.records = <Record *>grown(self.records, capacity * sizeof(Record))
        self.capacity = capacity
        return 0

    def _leave(self, str replica_id not None) -> None:
        """Forget a replica, what it holds and its reservations. Unknown ids are ignored."""
        cdef Group group
        cdef uint32_t row
        known = self.row_of.pop(replica_id, None)
        if known is None:
            return
        row = known
        group = self.group_of[row]
        forget_prefill(&self.ledger.rows[row].rates, &group.peers)
        self.ledger.remove(known)
        if self.records[row].has_index:
            self.index.drop(known)
        if self.records[row].has_exact:
            self.exact.drop(known)
        group.remove(row)
        group.n_followed -= self.records[row].standing.is_followed
        if group.n == 0:
            del self.groups[group.model]
        self.names[row] = None
        self.group_of[row] = None
        self.free_rows.append(known)

    def _report(
        self, str replica_id not None, *, requests: int, waiting: int = 0, queued_prefill_tokens: int, kv_blocks_used: int,
        kv_blocks_total: int, last_submit: int,
    ) -> None:
        """Take in a load report. Those of unknown replicas are ignored: they were on their way when it left."""
        known = self.row_of.get(replica_id)
        if known is not None:
            self.ledger.report(
                known,
                requests=requests,
                waiting=waiting,
                queued_prefill_tokens=queued_prefill_tokens,
                kv_blocks_used=kv_blocks_used,
                kv_blocks_total=kv_blocks_total,
                last_submit=last_submit,
                now_s=self.now(),
            )

    # ---- what engines say of their caches -------------------------------------------------------------------------

    def _say(self, str replica_id not None, str state not None) -> None:
        """Take in how well an engine knows its cache: "exact", "approx", "off"; anything else is no news."""
        known = self.row_of.get(replica_id)
        if known is not None and state in SAYS and state:
            self.records[<uint32_t>known].standing.says = SAYS[state]
            self.review(known, BY_ENGINE)

    def _misform(self, str replica_id not None, bint is_misformed) -> None:
        """Say whether a replica's prompts are chained in another form than its group's: what it says is no use then."""
        known = self.row_of.get(replica_id)
        if known is not None:
            self.records[<uint32_t>known].standing.is_misformed = is_misformed
            self.review(known, BY_FORM)

    def _hear(
        self, str replica_id not None, *, bint cleared, bytes added not None, bytes tokens not None,
        bytes removed not None, str state not None,
    ) -> bool:
        """Take in which chunks an engine holds now, and which no more. False: nobody here has use for it.

        Raises: ValueError when the arrays do not fit, MemoryError; what it holds is not known then, until it clears.
        """
        cdef Record *record
        cdef uint32_t row
        known = self.row_of.get(replica_id)
        if known is None:
            return False
        row = known
        record = &self.records[row]
        if state in SAYS and state:
            record.standing.says = SAYS[state]
        if not record.has_exact or record.standing.is_misformed or record.standing.says == SAYS_OFF:
            self.review(row, BY_ENGINE)
            return False
        if cleared:
            self.exact.drop(known)
            record.standing.has_entries = 1
        if record.standing.has_entries:
            if added or tokens:
                self.exact.insert(known, added, tokens)
            if removed:
                self.exact.remove(known, removed)
        self.review(row, BY_ENGINE)
        return True

    cdef void review(self, uint32_t row, uint8_t cause):
        """Let a row go by what it is known best by."""
        cdef Record *record = &self.records[row]
        cdef Group group = self.group_of[row]
        cdef bint was_told = is_told(&record.standing), was_followed = record.standing.is_followed
        cdef Row *ledger_row = &self.ledger.rows[row]
        if record.standing.is_misformed or record.standing.says == SAYS_OFF:
            record.standing.has_entries = 0
        review(&record.standing, record.has_index, record.has_exact, uses_prefixes(group.policy), cause)
        group.n_followed += record.standing.is_followed
        group.n_followed -= was_followed
        if was_followed and not record.standing.has_entries:
            self.exact.drop(row)
        if is_told(&record.standing) == was_told:
            return
        self.is_told[row] = not was_told
        # What is told needs no trust: it is checked, and given up as a whole when it is wrong.
        if was_told:
            ledger_row.rates.trust = record.trust
        else:
            record.trust = ledger_row.rates.trust
            ledger_row.rates.trust = 1.0
            if record.has_index:
                self.index.drop(row)  # of what was routed, only what is in flight counts from now on
        self.ledger.refresh(row)

    # ---- what it knows --------------------------------------------------------------------------------------------

    def inflight(self, str replica_id not None) -> int:
        """Requests of this process on a replica; 0 for an unknown one."""
        known = self.row_of.get(replica_id)
        return 0 if known is None else self.ledger.inflight(known)

    def _n_rows(self) -> int:
        """Rows ever given out."""
        return len(self.names)

    def _ids(self) -> list[str]:
        """The replicas, in the order of their arrival."""
        return list(self.row_of)

    def _groups(self) -> dict[str, Group]:
        """What is known of the replicas of each model together."""
        return dict(self.groups)

    def _learnt(self, str replica_id not None, make):
        """Show what is known of a replica: make(model=..., ...). Raises: KeyError."""
        cdef uint32_t number = self.row_of[replica_id]
        cdef Row *row = &self.ledger.rows[number]
        cdef Record *record = &self.records[number]
        cdef Standing *standing = &record.standing
        cdef Group group = self.group_of[number]
        return make(
            model=group.model,
            policy=group.policy,
            is_ready=bool(row.is_ready),
            inflight=row.inflight,
            uncounted=row.uncounted,
            index_state=VIEWS[standing.view],
            index_cause=CAUSES[standing.cause],
            is_told=bool(is_told(standing)),
            n_checked=standing.n_checked,
            share=standing.share,
            changes=changes_of(standing),
            held_chunks=self.index.held_by(number) if record.has_index else 0,
            told_chunks=self.exact.held_by(number) if record.has_exact else 0,
            prefill_tokens_per_s=row.rates.prefill_tokens_per_s,
            service_s=row.rates.service_s,
            trust=row.rates.trust,
            answers=record.answers,
            answers_within_block=record.answers_within_block,
            predicted_cached_tokens=record.predicted_cached_tokens,
            cached_tokens=record.cached_tokens,
            index_failures=record.index_failures,
        )


cdef dict changes_of(const Standing *standing):
    """How often a row came to go by what, and why."""
    cdef uint32_t view, cause, n
    found = {}
    for view in range(N_VIEWS):
        for cause in range(N_CAUSES):
            n = standing.n_changes[view * N_CAUSES + cause]
            if n:
                key = VIEWS[view], CAUSES[cause]
                found[key] = found.get(key, 0) + n
    return found


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none. Index and ledger have their own."""
    alloc.xinf_fail_in = k

"""The router of one gateway process: told of replicas and loads, asked for choices, told how they ended.

    choose:  chain ─▶ index.match ─▶ tokens ─▶ policy: ledger.pick / rendezvous / turn ─▶ reserved ─▶ index.insert

The index is approximate: it holds what was routed, from the moment of the choice. Positions in it are tokens: first
estimated from the model's bytes per token, then set right by the usage of the answer, so that the next request with
the same prefix is predicted from what this very text really took.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Collection

from xinf._fast.ledger import NOBODY, Ledger
from xinf._fast.prefix import MIN_BYTES, PrefixIndex, hash_bytes, token_positions
from xinf._fast.scan import Scan
from xinf.core.clock import Clock, SystemClock
from xinf.core.records import RoutingPolicy
from xinf.router.choice import Choice
from xinf.router.cost import CostTerms
from xinf.router.load import LoadView
from xinf.router.pool import Pool, Replica
from xinf.router.settings import RouterSettings
from xinf.router.view import CandidateView, ReplicaView, RouterView

_USES_PREFIX = frozenset({RoutingPolicy.AUTO, RoutingPolicy.PREFIX})


class Router:
    """See the package's docstring. Rows are the small integers that ledger and index know replicas by."""

    def __init__(
        self, settings: RouterSettings | None = None, *, clock: Clock | None = None, turn: int | None = None
    ) -> None:
        """`turn`: where the rotation of ties begins; random when None."""
        self.settings = settings or RouterSettings()
        self._clock: Clock = clock or SystemClock()
        start = secrets.randbelow(1 << 16) if turn is None else turn
        self._ledger = Ledger(self.settings.max_inflight, start)
        has_index = self.settings.index_max_bytes >= MIN_BYTES
        self._index = PrefixIndex(self.settings.index_max_bytes) if has_index else None
        self._pools: dict[str, Pool] = {}
        self._replicas: dict[str, Replica] = {}
        self._by_row: dict[int, Replica] = {}
        self._free_rows: list[int] = []
        self._start = start
        # Filled by each match, by row.
        self._lengths = array("I")
        self._hits = array("I")

    # ---- replicas -------------------------------------------------------------------------------------------------

    def set_replica(
        self,
        replica_id: str,
        *,
        model: str,
        policy: RoutingPolicy,
        block_tokens: int,
        is_ready: bool,
        max_running: int | None = None,
    ) -> None:
        """Enter a replica, or say what changed. A replica that is not ready is not chosen and keeps what it holds."""
        slots = max_running or self.settings.prior_max_running
        replica = self._replicas.get(replica_id)
        if replica is not None and replica.pool.model != model:
            self.remove_replica(replica_id)
            replica = None
        if replica is None:
            replica = self._add(replica_id, model, policy, slots, max(1, block_tokens))
        else:
            self._ledger.set_limits(replica.row, slots, max(1, block_tokens))
        replica.pool.policy = policy
        replica.block_tokens = max(1, block_tokens)
        if replica.is_ready and not is_ready:
            # Its Link is going or gone: what the engine said last, and its submit ids, no longer hold.
            self._ledger.forget_report(replica.row)
        replica.is_ready = is_ready
        self._ledger.set_ready(replica.row, is_ready)

    def _add(self, replica_id: str, model: str, policy: RoutingPolicy, slots: int, block_tokens: int) -> Replica:
        pool = self._pools.get(model)
        if pool is None:
            pool = Pool(model, policy, self.settings.prior_bytes_per_token, turn=self._start)
            self._pools[model] = pool
        row = self._free_rows.pop() if self._free_rows else len(self._lengths)
        if row == len(self._lengths):
            self._lengths.append(0)
            self._hits.append(0)
        replica = Replica(
            replica_id,
            row,
            pool,
            prefill_tokens_per_s=self.settings.prior_prefill_tokens_per_s,
            service_s=self.settings.prior_service_s,
        )
        replica.has_index = self._index is not None and row < self._index.max_replicas
        self._ledger.add(
            row,
            prefill_tokens_per_s=replica.rates.prefill_tokens_per_s,
            service_s=replica.rates.service_s,
            max_running=slots,
            block_tokens=block_tokens,
            identity=hash_bytes(replica_id.encode()),
        )
        self._replicas[replica_id] = replica
        self._by_row[row] = replica
        pool.rows.append(row)
        return replica

    def remove_replica(self, replica_id: str) -> None:
        """Forget a replica, what it holds and its reservations. Unknown ids are ignored."""
        replica = self._replicas.pop(replica_id, None)
        if replica is None:
            return
        del self._by_row[replica.row]
        self._ledger.remove(replica.row)
        if self._index is not None and replica.has_index:
            self._index.drop(replica.row)
        self._free_rows.append(replica.row)
        replica.pool.rows.remove(replica.row)
        if not replica.pool.rows:
            del self._pools[replica.pool.model]

    def on_load(self, replica_id: str, load: LoadView) -> None:
        """Take in a load report. Reports of unknown replicas are ignored: they were on their way when it left."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            return
        self._ledger.report(
            replica.row,
            requests=load.running + load.waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            kv_blocks_used=load.kv_blocks_used,
            kv_blocks_total=load.kv_blocks_total,
            last_submit=load.last_submit,
            now_s=self._clock.monotonic_s(),
        )

    # ---- choosing -------------------------------------------------------------------------------------------------

    def choose(
        self,
        model: str,
        scan: Scan | None,
        *,
        seed: int,
        exclude: Collection[str] = (),
        order: int = 0,
        session: bytes | None = None,
    ) -> Choice | None:
        """Pick a replica and reserve it. None: no replica of the model is ready and below its limit.

        `scan`: None for a body that is no JSON. `seed`: keeps prefixes of models and tenants apart. `exclude`: replicas
        that were tried. `order`: see Scan.chain. `session`: beats the one in the body.
        """
        pool = self._pools.get(model)
        if pool is None:
            return None
        choice = Choice(replica_id="", handle=NOBODY, reason="load", chosen_s=self._clock.monotonic_s())
        has_match = self._look_up(pool, scan, choice, seed=seed, order=order)
        excluded = {self._replicas[name].row for name in exclude if name in self._replicas} if exclude else ()
        key = session or (scan.session if scan is not None else None)
        choice.handle = self._pick(
            pool, choice, excluded, None if key is None else hash_bytes(key), has_match=has_match
        )
        if choice.handle == NOBODY:
            return None
        self._settle(choice, has_match=has_match)
        return choice

    def _look_up(self, pool: Pool, scan: Scan | None, choice: Choice, *, seed: int, order: int) -> bool:
        """Fill in the chain and the estimate of the prompt; fill `_lengths` and `_hits`. True if anyone holds any."""
        if scan is None:
            return False
        choice.is_stream = scan.stream
        density = pool.density.bytes_per_token
        if self._index is None or pool.policy not in _USES_PREFIX:
            choice.prompt_tokens = max(1, int(scan.n_text_bytes / density))
            return False
        choice.can_learn = scan.n == 1
        choice.chain, choice.ends = scan.chain_with_ends(seed, order, self.settings.chunk_bytes)
        ends = memoryview(choice.ends).cast("I")
        n_bytes = ends[-1] if ends else 0
        most_tokens = self._index.match(choice.chain, self._lengths, self._hits) if choice.chain else 0
        if scan.n_token_ids:
            choice.prompt_tokens = max(1, scan.n_token_ids)
        elif most_tokens:
            # What this prefix really took is better known than what the rest will take.
            hit = max(self._hits)
            known = self._lengths[self._hits.index(hit)]
            choice.prompt_tokens = max(1, known + int((n_bytes - ends[hit - 1]) / density))
        else:
            choice.prompt_tokens = max(1, int(n_bytes / density))
        return most_tokens > 0

    def _pick(
        self, pool: Pool, choice: Choice, excluded: Collection[int], session: int | None, *, has_match: bool
    ) -> int:
        """Apply the pool's policy. Gives the handle of the reservation, or NOBODY."""
        ledger = self._ledger
        if pool.policy is RoutingPolicy.ROUND_ROBIN:
            choice.reason = "round_robin"
            row = pool.next_turn(lambda row: row not in excluded and ledger.is_open(row))
            return NOBODY if row is None else ledger.reserve(row, choice.prompt_tokens, 0)
        favourite = NOBODY if session is None else ledger.rendezvous(pool.rows, session, excluded)
        if pool.policy is RoutingPolicy.SESSION and favourite != NOBODY:
            choice.reason = "session"
            return ledger.reserve(favourite, choice.prompt_tokens, 0)
        candidates = pool.rows
        if pool.policy is RoutingPolicy.PREFIX and has_match:
            candidates = self._furthest(pool, excluded)
        return ledger.pick(
            candidates,
            self._lengths if has_match else None,
            choice.prompt_tokens,
            now_s=choice.chosen_s,
            excluded=excluded,
            favourite=favourite,
        )

    def _furthest(self, pool: Pool, excluded: Collection[int]) -> array[int]:
        """The open replicas that hold most of the prompt, however busy they are."""
        able = [row for row in pool.rows if row not in excluded and self._ledger.is_open(row)]
        most = max((self._lengths[row] for row in able), default=0)
        return array("I", [row for row in able if self._lengths[row] == most])

    def _settle(self, choice: Choice, *, has_match: bool) -> None:
        """Complete a choice that is reserved, and let the index hold its prompt."""
        row = self._ledger.replica_of(choice.handle)
        replica = self._by_row[row]
        choice.replica_id = replica.replica_id
        choice.queued_tokens = self._ledger.queued_tokens(row, choice.chosen_s)
        if has_match and self._hits[row]:
            choice.n_hits = self._hits[row]
            choice.matched_tokens = self._lengths[row]
            choice.matched_bytes = memoryview(choice.ends).cast("I")[choice.n_hits - 1]
            usable = min(choice.matched_tokens, choice.prompt_tokens - 1)
            choice.promised_tokens = usable // replica.block_tokens * replica.block_tokens
            choice.predicted_cached_tokens = self._ledger.predict(row, choice.prompt_tokens, choice.matched_tokens)
            if choice.predicted_cached_tokens and choice.reason == "load":
                choice.reason = "prefix"
        self._hold(replica, choice, choice.prompt_tokens)

    def _hold(self, replica: Replica, choice: Choice, prompt_tokens: int) -> None:
        """Let the index hold the prompt of a choice, whose length in tokens is `prompt_tokens` as far as known."""
        if self._index is None or not replica.has_index or not choice.chain:
            return
        positions = token_positions(choice.ends, prompt_tokens, choice.n_hits, choice.matched_tokens)
        try:
            self._index.insert(replica.row, choice.chain, positions)
        except MemoryError:
            replica.index_failures += 1  # routing goes on by load

    # ---- afterwards -----------------------------------------------------------------------------------------------

    def submitted(self, choice: Choice, submit_id: int) -> None:
        """Say under which id of its Link a request went out, so that load reports can count it."""
        self._ledger.submitted(choice.handle, submit_id)

    def started(self, choice: Choice) -> None:
        """Say that the first byte of an answer came. Optional: of streams, the prefill rate is learnt from it."""
        if choice.is_stream and choice.started_s is None:  # the first byte of any other answer is its last one
            choice.started_s = self._clock.monotonic_s()

    def finished(
        self, choice: Choice, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, is_ok: bool
    ) -> None:
        """Release the reservation and learn from the usage. Only the first call for a choice does anything.

        Call it for every choice, however it ended; token counts are 0 when unknown.
        """
        if choice.is_done:
            return
        choice.is_done = True
        # False: the replica was removed meanwhile (and perhaps another one has its name now).
        if not self._ledger.release(choice.handle):
            return
        replica = self._replicas[choice.replica_id]
        if prompt_tokens <= 0:
            if not is_ok:
                self._unhold(replica, choice)
            return
        if is_ok:
            self._learn(replica, choice, prompt_tokens, cached_tokens, completion_tokens)

    def _unhold(self, replica: Replica, choice: Choice) -> None:
        """Nothing was computed: take out what the choice added."""
        if self._index is not None and replica.has_index and choice.chain:
            self._index.remove(replica.row, choice.chain[8 * choice.n_hits :])

    def _learn(
        self, replica: Replica, choice: Choice, prompt_tokens: int, cached_tokens: int, completion_tokens: int
    ) -> None:
        now_s = self._clock.monotonic_s()
        rates = replica.rates
        if choice.started_s is not None or completion_tokens <= 1:
            first_s = (now_s if choice.started_s is None else choice.started_s) - choice.chosen_s
            # `queued_tokens` was read with the request's own reservation in it; count what it really took instead.
            others = max(0, choice.queued_tokens - max(1, choice.prompt_tokens - choice.predicted_cached_tokens))
            rates.learn_prefill(others + max(1, prompt_tokens - cached_tokens), first_s)
        rates.learn_service(now_s - choice.chosen_s)
        if choice.can_learn:
            ends = memoryview(choice.ends).cast("I")
            if ends:
                replica.pool.density.learn(n_bytes=ends[-1], n_tokens=prompt_tokens)
                self._hold(replica, choice, prompt_tokens)
            rates.learn_trust(promised_tokens=choice.promised_tokens, cached_tokens=cached_tokens)
            replica.count_prediction(predicted=choice.predicted_cached_tokens, cached=cached_tokens)
        self._ledger.set_rates(replica.row, rates.prefill_tokens_per_s, rates.service_s, rates.trust)

    # ---- what it knows --------------------------------------------------------------------------------------------

    def inflight(self, replica_id: str) -> int:
        """Requests of this process on a replica; 0 for an unknown one."""
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else self._ledger.inflight(replica.row)

    def snapshot(self) -> RouterView:
        """Everything a metric or a page may want. O(replicas)."""
        index = self._index
        return RouterView(
            replicas=tuple(self._view(replica) for replica in self._replicas.values()),
            index_bytes=0 if index is None else index.nbytes,
            index_max_bytes=self.settings.index_max_bytes,
            index_entries=0 if index is None else len(index),
            index_evictions=0 if index is None else index.evictions,
            bytes_per_token={model: pool.density.bytes_per_token for model, pool in self._pools.items()},
        )

    def _view(self, replica: Replica) -> ReplicaView:
        uses_index = self._index is not None and replica.has_index and replica.pool.policy in _USES_PREFIX
        return ReplicaView(
            replica_id=replica.replica_id,
            model=replica.pool.model,
            policy=replica.pool.policy.value,
            is_ready=replica.is_ready,
            inflight=self._ledger.inflight(replica.row),
            uncounted=self._ledger.uncounted(replica.row),
            index_state="approx" if uses_index else "off",
            held_chunks=0 if self._index is None or not replica.has_index else self._index.held_by(replica.row),
            prefill_tokens_per_s=replica.rates.prefill_tokens_per_s,
            service_s=replica.rates.service_s,
            trust=replica.rates.trust,
            answers=replica.answers,
            answers_within_block=replica.answers_within_block,
            predicted_cached_tokens=replica.predicted_cached_tokens,
            cached_tokens=replica.cached_tokens,
        )

    def explain(self, model: str, scan: Scan | None, *, seed: int, order: int = 0) -> tuple[CandidateView, ...]:
        """Show what `choose` would weigh, the cheapest first. Changes nothing."""
        pool = self._pools.get(model)
        if pool is None:
            return ()
        now_s = self._clock.monotonic_s()
        choice = Choice(replica_id="", handle=NOBODY, reason="load", chosen_s=now_s)
        has_match = self._look_up(pool, scan, choice, seed=seed, order=order)
        ends = memoryview(choice.ends).cast("I")
        views = []
        for row in pool.rows:
            n_hits = self._hits[row] if has_match else 0
            held = self._lengths[row] if has_match else 0
            views.append(
                CandidateView(
                    replica_id=self._by_row[row].replica_id,
                    is_open=self._ledger.is_open(row),
                    matched_bytes=ends[n_hits - 1] if n_hits else 0,
                    predicted_cached_tokens=self._ledger.predict(row, choice.prompt_tokens, held),
                    prompt_tokens=choice.prompt_tokens,
                    terms=CostTerms(*self._ledger.terms(row, choice.prompt_tokens, held, now_s)),
                )
            )
        return tuple(sorted(views, key=lambda view: (not view.is_open, view.terms.total_s)))

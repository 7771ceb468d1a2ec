"""The router of one gateway process: told of replicas and loads, asked for choices, told how they ended.

Everything that happens per request is in xinf/_fast/decide.pyx, whose class this one extends, so that `choose`,
`submitted`, `started` and `finished` run no Python. Here are names, settings and views.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from xinf._fast import decide
from xinf._fast.decide import Decider
from xinf._fast.scan import Scan
from xinf.core.clock import Clock
from xinf.core.records import RoutingPolicy
from xinf.router.cost import CostTerms
from xinf.router.load import LoadView
from xinf.router.residency import ResidencyUpdate
from xinf.router.settings import RouterSettings
from xinf.router.view import CandidateView, Repetition, ReplicaView, RouterView, Savings

_NUMBERS = {
    RoutingPolicy.AUTO: decide.AUTO,
    RoutingPolicy.LEAST_LOAD: decide.LEAST_LOAD,
    RoutingPolicy.ROUND_ROBIN: decide.ROUND_ROBIN,
    RoutingPolicy.SESSION: decide.SESSION,
    RoutingPolicy.PREFIX: decide.PREFIX,
}
_POLICIES = {number: policy for policy, number in _NUMBERS.items()}


class Router(Decider):
    """See the package's docstring."""

    def __init__(
        self, settings: RouterSettings | None = None, *, clock: Clock | None = None, turn: int | None = None
    ) -> None:
        """`clock`: the system's own when None. `turn`: where the rotation of ties begins; random when None."""
        self.settings = settings or RouterSettings()
        super().__init__(
            max_inflight=self.settings.max_inflight,
            index_max_bytes=self.settings.index_max_bytes,
            exact_index_max_bytes=self.settings.exact_index_max_bytes,
            chunk_bytes=self.settings.chunk_bytes,
            prior_prefill_tokens_per_s=self.settings.prior_prefill_tokens_per_s,
            prior_bytes_per_token=self.settings.prior_bytes_per_token,
            prior_service_s=self.settings.prior_service_s,
            clock=clock,
            turn=secrets.randbelow(1 << 16) if turn is None else turn,
        )

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
        """Enter a replica, or say what changed. A replica that is not ready is not chosen and keeps what it holds.

        `policy` is that of all replicas of the model.
        Raises: MemoryError.
        """
        self._enter(
            replica_id,
            model,
            _NUMBERS[policy],
            block_tokens=max(1, block_tokens),
            max_running=max_running or self.settings.prior_max_running,
            is_ready=is_ready,
        )

    def remove_replica(self, replica_id: str) -> None:
        """Forget a replica, what it holds and its reservations. Unknown ids are ignored."""
        self._leave(replica_id)

    def on_load(self, replica_id: str, load: LoadView) -> None:
        """Take in a load report. Reports of unknown replicas are ignored: they were on their way when it left."""
        self._report(
            replica_id,
            requests=load.running + load.waiting,
            waiting=load.waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            kv_blocks_used=load.kv_blocks_used,
            kv_blocks_total=load.kv_blocks_total,
            last_submit=load.last_submit,
        )

    # ---- what engines say of their caches -------------------------------------------------------------------------

    @property
    def wants_residency(self) -> bool:
        """Whether it has an index for what engines say."""
        return self.exact is not None

    def on_hello(self, replica_id: str, state: str, *, is_misformed: bool = False) -> None:
        """Take in how well an engine says that it knows its cache: "exact", "approx", "off", or "" for nothing.

        `is_misformed`: its prompts are chained in another form than those of its model, so what it says of chunks is no
        use. What was told of them before holds on, in the other case, until a snapshot comes.
        """
        self._misform(replica_id, is_misformed)
        self._say(replica_id, state)

    def on_residency(self, replica_id: str, update: ResidencyUpdate) -> None:
        """Take in which chunks an engine holds now, and which no more. Those of unknown replicas are ignored.

        Raises: ValueError when the arrays do not fit each other; MemoryError.
        """
        self._hear(
            replica_id,
            cleared=update.cleared,
            added=update.added,
            tokens=update.tokens,
            removed=update.removed,
            state=update.state,
        )

    # ---- what it knows --------------------------------------------------------------------------------------------

    def snapshot(self) -> RouterView:
        """Everything a metric or a page may want. O(replicas)."""
        index, exact, groups = self.index, self.exact, self._groups()
        return RouterView(
            replicas=tuple(self._view(replica_id) for replica_id in self._ids()),
            index_bytes=0 if index is None else index.nbytes,
            index_max_bytes=self.settings.index_max_bytes,
            index_entries=0 if index is None else len(index),
            index_evictions=0 if index is None else index.evictions,
            exact_index_bytes=0 if exact is None else exact.nbytes,
            exact_index_max_bytes=self.settings.exact_index_max_bytes,
            exact_index_entries=0 if exact is None else len(exact),
            exact_index_evictions=0 if exact is None else exact.evictions,
            bytes_per_token={model: group.bytes_per_token for model, group in groups.items()},
            repetitions={model: Repetition(*group.repetition) for model, group in groups.items()},
            savings={model: Savings(*group.savings) for model, group in groups.items()},
        )

    def _view(self, replica_id: str) -> ReplicaView:
        def make(*, policy: int, **fields: Any) -> ReplicaView:
            return ReplicaView(replica_id=replica_id, policy=_POLICIES[policy].value, **fields)

        return self._learnt(replica_id, make)

    def policy_of(self, replica_id: str) -> str:
        """The policy of a replica's model. Raises: KeyError for a replica that is not here."""
        return self._view(replica_id).policy

    def explain(
        self,
        model: str,
        scan: Scan | None,
        *,
        seed: int,
        exclude: Collection[str] = (),
        order: int = 0,
        session: bytes | None = None,
        chunk_bytes: int = 0,
    ) -> tuple[CandidateView, ...]:
        """Show what `choose` would weigh, and which it would pick: those that are open first, the cheapest in front.

        Changes nothing. O(replicas).
        """
        views = self._weigh(
            model,
            scan,
            _candidate,
            seed=seed,
            exclude=exclude,
            order=order,
            session=session,
            chunk_bytes=chunk_bytes,
        )
        return tuple(sorted(views, key=lambda view: (not view.is_open, view.terms.total_s)))


def _candidate(
    *,
    replica_id: str,
    index_state: str,
    is_ready: bool,
    is_open: bool,
    is_excluded: bool,
    reason: str | None,
    inflight: int,
    matched_bytes: int,
    matched_tokens: int,
    predicted_cached_tokens: int,
    prompt_tokens: int,
    terms: tuple[float, float, float, float],
) -> CandidateView:
    """Fields are named one by one: to collect and spread them takes as long again, for each replica of a sample."""
    closed = None if is_open else "full"
    if is_excluded:
        closed = "tried"
    if not is_ready:
        closed = "not_ready"
    return CandidateView(
        replica_id=replica_id,
        index_state=index_state,
        reason=reason,
        closed=closed,
        inflight=inflight,
        matched_bytes=matched_bytes,
        matched_tokens=matched_tokens,
        predicted_cached_tokens=predicted_cached_tokens,
        prompt_tokens=prompt_tokens,
        terms=CostTerms(*terms),
    )

from collections.abc import Callable
from typing import Protocol, TypeVar

from typing_extensions import disjoint_base

from xinf._fast.group import Group
from xinf._fast.ledger import Ledger
from xinf._fast.prefix import PrefixIndex

_View = TypeVar("_View")

SAYS: dict[str, int]
VIEWS: tuple[str, ...]
CAUSES: tuple[str, ...]

class _Clock(Protocol):
    def monotonic_s(self) -> float: ...

@disjoint_base
class Fleet:
    def __init__(
        self,
        *,
        max_inflight: int,
        index_max_bytes: int,
        exact_index_max_bytes: int,
        prior_prefill_tokens_per_s: float,
        prior_bytes_per_token: float,
        prior_service_s: float,
        clock: _Clock | None,
        turn: int,
    ) -> None: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def index(self) -> PrefixIndex | None: ...
    @property
    def exact(self) -> PrefixIndex | None: ...
    def inflight(self, replica_id: str) -> int: ...
    def _enter(
        self,
        replica_id: str,
        model: str,
        policy: int,
        *,
        block_tokens: int,
        max_running: int,
        is_ready: bool,
    ) -> None: ...
    def _leave(self, replica_id: str) -> None: ...
    def _report(
        self,
        replica_id: str,
        *,
        requests: int,
        waiting: int = 0,
        queued_prefill_tokens: int,
        kv_blocks_used: int,
        kv_blocks_total: int,
        last_submit: int,
    ) -> None: ...
    def _say(self, replica_id: str, state: str) -> None: ...
    def _misform(self, replica_id: str, is_misformed: bool) -> None: ...
    def _hear(
        self, replica_id: str, *, cleared: bool, added: bytes, tokens: bytes, removed: bytes, state: str
    ) -> bool: ...
    def _n_rows(self) -> int: ...
    def _ids(self) -> list[str]: ...
    def _groups(self) -> dict[str, Group]: ...
    def _learnt(self, replica_id: str, make: Callable[..., _View]) -> _View: ...

def _fail_allocation(k: int) -> None: ...

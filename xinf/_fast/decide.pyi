from collections.abc import Callable, Collection
from typing import Final, Protocol, TypeVar

from typing_extensions import disjoint_base

from xinf._fast.choice import Choice
from xinf._fast.group import Group
from xinf._fast.ledger import Ledger
from xinf._fast.prefix import PrefixIndex
from xinf._fast.scan import Scan

AUTO: Final[int]
LEAST_LOAD: Final[int]
ROUND_ROBIN: Final[int]
SESSION: Final[int]
PREFIX: Final[int]

_View = TypeVar("_View")

SAYS: dict[str, int]
VIEWS: tuple[str, ...]
CAUSES: tuple[str, ...]

class _Clock(Protocol):
    def monotonic_s(self) -> float: ...

@disjoint_base
class Decider:
    def __init__(
        self,
        *,
        max_inflight: int,
        index_max_bytes: int,
        exact_index_max_bytes: int = 0,
        chunk_bytes: int = 64,
        prior_prefill_tokens_per_s: float,
        prior_bytes_per_token: float,
        prior_service_s: float,
        clock: _Clock | None = None,
        turn: int = 0,
    ) -> None: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def index(self) -> PrefixIndex | None: ...
    @property
    def exact(self) -> PrefixIndex | None: ...
    def choose(
        self,
        model: str,
        scan: Scan | None,
        *,
        seed: int,
        exclude: Collection[str] = (),
        order: int = 0,
        session: bytes | None = None,
        chunk_bytes: int = 0,
    ) -> Choice | None: ...
    def submitted(self, choice: Choice, submit_id: int) -> None: ...
    def started(self, choice: Choice) -> None: ...
    def finished(
        self, choice: Choice, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, is_ok: bool
    ) -> None: ...
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
    def _weigh(
        self,
        model: str,
        scan: Scan | None,
        make: Callable[..., _View],
        *,
        seed: int,
        exclude: Collection[str] = (),
        order: int = 0,
        session: bytes | None = None,
        chunk_bytes: int = 0,
    ) -> list[_View]: ...

def _marks(scan: Scan, *, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[bytes, bytes]: ...
def _fail_allocation(k: int) -> None: ...

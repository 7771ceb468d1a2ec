from collections.abc import Callable, Collection
from typing import Final, Protocol, TypeVar

from typing_extensions import disjoint_base

from xinf._fast.choice import Choice
from xinf._fast.fleet import Fleet
from xinf._fast.scan import Scan

AUTO: Final[int]
LEAST_LOAD: Final[int]
ROUND_ROBIN: Final[int]
SESSION: Final[int]
PREFIX: Final[int]

_View = TypeVar("_View")

VIEWS: tuple[str, ...]

class _Clock(Protocol):
    def monotonic_s(self) -> float: ...

@disjoint_base
class Decider(Fleet):
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

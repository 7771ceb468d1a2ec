from typing import Final, final

BUCKETS_S: Final[tuple[float, ...]]
MAX_REASONS: Final[int]

@final
class Histogram:
    sum_s: float
    def observe(self, seconds: float) -> None: ...
    @property
    def counts(self) -> list[int]: ...

@final
class ModelCounters:
    in_flight: int
    retries: int
    stream_errors: int
    slow_readers: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    predicted_tokens: int
    cached_error: int
    first_byte: Histogram
    duration: Histogram
    def __new__(cls) -> ModelCounters: ...
    def began(self) -> None: ...
    def ended(self, status: int, duration_s: float, first_byte_s: float | None = None) -> None: ...
    def count_tokens(self, prompt: int, cached: int, completion: int, predicted: int) -> None: ...
    def count_decision(self, reason: str) -> None: ...
    def count_request(self, status: int) -> None: ...
    @property
    def requests(self) -> dict[str, int]: ...
    @property
    def reasons(self) -> dict[str, int]: ...

from typing import final

@final
class GatewayFrameWriter:
    def __new__(cls) -> GatewayFrameWriter: ...
    def hello(self, gateway: str, version: int, wants_residency: bool) -> None: ...
    def submit(
        self,
        id: int,  # noqa: A002
        head: bytes,
        body: bytes,
        priority: int,
        timeout_ms: int,
        trace: str,
        request_id: str,
    ) -> None: ...
    def cancel(self, id: int) -> None: ...  # noqa: A002
    def resync(self) -> None: ...
    def __len__(self) -> int: ...
    def take(self, max_bytes: int) -> bytes: ...
    def clear(self) -> None: ...

@final
class EngineFrameWriter:
    def __new__(cls) -> EngineFrameWriter: ...
    def hello(self, info: bytes) -> None: ...
    def start(self, id: int, status: int, headers_block: bytes) -> None: ...  # noqa: A002
    def chunk(self, id: int, data: bytes) -> None: ...  # noqa: A002
    def end(
        self,
        id: int,  # noqa: A002
        prompt: int,
        cached: int,
        completion: int,
        error: str,
        message: str,
        retryable: bool,
        queued_s: float,
    ) -> None: ...
    def load(
        self,
        running: int,
        waiting: int,
        queued_prefill_tokens: int,
        kv_blocks_used: int,
        kv_blocks_total: int,
        last_submit: int,
    ) -> None: ...
    def residency(
        self, sequence: int, cleared: bool, added: bytes, tokens: bytes, removed: bytes, state: str, is_partial: bool
    ) -> None: ...
    def following(self, message: bytes) -> None: ...
    @property
    def n_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def take(self) -> bytes: ...

def encode_head(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> bytes: ...
def encode_headers(headers: list[tuple[bytes, bytes]]) -> bytes: ...
def encode_submit(
    id: int,  # noqa: A002
    head: bytes,
    body: bytes,
    priority: int,
    timeout_ms: int,
    trace: str,
    request_id: str,
) -> bytes: ...
def _fail_allocation(k: int) -> None: ...

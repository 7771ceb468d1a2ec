"""What an engine is to the shim: one adapter per engine (`vllm`, `sim`), all driven through this interface.

The shim server owns gRPC, Links, frames, draining and status; the adapter owns the engine. A request arrives as the
client's bytes; the adapter answers through `Reply` and returns the usage. Cancelling the task that runs `handle` is how
a client's disconnect arrives; the adapter must then stop the engine's work for it before it lets CancelledError out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from xinf.core.errors import XinfError
from xinf.engine.residency import Residency

RawHeader = tuple[bytes, bytes]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the gateway sent it."""

    method: str
    path: str  # with the query string
    headers: Sequence[RawHeader] = ()
    body: bytes = b""
    priority: int = 0
    timeout_s: float | None = None
    trace: str = ""
    request_id: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a request took; summed over the parts when one request fans out (n > 1, lists of prompts)."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_s: float = 0.0


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is doing now."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0


class EngineDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine turned out to be once it was built; becomes EngineInfo on the wire."""

    engine: str
    engine_version: str
    model: str
    served_names: tuple[str, ...]
    block_tokens: int
    kv_blocks: int
    max_model_len: int
    max_running: int
    segment_order: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()  # "POST /v1/chat/completions"
    tasks: tuple[str, ...] = ()  # "generate", "embed"
    residency: str = "off"  # "exact", "approx"; see xinf/engine/residency.py
    chunk_bytes: int = 0  # of the chains of prompts, with where they begin; 0: no matter
    chain_seed: int = 0
    loras: tuple[str, ...] = ()  # names of adapters that can be asked for


class Reply(Protocol):
    """Where an adapter puts the answer. Calls never block; order is start, chunks."""

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:
        """Begin the answer."""

    def chunk(self, data: bytes) -> None:
        """Send bytes as they are: a JSON body or a piece of it, or complete SSE events."""


class FinalReply(Reply, Protocol):
    """A reply that is told the end too: either `done` or `failed`, once, unless the work is cancelled."""

    def done(self, usage: Usage) -> None:
        """The answer is complete."""

    def failed(self, error: XinfError) -> None:
        """There will be no (further) answer: EngineDied, EngineError."""


class Work(Protocol):
    """What an engine does for one request."""

    def cancel(self) -> object:
        """Stop it; the reply hears nothing more. Harmless when it is over."""


class Adapter(Protocol):
    """One engine. All methods run on the shim's event loop unless they say otherwise."""

    def build(self, progress: Callable[[str], None]) -> None:
        """Build the engine: load the model, allocate the cache. Runs in the main thread before any event loop or gRPC
        exists, and blocks. `progress` takes a sentence for people.

        Raises: EngineStartFailed with a `cause` of docs/reference/errors.md.
        """

    async def open(self) -> EngineDescription:
        """Attach the built engine to the running event loop and say what it is."""

    async def warm_up(self) -> None:
        """Make one token (or one embedding) through the whole path. Raises: EngineStartFailed."""

    async def handle(self, request: Request, reply: Reply) -> Usage:
        """Answer one request. Client errors are answers (status 4xx through `reply`), not exceptions.

        Raises: EngineDied, EngineError; CancelledError after the engine has let go of the request.
        """

    def load(self) -> LoadReport:
        """Report the load, cheaply: called up to once per engine step."""

    def residency(self) -> Residency:
        """What the engine's cache holds; after `open`."""

    def on_step(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each engine step or change of load."""

    def last_step_age_s(self) -> float | None:
        """Seconds since the engine last made progress; None while it has nothing to do. Feeds the watchdog."""

    def dead_reason(self) -> str | None:
        """Why the engine can serve nothing any more, None while it can."""

    async def load_lora(self, name: str, path: str) -> None: ...

    async def unload_lora(self, name: str) -> None: ...

    async def sleep(self, level: int) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None:
        """End the engine and its processes."""


@runtime_checkable
class CallbackAdapter(Adapter, Protocol):
    """An adapter that can answer without a task per request."""

    def begin(self, request: Request, reply: FinalReply) -> Work | None:
        """Begin to answer one request, as `handle` does. None when it is over already.

        Calls `reply` from the event loop, also before it returns. Raises nothing on purpose.
        """

"""The prompts in flight: each one's text bound to its tokens, and its blocks counted as held while it runs.

    begin    body ──scan──▶ chunks ──bind──▶ positions ──▶ BlockTable.register     the overlay begins
    answered its text, as far as it makes the same tokens again ──▶ BlockTable.extend
    end      LINGER_S later ──▶ BlockTable.release                                 events had the time to come

What an engine says of its blocks arrives after the answer did; so a request's blocks count as held from its start until
a little after its end. Chunks are hashed as gateways do it, apart from them: the same code, the same seed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable

import msgspec

from xinf._fast.residency import BlockTable
from xinf._fast.scan import Scan, ScanError, scan
from xinf.core.seed import chain_seed, lora_seed
from xinf.engine.residency import Residency

# Events were seen to arrive up to 31 ms after the step they tell of.
LINGER_S = 0.05
# How often bindings of blocks that left long ago are dropped.
COLLECT_S = 1.0


class Canon(msgspec.Struct, frozen=True):
    """How the prompts of a model are chained; `EngineInfo` says it to gateways."""

    model: str
    order: int  # of `Scan.chain`
    chunk_bytes: int

    def seed(self, lora: str) -> int:
        """Where a chain begins. `lora`: the adapter's name, empty for none."""
        seed = chain_seed(self.model)
        return lora_seed(seed, lora) if lora else seed


# Finds the text of a request in the tokens that the engine was given: (scan, seed) -> its chunks and their positions.
Bind = Callable[[Scan, int], tuple[bytes, bytes]]


class Registered:
    """One prompt in flight."""

    __slots__ = ("chain", "handle", "positions", "table", "tokens")

    def __init__(self, table: BlockTable, handle: int, chain: bytes, positions: bytes, tokens: array[int]) -> None:
        self.table = table
        self.handle = handle
        self.chain = chain
        self.positions = positions
        self.tokens = tokens


class Prompts:
    """All of one engine. Lives on the shim's event loop."""

    def __init__(self, canon: Canon, residency: Residency) -> None:
        self.canon = canon
        self._residency = residency
        self._leaving: deque[tuple[float, Registered]] = deque()  # when; in order
        self._timer: asyncio.TimerHandle | None = None
        self._collector: asyncio.TimerHandle | None = None
        self.n_unbound = 0  # prompts that could not be bound: they are only ever under-predicted

    def begin(self, body: bytes, tokens: array[int], bind: Bind, *, lora: str = "", salt: int = 0) -> Registered | None:
        """Note a prompt that the engine begins with. None if its text cannot be told.

        `tokens`: uint32, the whole prompt. `salt`: keeps the engine's blocks of equal tokens apart.
        """
        try:
            chain, positions = bind(scan(body), self.canon.seed(lora))
        except ScanError:
            self.n_unbound += 1  # of a route whose body is no JSON
            return None
        table = self._residency.table
        if table is None:
            return None
        handle = table.register(tokens, chain, positions, salt=salt)
        self._residency.changed()
        return Registered(table, handle, chain, positions, tokens)

    def answered(self, registered: Registered, tokens: array[int], chain: bytes, positions: bytes) -> None:
        """Note what the engine has computed beyond the prompt and a next prompt will have again.

        `tokens`: of the answer. `chain`, `positions`: of its chunks; positions count from the prompt's first token.
        """
        registered.table.extend(
            registered.handle,
            registered.tokens + tokens,
            registered.chain + chain,
            registered.positions + positions,
        )
        self._residency.changed()

    def end(self, registered: Registered) -> None:
        """The engine is done with a prompt, however it ended."""
        loop = asyncio.get_running_loop()
        self._leaving.append((loop.time() + LINGER_S, registered))
        if self._timer is None:
            self._timer = loop.call_later(LINGER_S, self._release)

    def clear(self) -> None:
        """The engine forgot everything that no request holds. What it says of that itself comes later."""
        if self._residency.table is not None:
            self._residency.table.clear()
        self._residency.changed()

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        leaving = self._leaving
        while leaving and leaving[0][0] <= now_s + 0.001:
            registered = leaving.popleft()[1]
            registered.table.release(registered.handle)
        self._timer = loop.call_at(leaving[0][0], self._release) if leaving else None
        self._residency.changed()
        if self._collector is None:
            self._collector = loop.call_later(COLLECT_S, self._collect)

    def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        self._collector = None
        table = self._residency.table
        if table is None:
            return
        if table.collect(loop.time()):
            self._residency.changed()
        if len(table) > table.resident:
            self._collector = loop.call_later(COLLECT_S, self._collect)

    def close(self) -> None:
        for timer in (self._timer, self._collector):
            if timer is not None:
                timer.cancel()

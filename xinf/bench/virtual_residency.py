"""What a simulated engine's cache holds, told to the router as a shim tells its gateways.

    prompt ──Aligner──▶ chunks, positions ─┐
    blocks stored and removed ─────────────┴▶ BlockTable ──take──▶ ResidencyUpdate ──▶ `tell`

It is `xinf.engine`'s bookkeeping without a Link: a prompt's blocks count as held from its submit until LINGER_S after
its end, an answer's from its end on. A test compares the two.

A submit costs O(bytes of the prompt), tens of microseconds for a thousand tokens; a step O(what changed).
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable

from xinf._fast.answer import continue_chain
from xinf._fast.bind import Aligner
from xinf._fast.residency import BlockTable
from xinf._fast.scan import TOOLS_FIRST, Scan
from xinf.router import ResidencyUpdate
from xinf.sim import BYTES_PER_TOKEN, SimEngine, SimSequence, Timeline

LINGER_S = 0.05  # as shims do: what an engine says of its blocks comes after its answers
_COLLECT_S = 1.0
_BYTES = [bytes([byte]) for byte in range(256)]
_OPEN, _CLOSE = b"<|im_start|>", b"<|im_end|>\n"
# What prompt_text.py puts right before a content.
_HEADERS = {role: _CLOSE + _OPEN + role + b"\n" for role in (b"user", b"assistant", b"tool")}
_HEADERS |= {role: _OPEN + role + b"\n" for role in (b"system", b"developer")}


class Telling(enum.Enum):
    """What engines say of their caches."""

    EXACT = "exact"  # what they hold, from their own events
    APPROX = "approx"  # what a cache of their size would hold of what they were asked
    OFF = "off"  # nothing: the router goes by what it routed


class Held:
    """A prompt that is in flight or just over."""

    __slots__ = ("chain", "handle", "positions", "tokens")

    def __init__(self, handle: int, chain: bytes, positions: bytes, tokens: array[int]) -> None:
        self.handle = handle
        self.chain = chain
        self.positions = positions
        self.tokens = tokens


class VirtualResidency:
    """Of one engine. `tell`: hears what changed, at the time of the change."""

    def __init__(
        self,
        engine: SimEngine,
        telling: Telling,
        *,
        timeline: Timeline,
        seed: int,
        chunk_bytes: int,
        tell: Callable[[ResidencyUpdate], None],
    ) -> None:
        """`telling`: not OFF. `seed`, `chunk_bytes`: those of the router's chains."""
        settings = engine.settings
        self._timeline = timeline
        self._seed = seed
        self._chunk_bytes = chunk_bytes
        self._block_tokens = settings.block_tokens
        self._tell = tell
        self._aligner = Aligner(_BYTES, headers=_HEADERS)
        self._table = BlockTable(
            settings.block_tokens, capacity_blocks=settings.kv_blocks if telling is Telling.APPROX else None
        )
        self._is_collecting = False
        if telling is Telling.EXACT:
            engine.on_stored = self._store
            engine.cache.on_removed = self._remove
        tell(ResidencyUpdate(cleared=True, state=telling.value))

    def begin(self, scanned: Scan, prompt: bytes) -> Held:
        """Note a prompt that the engine is given."""
        # Each byte as a token of its own, 4 bytes wide: tokens of the engine end where the text allows it.
        letters = prompt.decode("latin-1").encode("utf-32-le")
        bound = self._aligner.bind(scanned, letters, seed=self._seed, order=TOOLS_FIRST, chunk_bytes=self._chunk_bytes)
        ends = array("I", bound.positions)
        positions = array("I", [end // BYTES_PER_TOKEN for end in ends]).tobytes()
        tokens = array("I", prompt[: len(prompt) // BYTES_PER_TOKEN * BYTES_PER_TOKEN])
        return Held(self._table.register(tokens, bound.chain, positions), bound.chain, positions, tokens)

    def end(self, held: Held, prompt: bytes, answer: bytes) -> None:
        """The engine answered a prompt."""
        # The last token was sampled and not computed.
        n_tokens = (len(prompt) + max(0, len(answer) - BYTES_PER_TOKEN)) // BYTES_PER_TOKEN
        n_before = len(held.tokens)
        if n_tokens // self._block_tokens > n_before // self._block_tokens:
            first = n_before * BYTES_PER_TOKEN
            tokens = array("I", (prompt[first:] + answer)[: (n_tokens - n_before) * BYTES_PER_TOKEN])
            first_end = first + BYTES_PER_TOKEN - len(prompt)
            ends = array("I", range(first_end, first_end + len(tokens) * BYTES_PER_TOKEN, BYTES_PER_TOKEN))
            chain, positions = continue_chain(
                held.chain, answer, ends, n_before=n_before, chunk_bytes=self._chunk_bytes
            )
            self._table.extend(held.handle, held.tokens + tokens, held.chain + chain, held.positions + positions)
        self._timeline.call_at(self._timeline.now_s() + LINGER_S, lambda: self._release(held))

    def flush(self) -> None:
        """Tell what changed since the last time."""
        taken = self._table.take()
        if taken is not None:
            self._tell(ResidencyUpdate(added=taken[0], tokens=taken[1], removed=taken[2]))

    def _release(self, held: Held) -> None:
        self._table.release(held.handle)
        self.flush()
        if not self._is_collecting:
            self._is_collecting = True
            self._timeline.call_at(self._timeline.now_s() + _COLLECT_S, self._collect)

    def _collect(self) -> None:
        """Drop the bindings of blocks that left long ago."""
        self._is_collecting = False
        if self._table.collect(self._timeline.now_s()):
            self.flush()
        if len(self._table) > self._table.resident:
            self._is_collecting = True
            self._timeline.call_at(self._timeline.now_s() + _COLLECT_S, self._collect)

    def _store(self, sequence: SimSequence, first_block: int, hashes: list[int]) -> None:
        parent = sequence.shared[first_block - 1] if first_block else None
        tokens = sequence.tokens(first_block, len(hashes), self._block_tokens)
        self._table.stored(array("Q", hashes), parent, tokens)

    def _remove(self, hashes: list[int]) -> None:
        self._table.removed(array("Q", hashes))

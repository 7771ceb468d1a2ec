"""What the simulated engine's cache holds, as a real engine would tell it: blocks stored, blocks removed.

A token is four bytes of the rendered prompt, so binding is exact wherever a content stands verbatim in it.
"""

from __future__ import annotations

import hashlib
from array import array

from xinf._fast.answer import continue_chain
from xinf._fast.bind import Aligner
from xinf._fast.residency import BlockTable
from xinf._fast.scan import TOOLS_FIRST, Scan
from xinf.chat import Template
from xinf.engine.prompts import Canon, Prompts, Registered
from xinf.engine.residency import Residency, State
from xinf.engine.template_habits import find_habits, stable_part
from xinf.sim import BYTES_PER_TOKEN, SimEngine, SimSequence, SimSettings

# A block of text is no smaller than a chunk.
_MAX_CHUNK_BYTES = 64
_MIN_CHUNK_BYTES = 16
_BYTES = [bytes([byte]) for byte in range(256)]


def chunk_bytes_for(block_tokens: int) -> int:
    """How much text a chunk has: no more than a block."""
    return max(_MIN_CHUNK_BYTES, min(_MAX_CHUNK_BYTES, block_tokens * BYTES_PER_TOKEN))


class SimResidency:
    """Of one engine."""

    def __init__(
        self, engine: SimEngine, settings: SimSettings, state: State, *, model: str, template: Template
    ) -> None:
        self._block_tokens = settings.block_tokens
        self.canon = Canon(model, TOOLS_FIRST, chunk_bytes_for(settings.block_tokens))
        self._table: BlockTable | None = None
        self._prompts: Prompts | None = None
        if not settings.cache:
            state = State.OFF
        if state is not State.OFF:
            capacity = settings.kv_blocks if state is State.APPROX else None
            self._table = BlockTable(settings.block_tokens, capacity_blocks=capacity)
        self.residency = Residency(self._table, state)
        if self._table is None:
            return
        self._habits = find_habits(
            lambda messages, has_header: template.render(list(messages), tools=None, add_generation_prompt=has_header)
        )
        self._aligner = Aligner(_BYTES, headers=self._habits.headers)
        self._prompts = Prompts(self.canon, self.residency)
        if state is State.EXACT:
            engine.on_stored = self._store
            engine.cache.on_removed = self._remove

    def begin(self, body: bytes, prompt: bytes, *, lora: str, salt: str | None) -> Registered | None:
        """Note a prompt that is handed to the engine. `salt`: what its blocks are hashed with."""
        if self._prompts is None:
            return None
        tokens = array("I", prompt[: len(prompt) // BYTES_PER_TOKEN * BYTES_PER_TOKEN])
        # Each byte as a token of its own, 4 bytes wide.
        letters = prompt.decode("latin-1").encode("utf-32-le")

        def bind(scanned: Scan, seed: int) -> tuple[bytes, bytes]:
            canon = self.canon
            bound = self._aligner.bind(scanned, letters, seed=seed, order=canon.order, chunk_bytes=canon.chunk_bytes)
            ends = array("I", bound.positions)
            return bound.chain, array("I", [end // BYTES_PER_TOKEN for end in ends]).tobytes()

        return self._prompts.begin(body, tokens, bind, lora=lora, salt=_salt_number(salt))

    def end(self, registered: Registered, prompt: bytes, answer: bytes) -> None:
        """The engine is done with a prompt. `answer`: empty for one that no next prompt goes on from."""
        assert self._prompts is not None
        answer = stable_part(answer.decode(), self._habits).encode()
        # The last token was sampled and not computed.
        n_tokens = (len(prompt) + max(0, len(answer) - BYTES_PER_TOKEN)) // BYTES_PER_TOKEN
        n_before = len(registered.tokens)
        if answer and n_tokens // self._block_tokens > n_before // self._block_tokens:
            first = n_before * BYTES_PER_TOKEN
            tokens = array("I", (prompt[first:] + answer)[: (n_tokens - n_before) * BYTES_PER_TOKEN])
            first_end = first + BYTES_PER_TOKEN - len(prompt)
            ends = array("I", range(first_end, first_end + len(tokens) * BYTES_PER_TOKEN, BYTES_PER_TOKEN))
            chain, positions = continue_chain(
                registered.chain, answer, ends, n_before=n_before, chunk_bytes=self.canon.chunk_bytes
            )
            self._prompts.answered(registered, tokens, chain, positions)
        self._prompts.end(registered)

    def clear(self) -> None:
        """The engine forgot what nobody holds."""
        if self._prompts is not None:
            self._prompts.clear()

    def close(self) -> None:
        if self._prompts is not None:
            self._prompts.close()

    # ---- what the engine says -------------------------------------------------------------------------------------

    def _store(self, sequence: SimSequence, first_block: int, hashes: list[int]) -> None:
        assert self._table is not None
        parent = sequence.shared[first_block - 1] if first_block else None
        tokens = sequence.tokens(first_block, len(hashes), self._block_tokens)
        self._table.stored(array("Q", hashes), parent, tokens, salt=_salt_number(sequence.salt))
        self.residency.changed()

    def _remove(self, hashes: list[int]) -> None:
        assert self._table is not None
        self._table.removed(array("Q", hashes))
        self.residency.changed()


def _salt_number(salt: str | None) -> int:
    if not salt:
        return 0
    return int.from_bytes(hashlib.sha256(salt.encode("utf-8", "surrogateescape")).digest()[:8], "little")

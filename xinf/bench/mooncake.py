"""Traces in the Mooncake format: when, how long, and which blocks of the prompt are the same as others'.

A line is `{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}`: milliseconds,
tokens, tokens, and one id for each started block of 512 tokens of the prompt. Equal ids are equal blocks with equal
blocks before them. Source: kvcache-ai/Mooncake, FAST25-release/traces.

The text of a block is made from its id (and the seed) alone, 512 words of it, so that whoever hashes text finds exactly
the sharing that the trace had.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from xinf.bench.route_session import Message, RouteSession, Step
from xinf.bench.words import Words
from xinf.core.errors import InvalidRequest, NotFound

_KEPT_BLOCKS = 8192  # of text, 2 KB each
_BYTES_PER_WORD = 4
_SHOWN_ERRORS = 3


class TraceLine(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace. Fields that it has besides are skipped."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


class Trace:
    """Requests of a trace in the order of their times; each is a session of its own."""

    def __init__(self, lines: Sequence[TraceLine], *, seed: int, block_tokens: int = 512, speed: float = 1.0) -> None:
        """`speed`: 2 is twice as fast as the trace was."""
        self._lines = sorted(lines, key=lambda line: line.timestamp)
        self._first_ms = self._lines[0].timestamp
        self._ms_per_s = 1000.0 * speed
        self._block_tokens = block_tokens
        self._words = Words(seed)
        self._block = lru_cache(_KEPT_BLOCKS)(self._make_block)
        self.n_sessions: int | None = len(self._lines)

    def session(self, number: int) -> RouteSession:
        """Give the request of this number."""
        line = self._lines[number]
        text = "".join(map(self._block, line.hash_ids))
        prompt = Message("user", text[: line.input_length * _BYTES_PER_WORD - 1])
        return RouteSession((Step((prompt,), max(1, line.output_length)),))

    def at_s(self, number: int) -> float | None:
        """When it was sent, from the first one on."""
        return (self._lines[number].timestamp - self._first_ms) / self._ms_per_s

    def _make_block(self, hash_id: int) -> str:
        return self._words.text(f"block {hash_id}", self._block_tokens) + " "


def read_trace(path: str | Path, *, seed: int, block_tokens: int = 512, speed: float = 1.0) -> Trace:
    """Raises: NotFound; InvalidRequest that names the lines that are wrong."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise NotFound(
            f"cannot read the trace {path}: {error.strerror}", remedy="name a JSONL file in the Mooncake format"
        ) from error
    lines, wrong = [], []
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        try:
            lines.append(_read_line(text, block_tokens))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f", and {len(wrong) - _SHOWN_ERRORS} more lines" if len(wrong) > _SHOWN_ERRORS else ""
        raise InvalidRequest(
            f"{path} is no Mooncake trace: {'; '.join(wrong[:_SHOWN_ERRORS])}{more}",
            remedy='a line is {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}',
        )
    if not lines:
        raise InvalidRequest(f"the trace {path} holds no requests", remedy="write one JSON object per line")
    return Trace(lines, seed=seed, block_tokens=block_tokens, speed=speed)


_DECODER = msgspec.json.Decoder(TraceLine)


def _read_line(text: bytes, block_tokens: int) -> TraceLine:
    try:
        line = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if line.input_length < 1:
        raise ValueError(f"input_length is {line.input_length}, must be at least 1")
    if line.output_length < 0 or line.timestamp < 0:
        raise ValueError(f"output_length is {line.output_length} and timestamp {line.timestamp:g}, must not be below 0")
    n_blocks = -(-line.input_length // block_tokens)
    if len(line.hash_ids) != n_blocks:
        raise ValueError(f"{len(line.hash_ids)} hash_ids for {line.input_length} tokens, which are {n_blocks} blocks")
    return line

"""What the engine's cache held when: its KV events in order of time, read after the run.

    block of a prompt ──▶ own key: chained hash over token ids, from LoRA name and salt ──▶ [ (from, until), ... ]

With a prompt's token ids it tells what a walk with a tokenizer would have predicted, and whether a block that was not
served had been there when the request was sent: a race that nobody outside the engine can win.
"""

from __future__ import annotations

import hashlib
import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

# What an event needs to get to the gateway: a block that went so shortly before a request is not known to be gone.
LAG_S = 0.05


class Tape:
    """Of one run of an engine."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._spans: dict[bytes, list[list[float]]] = {}  # key -> from, until
        self._copies: dict[bytes, int] = {}
        self._keys: dict[int | bytes, bytes] = {}  # the engine's hash -> key
        self.n_stored = 0
        self.n_removed = 0
        self.n_orphans = 0

    @classmethod
    def read(cls, path: Path, block_tokens: int) -> Tape:
        """Read a file of recorder.py."""
        tape = cls(block_tokens)
        for timestamp, events in _batches(path.read_bytes()):
            for event in events:
                tape.add(timestamp, event)
        return tape

    def add(self, at_s: float, event: dict[str, Any]) -> None:
        """Take an event. Times are those of time.time() on the engine's host."""
        match event["type"]:
            case "BlockStored":
                self._store(at_s, event)
            case "BlockRemoved":
                for number in event["block_hashes"]:
                    self._remove(at_s, number)
            case "AllBlocksCleared":
                for key, copies in self._copies.items():
                    if copies:
                        self._spans[key][-1][1] = at_s
                self._copies.clear()

    def _store(self, at_s: float, event: dict[str, Any]) -> None:
        hashes, tokens, size = event["block_hashes"], event["token_ids"], event["block_size"]
        parent = event["parent_block_hash"]
        extra = event.get("extra_keys") or [None]
        lora = event.get("lora_name") or ""
        salts = [each for each in extra[0] or () if each != lora]
        key = root(lora, salts[0] if salts else "") if parent is None else self._keys.get(parent)
        if key is None:
            self.n_orphans += len(hashes)
            return
        for number, start in zip(hashes, range(0, len(tokens), size), strict=True):
            key = _next(key, tokens[start : start + size])
            self._keys[number] = key
            self._copies[key] = self._copies.get(key, 0) + 1
            if self._copies[key] == 1:
                self._spans.setdefault(key, []).append([at_s, math.inf])
            self.n_stored += 1

    def _remove(self, at_s: float, number: int | bytes) -> None:
        key = self._keys.get(number)
        if key is None or not self._copies.get(key):
            return
        self.n_removed += 1
        self._copies[key] -= 1
        if not self._copies[key]:
            self._spans[key][-1][1] = at_s

    def keys(self, tokens: Sequence[int], lora: str, salt: str) -> list[bytes]:
        """The keys of a prompt's whole blocks."""
        size = self._block_tokens
        key = root(lora, salt)
        found = []
        for start in range(0, len(tokens) - size + 1, size):
            key = _next(key, tokens[start : start + size])
            found.append(key)
        return found

    def held(self, key: bytes, at_s: float) -> bool:
        """Whether the cache had a block."""
        return any(since <= at_s < until for since, until in self._spans.get(key, ()))

    def left(self, key: bytes, after_s: float, until_s: float) -> bool:
        """Whether a block went from the cache in a span of time."""
        return any(after_s < until <= until_s for _, until in self._spans.get(key, ()))


def root(lora: str, salt: str) -> bytes:
    """The key before the first block."""
    return hashlib.blake2b(f"{lora}\0{salt}".encode(), digest_size=8).digest()


def _next(key: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(key + array("I", tokens).tobytes(), digest_size=8).digest()


def _batches(content: bytes) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    at = 0
    while at + 4 <= len(content):
        (length,) = struct.unpack_from("<I", content, at)
        payload = content[at + 4 : at + 4 + length]
        if len(payload) < length:
            return  # the recorder was ended in the middle of one
        timestamp, events, *_ = msgspec.msgpack.decode(payload)
        yield timestamp, events
        at += 4 + length

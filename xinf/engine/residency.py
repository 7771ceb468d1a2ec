"""What the engine's cache holds, told to every gateway that asks.

    Prompts ─┐                                        ┌─▶ Feed ──put──▶ Residency messages of one Link
    events  ─┴▶ BlockTable ──take──▶ Residency.flush ─┴─▶ Feed ...

A flush takes what changed since the last one and hands the same bytes to each feed. A feed begins with everything that
is announced (a snapshot, in pieces), and does so again when its gateway asks or has let too much pile up.

Invariants: what a gateway has applied up to a message is what was announced when that message was made; the memory of
a feed is bounded, whether its gateway reads or not.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from xinf._fast.residency import BlockTable

# Of a snapshot, in one frame: 12 bytes each. To apply one holds up a gateway for a millisecond at most.
PIECE_ENTRIES = 16_384
# A gateway that lets so much wait gets a snapshot instead.
FEED_BYTES = 8 << 20


class State(enum.Enum):
    """How well a replica's residency is known."""

    EXACT = "exact"  # from the engine's own events
    APPROX = "approx"  # from what it was asked, as a cache of its size would hold it
    OFF = "off"  # it keeps nothing that another request could use


class Delta(NamedTuple):
    """What changed, in the order of the message. Hashes are 8 bytes each, tokens 4, little-endian."""

    is_cleared: bool
    added: bytes
    tokens: bytes
    removed: bytes


class ResidencyWriter(Protocol):
    """What a feed is put into."""

    def residency(
        self,
        sequence: int,
        cleared: bool,
        added: bytes,
        tokens: bytes,
        removed: bytes,
        state: str,
        is_partial: bool,
    ) -> None: ...


class Account(Protocol):
    """Tells how well the engine's events are followed."""

    def serialized(self) -> bytes:
        """A Following of the Link, as of now."""


class Residency:
    """Of one engine. Lives on the shim's event loop. `account`: None where no events are followed."""

    def __init__(self, table: BlockTable | None, state: State) -> None:
        """`table`: None for an engine that keeps nothing."""
        self.table = table
        self.state = state
        self.account: Account | None = None
        self._feeds: set[Feed] = set()
        self._is_due = False
        self._n_clears = 0 if table is None else table.n_clears

    def open(self, wake: Callable[[], None]) -> Feed:
        """Begin a feed; `wake` is called when there is something to put."""
        feed = Feed(self, wake)
        self._feeds.add(feed)
        return feed

    def close(self, feed: Feed) -> None:
        self._feeds.discard(feed)

    def changed(self) -> None:
        """The table may have changed: tell it once this turn of the event loop is over."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def set_state(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            for feed in self._feeds:
                feed.state_changed()

    def replace(self, table: BlockTable, state: State) -> None:
        """Go on with another table: what the one before said does not hold any more."""
        self.table = table
        self._n_clears = table.n_clears
        self.state = state
        for feed in self._feeds:
            feed.restart()

    def flush(self) -> None:
        """Hand what changed to the feeds."""
        self._is_due = False
        table = self.table
        if table is None or (taken := table.take()) is None:
            return
        delta = Delta(table.n_clears != self._n_clears, *taken)
        self._n_clears = table.n_clears
        for feed in self._feeds:
            feed.add(delta)


class Feed:
    """One gateway's."""

    def __init__(self, residency: Residency, wake: Callable[[], None]) -> None:
        self._residency = residency
        self._wake = wake
        self._sequence = 0
        self._waiting: deque[Delta] = deque()
        self._n_bytes = 0
        self._is_whole_due = True
        self._n_pieces = 0  # of the snapshot, that still wait
        self._told_state: State | None = None

    def restart(self) -> None:
        """Send everything anew: the gateway lost a part."""
        self._forget()
        self._is_whole_due = True
        self._wake()

    def state_changed(self) -> None:
        self._wake()

    def add(self, delta: Delta) -> None:
        """Something changed."""
        if self._is_whole_due:
            return  # the snapshot will have it
        self._waiting.append(delta)
        self._n_bytes += len(delta.added) + len(delta.tokens) + len(delta.removed)
        if self._n_bytes > FEED_BYTES and not self._n_pieces:
            self.restart()
        else:
            self._wake()

    def put(self, writer: ResidencyWriter) -> bool:
        """Put the next message, if there is one. Returns whether more wait."""
        if self._is_whole_due:
            self._is_whole_due = False
            self._cut_snapshot()
        state = self._residency.state
        if not self._waiting and state is self._told_state:
            return False
        delta = self._waiting.popleft() if self._waiting else Delta(False, b"", b"", b"")
        self._n_bytes -= len(delta.added) + len(delta.tokens) + len(delta.removed)
        self._sequence += 1
        self._n_pieces = max(0, self._n_pieces - 1)
        writer.residency(
            self._sequence,
            delta.is_cleared,
            delta.added,
            delta.tokens,
            delta.removed,
            "" if state is self._told_state else state.value,
            self._n_pieces > 0,
        )
        self._told_state = state
        return bool(self._waiting)

    def _forget(self) -> None:
        self._waiting.clear()
        self._n_bytes = 0
        self._n_pieces = 0
        self._told_state = None

    def _cut_snapshot(self) -> None:
        """Let everything that is announced wait, in pieces, the first of which clears."""
        self._forget()
        table = self._residency.table
        hashes, tokens = (b"", b"") if table is None else table.snapshot()
        n_entries = len(tokens) // 4
        for start in range(0, max(1, n_entries), PIECE_ENTRIES):
            end = min(n_entries, start + PIECE_ENTRIES)
            piece = Delta(start == 0, hashes[8 * start : 8 * end], tokens[4 * start : 4 * end], b"")
            self._waiting.append(piece)
            self._n_bytes += 12 * (end - start)
        self._n_pieces = len(self._waiting)

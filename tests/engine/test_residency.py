"""Feeds of what an engine holds: whatever a gateway has applied is what was announced."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

import pytest

from xinf._fast.residency import BlockTable
from xinf.engine import residency as module
from xinf.engine.residency import Residency, State

BLOCK = 4


def packed(values: list[int], letter: str) -> bytes:
    return struct.pack(f"<{len(values)}{letter}", *values)


class Gateway:
    """Applies messages as a gateway does."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.sequence = 0
        self.state = ""
        self.is_partial = False
        self.n_messages = 0
        self.n_clears = 0

    def residency(
        self, sequence: int, cleared: bool, added: bytes, tokens: bytes, removed: bytes, state: str, is_partial: bool
    ) -> None:
        assert sequence == self.sequence + 1
        self.sequence = sequence
        self.n_messages += 1
        if cleared:
            self.held.clear()
            self.n_clears += 1
        hashes = struct.unpack(f"<{len(added) // 8}Q", added)
        self.held.update(zip(hashes, struct.unpack(f"<{len(tokens) // 4}I", tokens), strict=True))
        for chunk in struct.unpack(f"<{len(removed) // 8}Q", removed):
            del self.held[chunk]
        self.state = state or self.state
        self.is_partial = is_partial


def register(table: BlockTable, *, first_token: int, n_blocks: int) -> int:
    """A prompt of its own, one chunk a block."""
    tokens = [first_token + i for i in range(n_blocks * BLOCK)]
    chain = [(first_token << 20) + i + 1 for i in range(n_blocks)]
    positions = [(i + 1) * BLOCK for i in range(n_blocks)]
    return table.register(packed(tokens, "I"), packed(chain, "Q"), packed(positions, "I"))


def announced(table: BlockTable) -> dict[int, int]:
    hashes, tokens = table.snapshot()
    return dict(
        zip(struct.unpack(f"<{len(hashes) // 8}Q", hashes), struct.unpack(f"<{len(tokens) // 4}I", tokens), strict=True)
    )


@pytest.fixture
def table() -> BlockTable:
    return BlockTable(BLOCK)


def silent() -> None:
    pass


def drain(feed: module.Feed, gateway: Gateway) -> None:
    while feed.put(gateway):
        pass


def test_new_feed_begins_with_all_that_is_held(table: BlockTable) -> None:
    residency = Residency(table, State.EXACT)
    register(table, first_token=1, n_blocks=3)
    residency.flush()
    gateway = Gateway()
    drain(residency.open(silent), gateway)
    assert gateway.held == announced(table)
    assert len(gateway.held) == 3
    assert (gateway.state, gateway.n_clears, gateway.is_partial) == ("exact", 1, False)


def test_feed_of_an_engine_that_holds_nothing_says_so(table: BlockTable) -> None:
    gateway = Gateway()
    drain(Residency(table, State.EXACT).open(silent), gateway)
    assert (gateway.held, gateway.n_clears, gateway.n_messages) == ({}, 1, 1)


def test_large_snapshot_comes_in_pieces(table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_ENTRIES", 4)
    residency = Residency(table, State.EXACT)
    register(table, first_token=1, n_blocks=10)
    residency.flush()
    gateway, feed = Gateway(), residency.open(silent)
    partial = []
    while feed.put(gateway):
        partial.append(gateway.is_partial)
        assert gateway.is_partial
    assert not gateway.is_partial
    assert gateway.held == announced(table)
    assert gateway.n_messages == 3


def test_changes_behind_a_snapshot_follow_it(table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_ENTRIES", 2)
    residency = Residency(table, State.EXACT)
    handle = register(table, first_token=1, n_blocks=5)
    residency.flush()
    gateway, feed = Gateway(), residency.open(silent)
    assert feed.put(gateway)
    table.release(handle)
    register(table, first_token=1000, n_blocks=2)
    residency.flush()
    drain(feed, gateway)
    assert gateway.held == announced(table)
    assert len(gateway.held) == 2


def test_gateway_that_lets_too_much_pile_up_gets_a_snapshot(table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEED_BYTES", 200)
    residency = Residency(table, State.EXACT)
    gateway, feed = Gateway(), residency.open(silent)
    drain(feed, gateway)
    for number in range(40):
        register(table, first_token=1 + 100 * number, n_blocks=3)
        residency.flush()
    drain(feed, gateway)
    assert gateway.held == announced(table)
    assert gateway.n_clears == 2
    assert gateway.n_messages < 10


def test_clear_reaches_gateways(table: BlockTable) -> None:
    residency = Residency(table, State.EXACT)
    gateway, feed = Gateway(), residency.open(silent)
    table.release(register(table, first_token=1, n_blocks=3))
    table.stored(packed([7, 8], "Q"), None, packed([1, 2, 3, 4, 5, 6, 7, 8], "I"))
    residency.flush()
    drain(feed, gateway)
    assert len(gateway.held) == 2
    table.clear()
    residency.flush()
    drain(feed, gateway)
    assert gateway.held == {}


def test_state_is_told_when_it_changes(table: BlockTable) -> None:
    residency = Residency(table, State.EXACT)
    wakes: list[int] = []
    gateway, feed = Gateway(), residency.open(lambda: wakes.append(1))
    drain(feed, gateway)
    residency.set_state(State.APPROX)
    assert wakes
    drain(feed, gateway)
    assert gateway.state == "approx"
    n_messages = gateway.n_messages
    drain(feed, gateway)
    assert gateway.n_messages == n_messages


def test_closed_feed_hears_nothing(table: BlockTable) -> None:
    residency = Residency(table, State.EXACT)
    gateway, feed = Gateway(), residency.open(silent)
    drain(feed, gateway)
    residency.close(feed)
    register(table, first_token=1, n_blocks=1)
    residency.flush()
    assert not feed.put(gateway)
    assert gateway.held == {}


async def test_changes_of_one_turn_go_out_together(table: BlockTable) -> None:
    residency = Residency(table, State.EXACT)
    gateway, feed = Gateway(), residency.open(silent)
    drain(feed, gateway)
    for number in range(3):
        register(table, first_token=1 + 100 * number, n_blocks=1)
        residency.changed()
    await asyncio.sleep(0)
    drain(feed, gateway)
    assert (gateway.n_messages, len(gateway.held)) == (2, 3)


def test_engine_that_keeps_nothing_is_off() -> None:
    gateway = Gateway()
    residency = Residency(None, State.OFF)
    drain(residency.open(silent), gateway)
    residency.flush()
    assert (gateway.state, gateway.held) == ("off", {})


@pytest.mark.parametrize("seed", range(20))
def test_every_feed_ends_with_what_is_announced(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_ENTRIES", 3)
    monkeypatch.setattr(module, "FEED_BYTES", 300)
    rng = random.Random(seed)
    table = BlockTable(BLOCK)
    residency = Residency(table, State.EXACT)
    feeds = [(residency.open(silent), Gateway())]
    handles: list[int] = []
    steps: list[Callable[[], object]] = [
        lambda: handles.append(register(table, first_token=1 + 50 * rng.randrange(20), n_blocks=rng.randrange(1, 6))),
        lambda: table.release(handles.pop(rng.randrange(len(handles)))) if handles else None,
        lambda: table.clear() if rng.random() < 0.1 else None,
        lambda: feeds.append((residency.open(silent), Gateway())) if len(feeds) < 4 else None,
        lambda: rng.choice(feeds)[0].restart() if rng.random() < 0.3 else None,
        residency.flush,
        lambda: (lambda pair: pair[0].put(pair[1]))(rng.choice(feeds)),
    ]
    for _ in range(300):
        rng.choice(steps)()
    residency.flush()
    for feed, gateway in feeds:
        drain(feed, gateway)
        assert gateway.held == announced(table), f"seed {seed}"

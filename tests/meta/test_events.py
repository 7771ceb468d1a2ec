"""Events in the store: in order of time, counted when they repeat, the oldest removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.meta.backends import open_lmdb
from xinf.core.ids import NodeName
from xinf.core.records import EventRecord
from xinf.meta import LmdbStore, Records, record_event, trim_events


@pytest.fixture
async def store(short_dir: Path) -> AsyncIterator[LmdbStore]:
    opened = open_lmdb(short_dir / "m")
    yield opened
    await opened.close()


def event(at_s: float, message: str = "x", count: int = 1) -> EventRecord:
    return EventRecord(at_s=at_s, kind="xid", object="cuda:0", message=message, node=NodeName("a"), count=count)


async def read(store: LmdbStore) -> list[tuple[float, str, int]]:
    return [(record.at_s, record.message, record.count) for record, _ in await Records(store).list(EventRecord)]


async def test_events_are_listed_in_order_of_time(store: LmdbStore) -> None:
    for at_s in (1_700_000_000.5, 9.25, 1_700_000_000.25):
        await record_event(store, event(at_s))
    assert [at_s for at_s, _, _ in await read(store)] == [9.25, 1_700_000_000.25, 1_700_000_000.5]


async def test_two_of_one_moment_are_both_kept(store: LmdbStore) -> None:
    for _ in range(20):
        await record_event(store, event(5.0))
    assert len(await read(store)) == 20


async def test_event_that_repeats_takes_the_place_of_the_one_before(store: LmdbStore) -> None:
    key = await record_event(store, event(1.0))
    await record_event(store, event(2.0, "other"))
    await record_event(store, event(3.0, count=2), repeats=key)
    assert await read(store) == [(2.0, "other", 1), (3.0, "x", 2)]
    await record_event(store, event(4.0, count=3), repeats=key)  # trimmed meanwhile, or never there
    assert len(await read(store)) == 3


async def test_long_message_is_cut(store: LmdbStore) -> None:
    await record_event(store, event(1.0, "y" * 10_000))
    ((_, message, _),) = await read(store)
    assert len(message) == 2000
    assert message.endswith("y…")


async def test_only_the_last_ones_are_kept(store: LmdbStore) -> None:
    for number in range(1100):
        await record_event(store, event(float(number)))
    assert await trim_events(store, 10) == 1090
    assert [at_s for at_s, _, _ in await read(store)] == [float(number) for number in range(1090, 1100)]
    assert await trim_events(store, 10) == 0

"""The client of the engine's KV events, over real sockets: order, gaps, replays, restarts, strangers, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.engine.fake_publisher import FakePublisher, Listener, payload
from tests.engine.link_client import until
from xinf.core.clock import FakeClock
from xinf.engine.kv_event_client import EventLag, KvEventClient
from xinf.engine.kv_events import KvBatch, Removed


@pytest.fixture
async def publisher(short_dir: Path) -> AsyncIterator[FakePublisher]:
    made = FakePublisher(short_dir)
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def subscribed(
    publisher: FakePublisher, *, has_replay: bool = True, **options: Any
) -> AsyncIterator[tuple[KvEventClient, Listener]]:
    """A client that the publisher knows of, and that has asked for what was before it."""
    listener = Listener()
    client = KvEventClient(
        publisher.endpoint,
        publisher.replay_endpoint if has_replay else None,
        **{
            "on_batch": listener.on_batch,
            "on_reset": listener.on_reset,
            "on_problem": listener.problems.append,
            "topic": publisher.topic.decode(),
            **options,
        },
    )
    client.start()
    try:
        await publisher.wait_subscribed()
        if has_replay:
            await until(lambda: publisher.requests, "the first replay")
        yield client, listener
    finally:
        await client.close()


async def said(listener: Listener, *expected: object) -> None:
    await until(lambda: len(listener.said) >= len(expected), f"{expected}")
    assert listener.said == list(expected)


async def test_batches_come_in_order(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        for _ in range(300):
            await publisher.publish()
        await said(listener, *range(300))
        assert client.counters.batches == client.counters.events == 300
        assert client.counters.gaps == client.counters.resets == 0


async def test_batch_is_decoded(publisher: FakePublisher) -> None:
    batches: list[KvBatch] = []
    async with subscribed(publisher, on_batch=batches.append):
        await publisher.publish(payload(2**64 - 1))
        await until(lambda: batches, "a batch")
    (event,) = batches[0].events
    assert isinstance(event, Removed)
    assert list(event.hashes) == [2**64 - 1]
    assert batches[0].dp_rank == 0


async def test_late_subscriber_gets_what_was_before(publisher: FakePublisher) -> None:
    for _ in range(5):
        publisher.keep()
    async with subscribed(publisher) as (client, listener):
        await said(listener, *range(5))
        await publisher.publish()
        await said(listener, *range(6))
        assert client.counters.replayed == 5
        assert client.counters.resets == 0


@pytest.mark.parametrize("has_topic", [True, False])
async def test_gap_is_filled_in_order(publisher: FakePublisher, has_topic: bool) -> None:
    publisher.has_topic_in_replies = has_topic
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        for _ in range(3):
            publisher.keep()
        await publisher.publish()
        await said(listener, *range(5))
        await publisher.publish()
        await said(listener, *range(6))
        assert client.counters.gaps == 1
        assert client.counters.replayed == 4  # the one that showed the gap as well
        assert client.counters.duplicates == 1
        assert client.counters.resets == 0


async def test_hole_in_a_replay_is_asked_for_again(publisher: FakePublisher) -> None:
    for _ in range(10):
        publisher.keep()
    publisher.holes = [{4, 5}, {5, 8}, set()]
    async with subscribed(publisher) as (client, listener):
        await said(listener, *range(10))
        assert publisher.requests == [0, 3, 4]  # each from the last that is known, to see that it is the same engine
        assert client.counters.resets == 0


async def test_hole_at_the_start_of_a_replay_is_asked_for_again(publisher: FakePublisher) -> None:
    for _ in range(4):
        publisher.keep()
    publisher.holes = [{0, 1}, set()]
    async with subscribed(publisher) as (client, listener):
        await said(listener, *range(4))
        assert client.counters.resets == 0


async def test_short_buffer_is_told_once_and_what_is_left_comes(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        for _ in range(5):
            publisher.keep()
        publisher.buffer = {4: publisher.buffer[4], 5: publisher.buffer[5]}
        await publisher.publish()
        await said(listener, 0, "batches 1 to 3 are lost: the engine keeps them no more", 4, 5, 6)
        await publisher.publish()
        await said(listener, 0, "batches 1 to 3 are lost: the engine keeps them no more", 4, 5, 6, 7)
        assert client.counters.resets == 1


async def test_late_subscriber_of_a_short_buffer_is_told(publisher: FakePublisher) -> None:
    for _ in range(4):
        publisher.keep()
    del publisher.buffer[0]
    async with subscribed(publisher) as (_, listener):
        await said(listener, "batches 0 to 0 are lost: the engine keeps them no more", 1, 2, 3)


async def test_hole_behind_what_is_lost_is_asked_for_again(publisher: FakePublisher) -> None:
    for _ in range(10):
        publisher.keep()
    publisher.buffer = {number: content for number, content in publisher.buffer.items() if number > 3}
    publisher.holes = [set(), {6}, set()]
    async with subscribed(publisher) as (client, listener):
        await said(listener, "batches 0 to 3 are lost: the engine keeps them no more", *range(4, 10))
        assert publisher.requests == [0, 0, 5]
        assert client.counters.resets == 1


async def test_loss_at_the_end_is_noticed_in_the_silence(publisher: FakePublisher) -> None:
    async with subscribed(publisher, check_s=0.05) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        publisher.keep()
        await said(listener, 0, 1)
        assert client.counters.gaps == client.counters.resets == 0
        await until(lambda: len(publisher.requests) > 5, "more checks")
        assert listener.said == [0, 1]


async def test_new_engine_that_was_not_heard_is_noticed_in_the_silence(publisher: FakePublisher) -> None:
    async with subscribed(publisher, check_s=0.05) as (_, listener):
        await publisher.publish()
        await publisher.publish()
        await said(listener, 0, 1)
        await restart(publisher)
        for number in range(3):
            publisher.keep(payload(100 + number))
        await said(listener, 0, 1, STARTED_OVER, 0, 1, 2)


async def test_new_engine_that_counts_less_is_noticed_in_the_silence(publisher: FakePublisher) -> None:
    async with subscribed(publisher, check_s=0.05) as (_, listener):
        for _ in range(5):
            await publisher.publish()
        await said(listener, *range(5))
        await restart(publisher)
        publisher.keep(payload(100))
        await said(listener, *range(5), STARTED_OVER, 0)


async def test_new_engine_that_has_nothing_yet_is_noticed_in_the_silence(publisher: FakePublisher) -> None:
    async with subscribed(publisher, check_s=0.05) as (_, listener):
        await publisher.publish()
        await said(listener, 0)
        await restart(publisher)
        await said(listener, 0, STARTED_OVER)
        await publisher.publish(payload(100))
        await said(listener, 0, STARTED_OVER, 0)


async def test_silence_without_replay_is_nothing(publisher: FakePublisher) -> None:
    async with subscribed(publisher, has_replay=False, check_s=0.001) as (_, listener):
        await publisher.publish()
        await said(listener, 0)
        publisher.keep()
        await publisher.publish()
        await said(listener, 0, "batches 1 to 1 are lost", 2)
        assert not listener.problems


async def test_each_loss_is_told(publisher: FakePublisher) -> None:
    async with subscribed(publisher, has_replay=False) as (client, listener):
        for _ in range(2):
            publisher.keep()
            await publisher.publish()
        await said(listener, "batches 0 to 0 are lost", 1, "batches 2 to 2 are lost", 3)
        assert client.counters.resets == client.counters.gaps == 2


async def test_gap_without_replay_is_told(publisher: FakePublisher) -> None:
    async with subscribed(publisher, has_replay=False) as (client, listener):
        await publisher.publish()
        publisher.keep()
        publisher.keep()
        await publisher.publish()
        await publisher.publish()
        await said(listener, 0, "batches 1 to 2 are lost", 3, 4)
        assert client.counters.resets == client.counters.gaps == 1


async def test_silent_replay_is_given_up(publisher: FakePublisher) -> None:
    publisher.is_silent = True
    async with subscribed(publisher, replay_timeout_s=0.05) as (client, listener):
        await until(lambda: len(listener.problems) == 2, "giving up the first replay")
        await publisher.publish()
        await said(listener, 0)  # nothing was missing
        publisher.keep()
        await publisher.publish()
        await said(listener, 0, "batches 1 to 1 are lost", 2)
        assert "no replay of KV events from 1 on, or not to its end" in listener.problems
        publisher.is_silent = False
        publisher.keep()
        await publisher.publish()
        await said(listener, 0, "batches 1 to 1 are lost", 2, 3, 4)
        assert client.counters.resets == 1


async def test_duplicates_are_dropped(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await publisher.publish()
        for number in (1, 0):
            await publisher.send(b"", number.to_bytes(8, "big"), payload(number))
        await publisher.publish()
        await said(listener, 0, 1, 2)
        assert client.counters.duplicates == 2
        assert client.counters.resets == 0


STARTED_OVER = "the engine's event stream started over"


async def restart(publisher: FakePublisher) -> None:
    """Become another engine at the same endpoints."""
    publisher.next = 0
    publisher.buffer = {}


async def test_engine_that_starts_over_is_told(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        for _ in range(3):
            await publisher.publish()
        await said(listener, 0, 1, 2)
        await restart(publisher)
        for number in range(4):
            await publisher.publish(payload(100 + number))
        await said(listener, 0, 1, 2, STARTED_OVER, 0, 1, 2, 3)
        assert client.counters.resets == 1


async def test_start_of_a_new_engine_that_was_missed_is_replayed(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        for _ in range(3):
            await publisher.publish()
        await said(listener, 0, 1, 2)
        await restart(publisher)
        publisher.keep(payload(100))
        await publisher.publish(payload(101))
        await said(listener, 0, 1, 2, STARTED_OVER, 0, 1)
        assert client.counters.resets == 1


async def test_new_engine_that_counted_past_the_old_one_is_noticed_in_the_replay(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        await restart(publisher)
        for number in range(3):
            publisher.keep(payload(100 + number))
        await publisher.publish(payload(103))
        await said(listener, 0, STARTED_OVER, 0, 1, 2, 3)
        assert client.counters.resets == 1


async def test_unreadable_batch_is_a_loss(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await publisher.publish(b"\xc1")
        await publisher.publish(b"\xc1")
        await publisher.publish()
        await said(listener, 0, "batch 1 cannot be read", 3)
        assert client.counters.malformed == 2
        assert client.counters.resets == 1
        assert len(listener.problems) == 2


@pytest.mark.parametrize(
    "frames",
    [
        (b"",),
        (b"", bytes(8)),
        (b"", bytes(7), payload(0)),
        (b"", bytes(9), payload(0)),
        (b"", bytes(8), payload(0), b"more"),
        (b"other", bytes(8), payload(0)),
        (b"", b"\xff" * 8, b""),
    ],
)
async def test_foreign_messages_are_skipped(publisher: FakePublisher, frames: tuple[bytes, ...]) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.send(*frames)
        await publisher.publish()
        await said(listener, 0)
        assert client.counters.foreign == len(listener.problems) == 1


async def test_other_topics_are_not_heard(short_dir: Path) -> None:
    publisher = FakePublisher(short_dir, topic=b"kv")
    try:
        async with subscribed(publisher) as (client, listener):
            await publisher.send(b"other", bytes(8), payload(0))
            await publisher.send(b"kv2", bytes(8), payload(0))  # heard, as it begins alike, and skipped
            await publisher.publish()
            await said(listener, 0)
            assert client.counters.foreign == 1
    finally:
        await publisher.close()


async def test_foreign_replies_are_skipped(publisher: FakePublisher, short_dir: Path) -> None:
    async with asyncio.timeout(20):
        context = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        endpoint = f"ipc://{short_dir}/stranger.sock"
        router.bind(endpoint)
        listener = Listener()
        client = KvEventClient(
            publisher.endpoint,
            endpoint,
            on_batch=listener.on_batch,
            on_reset=listener.on_reset,
            on_problem=listener.problems.append,
        )
        client.start()
        identity, _, _ = await router.recv_multipart()
        for frames in ((b"",), (b"x", bytes(8), b""), (b"", b"", b"short", b""), (b"", b"", bytes(8), payload(0))):
            await router.send_multipart([identity, *frames])
        await router.send_multipart([identity, b"", b"", b"\xff" * 8, b""])
        await said(listener, 0)
        assert client.counters.foreign == 3
        await client.close()
        context.destroy(linger=0)


async def test_receiver_that_fails_does_not_end_the_stream(publisher: FakePublisher) -> None:
    seen = Listener()

    def on_batch(batch: KvBatch) -> None:
        seen.on_batch(batch)
        if batch.sequence == 1:
            raise RuntimeError("no")

    async with subscribed(publisher, on_batch=on_batch, on_reset=seen.on_reset) as (client, _):
        for _ in range(3):
            await publisher.publish()
        await said(seen, 0, 1, "batch 1 could not be applied: RuntimeError", 2)
        assert client.is_running


async def test_listener_that_fails_ends_the_stream_and_says_so(publisher: FakePublisher) -> None:
    reasons: list[str] = []

    def on_problem(what: str) -> None:
        raise RuntimeError(what)

    async with subscribed(publisher, on_problem=on_problem, on_reset=reasons.append) as (client, _):
        await publisher.send(b"foreign")
        await publisher.send(b"", b"foreign", b"")
        await until(lambda: not client.is_running, "the end")
        assert reasons == ["the subscription ended: RuntimeError"]


async def test_others_get_their_turn_while_many_batches_wait(publisher: FakePublisher) -> None:
    publisher.is_silent = True
    async with subscribed(publisher, replay_timeout_s=0.5) as (client, listener):
        for _ in range(800):
            await publisher.publish()  # waits in the socket until the replay has been given up
        assert client.counters.batches == 0
        assert await most_in_a_turn(client, 800) <= 16
        assert listener.said == list(range(800))


async def test_others_get_their_turn_while_many_batches_are_replayed(publisher: FakePublisher) -> None:
    for _ in range(800):
        publisher.keep()
    async with subscribed(publisher) as (client, listener):
        assert await most_in_a_turn(client, 800) <= 16
        assert listener.said == list(range(800))


async def most_in_a_turn(client: KvEventClient, count: int) -> int:
    """How many batches came at most between two turns of another task, until `count` have come."""
    turns = [client.counters.batches]
    async with asyncio.timeout(20):
        while turns[-1] < count:
            await asyncio.sleep(0)
            turns.append(client.counters.batches)
    return max(after - before for before, after in pairwise(turns))


async def test_replays_leave_nothing_open(publisher: FakePublisher) -> None:
    def n_open() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        n_before = n_open()
        for number in range(1, 61, 2):
            publisher.keep()
            await publisher.publish()
            await said(listener, *range(number + 2))
        assert client.counters.gaps == 30
        await until(lambda: n_open() < n_before + 10, "sockets being closed")


async def test_lag_is_measured_of_live_batches_only(publisher: FakePublisher) -> None:
    clock = FakeClock(1_700_000_002.0)
    publisher.keep(payload(0, timestamp=1.0))
    async with subscribed(publisher, clock=clock) as (client, listener):
        await said(listener, 0)
        assert client.lag.mean_s is None
        await publisher.publish(payload(1))
        await said(listener, 0, 1)
        assert client.lag.mean_s == client.lag.max_s == 2.0


def test_lag_follows_its_mean_and_lets_go_of_its_maximum() -> None:
    lag = EventLag()
    lag.add(-1.0)
    assert lag.mean_s == lag.max_s == 0.0
    lag.add(1.6)
    assert lag.mean_s == pytest.approx(0.1)
    assert lag.max_s == 1.6
    for _ in range(140):
        lag.add(0.0)
    assert lag.max_s == pytest.approx(0.8, rel=0.02)
    assert lag.mean_s is not None
    assert lag.mean_s < 0.001


async def test_nothing_is_said_after_the_end(publisher: FakePublisher) -> None:
    async with subscribed(publisher) as (client, listener):
        await publisher.publish()
        await said(listener, 0)
        await client.close()
        await client.close()
        await publisher.publish()
        assert not client.is_running
    assert listener.said == [0]


async def test_end_during_a_replay(publisher: FakePublisher) -> None:
    publisher.is_silent = True
    async with subscribed(publisher) as (client, _), asyncio.timeout(2):
        await client.close()


async def test_bad_endpoint_is_refused_at_the_start() -> None:
    listener = Listener()
    client = KvEventClient("nonsense", on_batch=listener.on_batch, on_reset=listener.on_reset)
    with pytest.raises(zmq.ZMQError):
        client.start()
    await client.close()


def test_encoding_of_the_fake_is_that_of_a_batch() -> None:
    assert msgspec.msgpack.decode(payload(7))[1][0]["block_hashes"] == [7]

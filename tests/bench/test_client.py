"""The client against a server that misbehaves: every way to fail has its class, and none harms the next request."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.bench.odd_server import TOKENS, OddServer
from xinf.bench.body import BodyWriter
from xinf.bench.client import Client
from xinf.bench.exchange import Exchange
from xinf.bench.record import Failure, Record
from xinf.bench.target import Endpoint, Target
from xinf.bench.workload import Session, Turn

Ask = Callable[..., Awaitable[Record]]


class Asker:
    """Sends requests whose model tells the server what to do."""

    def __init__(self, target: Target, *, timeout_s: float = 20.0, max_connections: int = 10) -> None:
        self.client = Client(target, timeout_s=timeout_s, max_connections=max_connections)
        self.texts: list[str] = []
        self._target = target

    async def __call__(self, model: str, *, is_stream: bool = True, endpoint: Endpoint = Endpoint.CHAT) -> Record:
        record = Record(number=0, session=0, intended_s=0.0, dispatched_s=0.0)
        exchange = Exchange(
            record,
            asyncio.get_running_loop().create_future(),
            endpoint=endpoint,
            is_stream=is_stream,
            keep_text=True,
            zero_s=time.monotonic(),
        )
        writer = BodyWriter(endpoint, model, is_stream=is_stream, ignore_eos=False, extra_body=None)
        body = writer.write(Session(name=None, turns=(Turn(prompt="hi", max_tokens=4),)), 0, ())
        head = self._target.head("POST", endpoint.path)
        await self.client.send(b"%s%d\r\n\r\n%s" % (head, len(body), body), exchange)
        self.texts.append(exchange.text)
        return record


@pytest.fixture
async def ask(server: OddServer) -> AsyncIterator[Asker]:
    asker = Asker(Target.parse(server.url))
    yield asker
    await asker.client.close()


@pytest.mark.parametrize("model", ["ok", "split", "crlf", "until-close", "continue"])
async def test_good_stream_however_it_comes(ask: Asker, model: str) -> None:
    record = await ask(model)
    assert (record.failure, record.message) == (None, None)
    assert record.n_events == TOKENS  # neither the event with the role nor the one with the usage is a token
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (40, TOKENS, 10)
    assert ask.texts == ["wéll " * TOKENS]
    assert record.first_token_s is not None
    assert record.last_token_s is not None
    assert record.sent_s is not None
    assert record.sent_s <= record.first_token_s <= record.last_token_s <= record.end_s


async def test_whole_answer_has_usage_but_no_first_token(ask: Asker) -> None:
    record = await ask("whole", is_stream=False)
    assert (record.failure, record.first_token_s, record.output_tokens) == (None, None, TOKENS)
    assert ask.texts == ["well"]


@pytest.mark.parametrize(
    ("model", "failure", "words"),
    [
        ("cut", Failure.CUT, "inside the answer"),
        ("no-done", Failure.NO_DONE, "without [DONE]"),
        ("error-event", Failure.ERROR_EVENT, "engine died"),
        ("garbage-event", Failure.MALFORMED, "nonsense"),
        ("after-done", Failure.MALFORMED, "after [DONE]"),
        ("garbage-http", Failure.MALFORMED, "not HTTP"),
        ("429", Failure.STATUS, "slow down"),
        ("500", Failure.STATUS, "oops"),
        ("whole", Failure.MALFORMED, "application/json"),  # a stream was asked for
    ],
)
async def test_every_failure_has_its_class_and_words(ask: Asker, model: str, failure: Failure, words: str) -> None:
    record = await ask(model)
    assert record.failure is failure
    assert words in (record.message or "")
    assert (await ask("ok")).failure is None


async def test_answer_that_nobody_asked_for_is_not_taken_for_the_next(server: OddServer, ask: Asker) -> None:
    assert (await ask("twice")).failure is None
    record = await ask("ok")
    assert (record.failure, record.n_events) == (None, TOKENS)
    assert server.n_connections == 2


async def test_status_is_kept(ask: Asker) -> None:
    assert [(await ask(model)).status for model in ("429", "500", "ok")] == [429, 500, 200]


async def test_embedding_without_vectors_is_malformed(ask: Asker) -> None:
    record = await ask("whole", is_stream=False, endpoint=Endpoint.EMBEDDINGS)
    assert record.failure is Failure.MALFORMED


@pytest.mark.parametrize(("model", "n_events"), [("hang", 1), ("slow-head", 0)])
async def test_time_out_closes_the_connection(server: OddServer, model: str, n_events: int) -> None:
    ask = Asker(Target.parse(server.url), timeout_s=0.2)
    record = await ask(model)
    assert (record.failure, record.n_events) == (Failure.TIMEOUT, n_events)
    assert record.end_s == pytest.approx(0.2, abs=0.15)
    assert (await ask("ok")).failure is None
    assert server.n_connections == 2
    await ask.client.close()


async def test_connections_are_kept_and_used_again(server: OddServer, ask: Asker) -> None:
    for model in ("ok", "split", "429", "error-event", "ok"):
        await ask(model)
    assert server.n_connections == 1
    assert ask.client.n_opened == 1


async def test_connection_that_was_closed_while_idle_is_replaced_and_counted(server: OddServer, ask: Asker) -> None:
    """The server closes after an answer without saying so; whether the client notices before it sends is a race."""
    for _ in range(20):
        record = await ask("close-idle")
        assert record.failure is None
    assert server.n_connections >= 20


async def test_connections_are_no_more_than_allowed_and_waits_are_counted(server: OddServer) -> None:
    ask = Asker(Target.parse(server.url), max_connections=2)
    records = await asyncio.gather(*(ask("split") for _ in range(8)))
    assert [record.failure for record in records] == [None] * 8
    assert server.n_connections == 2
    assert ask.client.n_waits == 6
    await ask.client.close()


async def test_wait_for_a_connection_ends_with_the_time_out(server: OddServer) -> None:
    ask = Asker(Target.parse(server.url), max_connections=1, timeout_s=0.3)
    records = await asyncio.gather(ask("hang"), ask("ok"))
    assert records[0].failure is Failure.TIMEOUT
    assert records[1].failure in (Failure.TIMEOUT, None)  # both ends are at the same moment
    await ask.client.close()


async def test_refused_connection_is_an_error_of_its_own() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses, and nobody else can take it
        ask = Asker(Target.parse(f"http://127.0.0.1:{taken.getsockname()[1]}"))
        record = await ask("ok")
    assert record.failure is Failure.CONNECT
    assert record.sent_s is None


async def test_cancelled_request_closes_its_connection(server: OddServer, ask: Asker) -> None:
    asking = asyncio.ensure_future(ask("hang"))
    async with asyncio.timeout(20):
        while not server.requests:
            await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await ask("ok")).failure is None
    assert server.n_connections == 2


async def test_connections_can_be_opened_ahead(server: OddServer, ask: Asker) -> None:
    await ask.client.open_connections(3)
    await asyncio.gather(*(ask("split") for _ in range(3)))
    assert (server.n_connections, ask.client.n_opened) == (3, 3)

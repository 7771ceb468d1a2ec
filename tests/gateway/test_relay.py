"""Relay between a hand-driven Link side and a fake ASGI client.

The fake client can be slow (its send stays pending) or leave; what a real server does with the messages is tested in
test_app.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from xinf.core.errors import DeadlineExceeded, EngineDied
from xinf.gateway import relay as relay_module
from xinf.gateway.asgi import Message
from xinf.gateway.link import Ending
from xinf.gateway.relay import Outcome, Relay

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json"), (b"content-length", b"999"), (b"connection", b"close")]


class Client:
    """An ASGI client: takes messages at once, unless `gate` is set to a future that holds them back."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gate: asyncio.Future[None] | None = None
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.n_receives = 0

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if self.gate is not None:
            await self.gate

    async def receive(self) -> Message:
        self.n_receives += 1
        return await self.inbox.get()

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def is_over(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


class FakeLink:
    """Writes down what was cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []

    def cancel(self, submit_id: int) -> None:
        self.cancelled.append(submit_id)


class Scene:
    """A relay with one attempt open."""

    def __init__(self, *, buffer_bytes: int = 1000, dialect: str = "openai") -> None:
        self.client = Client()
        self.link: Any = FakeLink()
        self.relay = Relay(
            self.client.send,
            self.client.receive,
            dialect=dialect,
            buffer_bytes=buffer_bytes,
            extra_headers=[(b"x-request-id", b"req-1")],
        )
        self.verdict = self.relay.expect()
        self.relay.bind(self.link, 5)

    def frame(self, *chunks: bytes, start: Any = None, end: Ending | None = None, status: int = 200) -> None:
        if start is not None:
            self.relay.on_start(status, start)
        for chunk in chunks:
            self.relay.on_chunk(chunk)
        if end is not None:
            self.relay.on_end(end)
        self.relay.flush()


async def test_relay_holds_the_start_back_until_the_first_bytes() -> None:
    scene = Scene()
    scene.frame(start=SSE)
    assert scene.client.messages == []
    scene.frame(b"data: 1\n\n")
    assert [m["type"] for m in scene.client.messages] == ["http.response.start", "http.response.body"]
    assert (b"x-request-id", b"req-1") in scene.client.messages[0]["headers"]


async def test_relay_sends_chunks_of_one_frame_together_and_the_end_with_them() -> None:
    scene = Scene()
    scene.frame(b"a", b"b", b"c", start=SSE)
    scene.frame(b"d", b"e", end=Ending(completion_tokens=5))
    assert [m["body"] for m in scene.client.messages[1:]] == [b"abc", b"de"]
    assert scene.client.is_over
    verdict = await scene.verdict
    assert verdict.outcome is Outcome.DONE
    assert verdict.ending == Ending(completion_tokens=5)
    assert scene.link.cancelled == []


async def test_relay_answers_json_at_once_when_it_is_complete() -> None:
    scene = Scene()
    scene.frame(b'{"a":', start=JSON)
    assert scene.client.messages == []
    scene.frame(b"1}", end=Ending())
    start, body = scene.client.messages
    assert (b"content-length", b"7") in start["headers"]
    assert [name for name, _ in start["headers"]].count(b"content-length") == 1
    assert b"connection" not in [name for name, _ in start["headers"]]
    assert body["body"] == b'{"a":1}'
    assert (await scene.verdict).outcome is Outcome.DONE


async def test_relay_passes_an_engines_own_error_status_on() -> None:
    scene = Scene()
    scene.frame(b'{"error":{}}', start=JSON, status=400, end=Ending())
    assert scene.client.messages[0]["status"] == 400


async def test_relay_lets_a_request_move_that_has_sent_nothing() -> None:
    scene = Scene()
    scene.frame(b"half", start=JSON)
    scene.relay.on_lost(EngineDied("dead"), may_retry=True)
    verdict = await scene.verdict
    assert verdict.outcome is Outcome.FAILED
    assert verdict.may_retry
    assert scene.client.messages == []
    again = scene.relay.expect()
    scene.frame(b"whole", start=JSON, end=Ending())
    assert (await again).outcome is Outcome.DONE
    assert scene.client.body == b"whole"


async def test_relay_ends_a_broken_stream_with_one_error_event_and_done() -> None:
    scene = Scene()
    scene.frame(b"data: 1\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("replica r went away"), may_retry=True)
    scene.relay.fail(DeadlineExceeded("too late to tell"))
    events = scene.client.body.decode().strip().split("\n\n")
    assert events[0] == "data: 1"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "engine_died"
    assert events[2:] == ["data: [DONE]"]
    assert scene.client.is_over
    verdict = await scene.verdict
    assert verdict.outcome is Outcome.DONE
    assert verdict.error is not None


async def test_relay_ends_an_event_that_was_cut_before_its_own() -> None:
    scene = Scene()
    scene.frame(b'data: {"cho', start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert b'data: {"cho\n\ndata: {"error"' in scene.client.body


async def test_relay_adds_nothing_to_a_stream_that_was_done() -> None:
    scene = Scene()
    scene.frame(b"data: [DONE]\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert scene.client.body == b"data: [DONE]\n\n"
    assert scene.client.is_over


async def test_relay_does_not_repeat_an_error_the_engine_has_told() -> None:
    scene = Scene()
    scene.frame(b'data: {"error": {"code": 1}}\n\n', start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert scene.client.body == b'data: {"error": {"code": 1}}\n\ndata: [DONE]\n\n'


async def test_relay_speaks_named_events_where_the_route_does() -> None:
    scene = Scene(dialect="events")
    scene.frame(b"event: message_start\ndata: {}\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert b"\n\nevent: error\ndata: {" in scene.client.body
    assert b"[DONE]" not in scene.client.body


async def test_relay_cuts_what_is_no_stream_and_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HOLD_BYTES", 3)
    scene = Scene()
    scene.frame(b"long", start=[(b"content-type", b"audio/wav")])
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert (await scene.verdict).outcome is Outcome.CUT
    assert not scene.client.is_over


async def test_relay_names_the_error_an_engine_ended_with() -> None:
    scene = Scene()
    scene.frame(end=Ending(error="unavailable", message="draining", is_retryable=True))
    verdict = await scene.verdict
    assert verdict.error is not None
    assert verdict.error.code == "unavailable"
    assert verdict.may_retry


async def test_relay_without_any_answer_is_the_engines_error() -> None:
    scene = Scene()
    scene.frame(end=Ending())
    verdict = await scene.verdict
    assert verdict.error is not None
    assert verdict.error.code == "engine_error"


async def test_relay_joins_what_came_while_the_client_was_slow() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE)
    scene.client.gate = asyncio.get_running_loop().create_future()
    scene.frame(b"2")
    scene.frame(b"3")
    scene.frame(b"4", end=Ending())
    assert scene.client.body == b"12"
    gate, scene.client.gate = scene.client.gate, None
    gate.set_result(None)
    verdict = await scene.verdict
    assert [m["body"] for m in scene.client.messages[1:]] == [b"1", b"2", b"34"]
    assert verdict.outcome is Outcome.DONE


async def test_relay_cancels_for_a_client_that_does_not_read() -> None:
    scene = Scene(buffer_bytes=10)
    scene.frame(b"1", start=SSE)
    scene.client.gate = asyncio.get_running_loop().create_future()
    scene.frame(b"2")
    scene.frame(b"x" * 11)
    scene.relay.tick(scene.relay._blocked_since_s + relay_module.SLOW_S - 0.1)
    assert scene.link.cancelled == []
    scene.relay.tick(scene.relay._blocked_since_s + relay_module.SLOW_S + 0.1)
    assert scene.link.cancelled == [5]
    scene.client.gate.set_result(None)
    scene.client.gate = None
    verdict = await scene.verdict
    assert verdict.outcome is Outcome.DONE
    assert verdict.error is not None
    assert b"x" not in scene.client.body.replace(b"text", b"").split(b"data:")[0]
    assert scene.client.body.endswith(b"data: [DONE]\n\n")
    assert b"request_timeout" in scene.client.body


async def test_relay_has_no_patience_beyond_its_bound() -> None:
    scene = Scene(buffer_bytes=10)
    scene.frame(b"1", start=SSE)
    scene.client.gate = asyncio.get_running_loop().create_future()
    scene.frame(b"2")
    scene.frame(b"x" * (10 * relay_module.MAX_BUFFERS + 1))
    assert scene.link.cancelled == [5]
    scene.relay.close()


async def test_relay_sends_a_long_stream_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "SEND_BYTES", 4)
    scene = Scene()
    scene.frame(b"012345", b"6789", start=SSE, end=Ending())
    assert [m["body"] for m in scene.client.messages[1:]] == [b"0123", b"4567", b"89"]
    assert scene.client.is_over
    assert (await scene.verdict).outcome is Outcome.DONE


async def test_relay_gives_a_client_up_that_never_reads_again() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE)
    scene.client.gate = asyncio.get_running_loop().create_future()
    scene.frame(b"2")
    scene.relay.tick(scene.relay._blocked_since_s + relay_module.STALL_S - 1)
    assert not scene.verdict.done()
    scene.relay.tick(scene.relay._blocked_since_s + relay_module.STALL_S + 1)
    assert (await scene.verdict).outcome is Outcome.CUT
    assert scene.link.cancelled == [5]
    scene.relay.close()


async def test_relay_tells_the_engine_that_the_client_left() -> None:
    scene = Scene()
    scene.relay.arm()
    scene.client.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    scene.client.inbox.put_nowait({"type": "http.disconnect"})
    assert (await scene.verdict).outcome is Outcome.GONE
    assert scene.link.cancelled == [5]
    assert scene.client.n_receives == 2


async def test_relay_does_not_ask_for_the_disconnect_before_it_is_armed() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE, end=Ending())
    assert scene.client.n_receives == 0


async def test_relay_cancels_an_attempt_whose_client_left_before_it_began() -> None:
    scene = Scene()
    scene.relay.arm()
    scene.client.inbox.put_nowait({"type": "http.disconnect"})
    await scene.verdict
    again = scene.relay.expect()
    scene.relay.bind(scene.link, 6)
    assert (await again).outcome is Outcome.GONE
    assert scene.link.cancelled == [5, 6]


async def test_relay_enforces_the_deadline() -> None:
    scene = Scene()
    scene.relay.deadline_s = 100.0
    scene.relay.tick(99.0)
    assert not scene.verdict.done()
    scene.relay.tick(100.5)
    verdict = await scene.verdict
    assert isinstance(verdict.error, DeadlineExceeded)
    assert verdict.outcome is Outcome.FAILED
    assert scene.link.cancelled == [5]


async def test_relay_close_lets_go_of_everything() -> None:
    scene = Scene()
    scene.relay.arm()
    scene.relay.close()
    scene.relay.close()
    assert scene.link.cancelled == [5]
    scene.frame(b"late", start=SSE, end=Ending())
    assert scene.client.messages == []

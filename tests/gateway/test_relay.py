"""Relay between a hand-driven Link side and a fake client.

The fake client can be slow (it takes nothing until `resume`) or leave; what a real server does with the calls is tested
in test_asgi_client.py and, over every front, in the conformance suite.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from xinf.core.errors import DeadlineExceeded, EngineDied, Overloaded
from xinf.gateway import relay as relay_module
from xinf.gateway.answers import error_answer
from xinf.gateway.client import RawHeaders
from xinf.gateway.link import Ending
from xinf.gateway.relay import Outcome, Relay, Verdict

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json"), (b"content-length", b"999"), (b"connection", b"close")]


class Client:
    """A client that writes down what it gets. While `is_slow`, nothing is taken at once."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: RawHeaders = []
        self.writes: list[bytes] = []
        self.is_slow = False
        self.is_whole = False  # it was one answer
        self.is_over = False
        self.is_dropped = False
        self.n_watches = 0

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        self.is_whole = True
        self.start(status, headers)
        return self.finish(body)

    def start(self, status: int, headers: RawHeaders) -> None:
        assert self.status == 0
        self.status, self.headers = status, headers

    def write(self, data: bytes) -> bool:
        assert self.status
        assert not self.is_over
        self.writes.append(data)
        return not self.is_slow

    def finish(self, data: bytes) -> bool:
        taken = self.write(data)
        self.is_over = True
        return taken

    def drop(self) -> None:
        self.is_dropped = True

    def watch(self) -> None:
        self.n_watches += 1

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)


class FakeLink:
    """Writes down what was cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []

    def cancel(self, submit_id: int) -> None:
        self.cancelled.append(submit_id)


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.n_first_bytes = 0
        self.n_left = 0

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_first_byte(self) -> None:
        self.n_first_bytes += 1

    def on_leave(self) -> None:
        self.n_left += 1


class Scene:
    """A relay with one attempt open."""

    def __init__(self, *, buffer_bytes: int = 1000, dialect: str = "openai") -> None:
        self.client = Client()
        self.link: Any = FakeLink()
        self.relay = Relay(
            self.client, dialect=dialect, buffer_bytes=buffer_bytes, extra_headers=[(b"x-request-id", b"req-1")]
        )
        self.owner = self.relay.owner = Owner()
        self.verdicts = self.owner.verdicts
        self.relay.expect()
        self.relay.bind(self.link, 5)

    @property
    def verdict(self) -> Verdict:
        assert len(self.verdicts) == 1
        return self.verdicts[0]

    def frame(self, *chunks: bytes, start: Any = None, end: Ending | None = None, status: int = 200) -> None:
        if start is not None:
            self.relay.on_start(status, start)
        for chunk in chunks:
            self.relay.on_chunk(chunk)
        if end is not None:
            self.relay.on_end(end)
        self.relay.flush()

    def resume(self) -> None:
        self.client.is_slow = False
        self.relay.on_writable()


def test_relay_holds_the_start_back_until_the_first_bytes() -> None:
    scene = Scene()
    scene.frame(start=SSE)
    assert scene.client.status == 0
    scene.frame(b"data: 1\n\n")
    assert scene.client.status == 200
    assert scene.client.writes == [b"data: 1\n\n"]
    assert (b"x-request-id", b"req-1") in scene.client.headers


def test_relay_sends_chunks_of_one_frame_together_and_the_end_with_them() -> None:
    scene = Scene()
    scene.frame(b"a", b"b", b"c", start=SSE)
    scene.frame(b"d", b"e", end=Ending(completion_tokens=5))
    assert scene.client.writes == [b"abc", b"de"]
    assert scene.client.is_over
    assert scene.verdict.outcome is Outcome.DONE
    assert scene.verdict.ending == Ending(completion_tokens=5)
    assert scene.link.cancelled == []


def test_relay_answers_json_at_once_when_it_is_complete() -> None:
    scene = Scene()
    scene.frame(b'{"a":', start=JSON)
    assert scene.client.status == 0
    scene.frame(b"1}", end=Ending())
    assert scene.client.is_whole
    assert [name for name, _ in scene.client.headers] == [b"content-type", b"x-request-id"]
    assert scene.client.body == b'{"a":1}'
    assert scene.verdict.outcome is Outcome.DONE


def test_relay_passes_an_engines_own_error_status_on() -> None:
    scene = Scene()
    scene.frame(b'{"error":{}}', start=JSON, status=400, end=Ending())
    assert scene.client.status == 400


def test_relay_lets_a_request_move_that_has_sent_nothing() -> None:
    scene = Scene()
    scene.frame(b"half", start=JSON)
    scene.relay.on_lost(EngineDied("dead"), may_retry=True)
    assert scene.verdict.outcome is Outcome.FAILED
    assert scene.verdict.may_retry
    assert scene.client.status == 0
    scene.relay.expect()
    scene.frame(b"whole", start=JSON, end=Ending())
    assert scene.verdicts[1].outcome is Outcome.DONE
    assert scene.client.body == b"whole"


def test_relay_ends_a_broken_stream_with_one_error_event_and_done() -> None:
    scene = Scene()
    scene.frame(b"data: 1\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("replica r went away"), may_retry=True)
    scene.relay.fail(DeadlineExceeded("too late to tell"))
    events = scene.client.body.decode().strip().split("\n\n")
    assert events[0] == "data: 1"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "engine_died"
    assert events[2:] == ["data: [DONE]"]
    assert scene.client.is_over
    assert scene.verdict.outcome is Outcome.DONE
    assert scene.verdict.error is not None


def test_relay_ends_an_event_that_was_cut_before_its_own() -> None:
    scene = Scene()
    scene.frame(b'data: {"cho', start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert b'data: {"cho\n\ndata: {"error"' in scene.client.body


def test_relay_adds_nothing_to_a_stream_that_was_done() -> None:
    scene = Scene()
    scene.frame(b"data: [DONE]\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert scene.client.body == b"data: [DONE]\n\n"
    assert scene.client.is_over


def test_relay_does_not_repeat_an_error_the_engine_has_told() -> None:
    scene = Scene()
    scene.frame(b'data: {"error": {"code": 1}}\n\n', start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert scene.client.body == b'data: {"error": {"code": 1}}\n\ndata: [DONE]\n\n'


def test_relay_speaks_named_events_where_the_route_does() -> None:
    scene = Scene(dialect="events")
    scene.frame(b"event: message_start\ndata: {}\n\n", start=SSE)
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert b"\n\nevent: error\ndata: {" in scene.client.body
    assert b"[DONE]" not in scene.client.body


def test_relay_cuts_what_is_no_stream_and_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "HOLD_BYTES", 3)
    scene = Scene()
    scene.frame(b"long", start=[(b"content-type", b"audio/wav")])
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert scene.verdict.outcome is Outcome.CUT
    assert scene.client.is_dropped
    assert not scene.client.is_over


def test_relay_names_the_error_an_engine_ended_with() -> None:
    scene = Scene()
    scene.frame(end=Ending(error="unavailable", message="draining", is_retryable=True))
    assert scene.verdict.error is not None
    assert scene.verdict.error.code == "unavailable"
    assert scene.verdict.may_retry


def test_relay_without_any_answer_is_the_engines_error() -> None:
    scene = Scene()
    scene.frame(end=Ending())
    assert scene.verdict.error is not None
    assert scene.verdict.error.code == "engine_error"


def test_relay_joins_what_came_while_the_client_was_slow() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE)
    scene.client.is_slow = True
    scene.frame(b"2")
    scene.frame(b"3")
    scene.frame(b"4", end=Ending())
    assert scene.client.body == b"12"
    assert scene.verdicts == []
    scene.resume()
    assert scene.client.writes == [b"1", b"2", b"34"]
    assert scene.verdict.outcome is Outcome.DONE


def test_relay_is_not_done_before_the_last_bytes_are_on_their_way() -> None:
    scene = Scene()
    scene.client.is_slow = True
    scene.frame(b"{}", start=JSON, end=Ending())
    assert scene.client.is_over
    assert scene.verdicts == []
    scene.resume()
    assert scene.verdict.outcome is Outcome.DONE


def test_relay_cancels_for_a_client_that_does_not_read() -> None:
    scene = Scene(buffer_bytes=10)
    scene.frame(b"1", start=SSE)
    scene.client.is_slow = True
    scene.frame(b"2")
    scene.frame(b"x" * 11)
    scene.relay.tick(scene.relay.blocked_since_s + relay_module.SLOW_S - 0.1)
    assert scene.link.cancelled == []
    scene.relay.tick(scene.relay.blocked_since_s + relay_module.SLOW_S + 0.1)
    assert scene.link.cancelled == [5]
    scene.resume()
    assert scene.verdict.outcome is Outcome.DONE
    assert scene.verdict.error is not None
    assert b"xxx" not in scene.client.body
    assert scene.client.body.endswith(b"data: [DONE]\n\n")
    assert b"request_timeout" in scene.client.body


def test_relay_has_no_patience_beyond_its_bound() -> None:
    scene = Scene(buffer_bytes=10)
    scene.frame(b"1", start=SSE)
    scene.client.is_slow = True
    scene.frame(b"2")
    scene.frame(b"x" * (10 * relay_module.MAX_BUFFERS + 1))
    assert scene.link.cancelled == [5]


def test_relay_sends_a_long_stream_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "SEND_BYTES", 4)
    scene = Scene()
    scene.frame(b"012345", b"6789", start=SSE, end=Ending())
    assert scene.client.writes == [b"0123", b"4567", b"89"]
    assert scene.client.is_over
    assert scene.verdict.outcome is Outcome.DONE


def test_relay_gives_a_client_up_that_never_reads_again() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE)
    scene.client.is_slow = True
    scene.frame(b"2")
    scene.relay.tick(scene.relay.blocked_since_s + relay_module.STALL_S - 1)
    assert scene.verdicts == []
    scene.relay.tick(scene.relay.blocked_since_s + relay_module.STALL_S + 1)
    assert scene.verdict.outcome is Outcome.CUT
    assert scene.client.is_dropped
    assert scene.link.cancelled == [5]


def test_relay_tells_the_engine_that_the_client_left() -> None:
    scene = Scene()
    scene.relay.on_gone()
    scene.relay.on_gone()
    assert scene.verdict.outcome is Outcome.GONE
    assert scene.link.cancelled == [5]


def test_client_that_closes_at_done_has_its_answer() -> None:
    """As OpenAI's own client does; the engine's end, with its counts, comes a moment later."""
    scene = Scene()
    scene.frame(b"data: 1\n\n", b"data: [DONE]\n\n", start=SSE)
    scene.relay.on_gone()
    scene.relay.on_gone()
    assert scene.verdicts == []
    ending = Ending(prompt_tokens=3, completion_tokens=2)
    scene.frame(end=ending)
    assert (scene.verdict.outcome, scene.verdict.ending) == (Outcome.DONE, ending)
    assert scene.link.cancelled == []
    assert not scene.client.is_over, "nothing is said to a client that left"


def test_client_that_closed_at_done_had_its_answer_whatever_becomes_of_the_engine() -> None:
    scene = Scene()
    scene.frame(b"data: [DONE]\n\n", start=SSE)
    scene.relay.on_gone()
    scene.relay.on_lost(EngineDied("x"), may_retry=True)
    assert (scene.verdict.outcome, scene.verdict.error) == (Outcome.DONE, None)


@pytest.mark.parametrize("chunks", [(b"data: 1\n\n",), (b"data: [DONE]\n",)])
def test_client_that_closes_before_done_is_gone(chunks: tuple[bytes, ...]) -> None:
    scene = Scene()
    scene.frame(*chunks, start=SSE)
    scene.relay.on_gone()
    assert scene.verdict.outcome is Outcome.GONE
    assert scene.link.cancelled == [5]


def test_client_that_left_with_done_unsent_is_gone() -> None:
    scene = Scene()
    scene.client.is_slow = True
    scene.frame(b"data: [DONE]\n\n", start=SSE)
    scene.relay.on_gone()
    assert scene.verdict.outcome is Outcome.GONE


def test_relay_looks_for_the_disconnect_once_and_only_when_armed() -> None:
    scene = Scene()
    scene.frame(b"1", start=SSE)
    assert scene.client.n_watches == 0
    scene.relay.arm()
    scene.relay.arm()
    assert scene.client.n_watches == 1


def test_relay_cancels_an_attempt_whose_client_left_before_it_began() -> None:
    scene = Scene()
    scene.relay.on_lost(EngineDied("dead"), may_retry=True)
    scene.relay.on_gone()
    assert scene.owner.n_left == 1
    scene.relay.expect()
    scene.relay.bind(scene.link, 6)
    assert scene.verdicts[-1].outcome is Outcome.GONE
    assert scene.link.cancelled == [6]


def test_relay_tells_the_gateways_own_answer_unless_one_has_begun() -> None:
    refused = error_answer(Overloaded("full", retry_after_s=3))
    scene = Scene()
    scene.relay.answer(refused)
    assert scene.client.status == 429
    assert (b"retry-after", b"3") in scene.client.headers
    assert (b"x-request-id", b"req-1") in scene.client.headers
    begun = Scene()
    begun.frame(b"1", start=SSE)
    begun.relay.answer(refused)
    assert begun.client.body == b"1"


def test_relay_enforces_the_deadline() -> None:
    scene = Scene()
    scene.relay.deadline_s = 100.0
    scene.relay.tick(99.0)
    assert scene.verdicts == []
    scene.relay.tick(100.5)
    assert isinstance(scene.verdict.error, DeadlineExceeded)
    assert scene.verdict.outcome is Outcome.FAILED
    assert scene.link.cancelled == [5]


def test_relay_close_lets_go_of_everything() -> None:
    scene = Scene()
    scene.relay.close()
    scene.relay.close()
    assert scene.link.cancelled == [5]
    scene.frame(b"late", start=SSE, end=Ending())
    assert scene.client.status == 0
    assert scene.verdicts == []

"""What the shim does with an adapter that answers by callbacks instead of in a task per request."""

from __future__ import annotations

import pytest

from tests.engine.conftest import Serve
from tests.engine.link_client import LinkClient, until
from tests.engine.test_link import Naughty
from xinf.core.errors import EngineDied, EngineError
from xinf.engine.adapter import CallbackAdapter, FinalReply, Request, Usage


class Called(Naughty):
    """Its requests go as their path says, by callbacks. Proves what the shim does about it, not what engines do."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[str, FinalReply] = {}

    def begin(self, request: Request, reply: FinalReply) -> Work | None:
        way = request.path.strip("/")
        if way == "raises":
            raise KeyError("secret prompt text")
        if way == "says-nothing":
            reply.done(Usage())
            return None
        if way == "dies":
            reply.failed(EngineDied("the engine is gone, \ud800"))  # as of a body that JSON could not spell better
            return None
        self.replies[way] = reply
        return Work(self, way)


class Work:
    def __init__(self, adapter: Called, way: str) -> None:
        self._adapter = adapter
        self._way = way

    def cancel(self) -> None:
        self._adapter.cancelled.append(self._way)
        self._adapter.replies[self._way].chunk(b"after the end")


def test_adapter_is_known_by_what_it_offers() -> None:
    assert isinstance(Called(), CallbackAdapter)
    assert not isinstance(Naughty(), CallbackAdapter)


async def test_answer_may_come_at_any_time_and_ends_once(serve: Serve) -> None:
    adapter = Called()
    shim = await serve(adapter=adapter)
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.submit("POST", "/later")
        reply = await until(lambda: adapter.replies.get("later"), "the request")
        assert len(shim.intake) == 1
        reply.start(200, ())
        reply.chunk(b"one")
        await link.wait(lambda: answer.body == b"one", "the first bytes")
        reply.chunk(b" two")
        reply.done(Usage(completion_tokens=2))
        reply.failed(EngineError("too late"))
        reply.chunk(b"too late")
        await link.wait(lambda: answer.ends, "the end")
        assert (answer.body, answer.end.completion_tokens, answer.end.error) == (b"one two", 2, "")
        assert len(shim.intake) == 0
        assert adapter.cancelled == []


@pytest.mark.parametrize(
    ("way", "error"), [("raises", "engine_error"), ("says-nothing", "engine_error"), ("dies", "engine_died")]
)
async def test_what_goes_wrong_in_begin_ends_its_request_alone(serve: Serve, way: str, error: str) -> None:
    shim = await serve(adapter=Called())
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.ask("POST", f"/{way}")
        assert answer.end.error == error
        assert answer.end.message
        assert "secret" not in answer.end.message
        assert len(shim.intake) == 0


async def test_cancel_deadline_and_stop_end_the_work(serve: Serve) -> None:
    adapter = Called()
    shim = await serve(adapter=adapter)
    async with LinkClient(shim.spec.listen) as link:
        cancelled = await link.submit("POST", "/cancelled")
        expired = await link.submit("POST", "/expired", timeout_ms=20)
        stopped = await link.submit("POST", "/stopped")
        await link.cancel(cancelled.id)
        await link.wait(lambda: expired.ends, "the deadline")
        assert expired.end.error == "deadline_exceeded"
        await until(lambda: adapter.cancelled == ["cancelled", "expired"], "the end of their work")
        assert len(shim.intake) == 1
        shim.intake.fail_all(EngineError("stopped by the test"))
        assert await shim.intake.wait_empty(0.0) == 0
        await link.wait(lambda: stopped.ends, "the end")
        assert (stopped.end.error, stopped.body, cancelled.ends) == ("engine_error", b"", [])


async def test_drain_waits_for_callbacks(serve: Serve) -> None:
    adapter = Called()
    shim = await serve(adapter=adapter)
    async with LinkClient(shim.spec.listen) as link:
        await link.submit("POST", "/one")
        reply = await until(lambda: adapter.replies.get("one"), "the request")
        assert await shim.intake.wait_empty(0.01) == 1
        reply.start(200, ())
        reply.done(Usage())
        assert await shim.intake.wait_empty(30.0) == 0

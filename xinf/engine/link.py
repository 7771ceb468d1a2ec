"""The shim's end of one Link: frames in, frames out, nothing that one request does can end it.

    stream ──on_message──▶ Link ──submit, cancel──▶ Intake ──▶ adapter
           ◀──take──────── Outbox ◀──────────────── Calls

The stream is one of HTTP/2 on this event loop (`xinf.link`), or one of grpc.aio for clients that share their connection
(`contextstream`). It takes one frame at a time; whatever happened meanwhile, on all requests, goes into the next. A
frame is kept below FRAME_BYTES, far under the message limit, so that one large answer does not hold up the tokens of
the others.

Invariants: once the Link has finished, for whatever reason, its calls are abandoned, and `over` is set when the stream
is gone; what it holds for a gateway that does not read is bounded, in bytes and in calls.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from xinf._fast.frame import WireError, decode_gateway_frame
from xinf._fast.framewriter import EngineFrameWriter
from xinf.core.errors import InvalidRequest, Overloaded
from xinf.engine.adapter import Adapter
from xinf.engine.call import Call, Outbox
from xinf.engine.intake import Intake, Submit
from xinf.engine.residency import Feed, Residency

_log = logging.getLogger(__name__)

PROTOCOL = 1
FRAME_BYTES = 4 << 20
# A gateway that does not read loses its Link when this much waits for it; a stream is 1 MiB at most in the gateway.
OUTBOX_BYTES = 64 << 20
# Far above what a gateway sends (its max_inflight_per_replica); bounds memory against one that has gone wild.
OPEN_CALLS = 8192

# A change of load rides on the next frame with tokens; this long it waits for one before it takes a frame of its own.
LOAD_LINGER_S = 0.02


class Stream(Protocol):
    """What a Link runs over. Its owner is told on_message, on_closed and, once and last, on_lost."""

    def wake(self) -> None:
        """Have `take` called soon."""

    def finish(self, status: str, message: str) -> None:
        """End it with a gRPC status, by its name in lower case. Nothing is taken or handed over any more."""


class Link:
    """One gateway process. `hello`: EngineInfo, serialized."""

    def __init__(self, intake: Intake, adapter: Adapter, hello: bytes, stream: Stream) -> None:
        self._intake = intake
        self._adapter = adapter
        self._residency: Residency = adapter.residency()
        self._feed: Feed | None = None  # of a gateway that wants to know what the engine holds
        self._stream = stream
        self._outbox = Outbox(OUTBOX_BYTES, on_over=self._run_over, wake=stream.wake)
        self._calls: dict[int, Call] = {}
        self._last_submit = 0
        self._is_load_due = True
        self._has_more = False  # of residency
        self._is_account_due = True
        self._sent_account = b""
        self._writer = EngineFrameWriter()
        self._writer.hello(hello)
        self._sent_load: tuple[int, ...] | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._has_hello = False  # of the gateway
        self._is_closed = False
        self._is_finished = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gateway = "?"

    def load_changed(self) -> None:
        """Send the load if it is not what was sent last: with the next frame, or soon on its own."""
        self._is_load_due = True
        if self._load_timer is None and not self._is_finished:
            self._load_timer = asyncio.get_running_loop().call_later(LOAD_LINGER_S, self._send_load)

    def say_hello(self, hello: bytes) -> None:
        """Say anew what the engine is: something changed."""
        self._writer.hello(hello)
        self._stream.wake()

    def repeat_load(self) -> None:
        """Send the load even if it has not changed, and how the engine's events are followed if that has."""
        self._sent_load = None
        self._is_load_due = True
        self._is_account_due = True
        self._stream.wake()

    def _send_load(self) -> None:
        self._load_timer = None
        if self._is_load_due:
            self._stream.wake()

    def close(self) -> None:
        """End the Link once everything waiting has been sent."""
        self._is_closed = True
        self._stream.wake()

    # ---- the end --------------------------------------------------------------------------------------------------

    def on_closed(self) -> None:
        """The gateway closed its side."""
        self._finish("ok", "")

    def on_lost(self, reason: str) -> None:
        """The stream is gone."""
        if not self._is_finished:
            _log.info("link of %s is gone: %s", self.gateway, reason)
            self._abandon()
        if not self.over.done():
            self.over.set_result(None)

    def _run_over(self) -> None:
        # In a turn of its own: an adapter is in the middle of what it says.
        asyncio.get_running_loop().call_soon(
            self._refuse,
            "resource_exhausted",
            f"the gateway does not read: more than {OUTBOX_BYTES >> 20} MiB wait for it",
        )

    def _refuse(self, status: str, reason: str) -> None:
        if not self._is_finished:
            _log.warning("link of %s ended: %s", self.gateway, reason)
            self._finish(status, reason)

    def _finish(self, status: str, message: str) -> None:
        self._abandon()
        self._stream.finish(status, message)

    def _abandon(self) -> None:
        """Cancel the requests."""
        self._is_finished = True
        if self._feed is not None:
            self._residency.close(self._feed)
        if self._load_timer is not None:
            self._load_timer.cancel()
        for call in list(self._calls.values()):
            call.abandon()
        self._calls.clear()

    # ---- in -------------------------------------------------------------------------------------------------------

    def on_message(self, data: bytes) -> None:
        """The gateway sent a frame."""
        try:
            self._read(data)
        except WireError as error:
            self._refuse("invalid_argument", f"that is no frame of a Link: {error}")
        except Exception as error:
            _log.exception("a frame of %s could not be handled", self.gateway)
            self._refuse("internal", f"the Link failed: {error}")

    def _read(self, data: bytes) -> None:
        if self._is_finished:
            return
        frame = decode_gateway_frame(data)
        if not self._has_hello:
            version = None if frame.hello is None else frame.hello[1]
            if frame.hello is None or version != PROTOCOL:
                asked = "no hello" if version is None else f"version {version}"
                reason = f"this engine speaks version {PROTOCOL} of the Link, the gateway sent {asked}"
                self._refuse("failed_precondition", reason)
                return
            self._has_hello = True
            self.gateway = frame.hello[0] or "?"
            if frame.hello[2]:
                self._feed = self._residency.open(self._stream.wake)
                self._stream.wake()
            _log.info("link opened", extra={"kv": {"gateway": self.gateway}})
        if frame.resync and self._feed is not None:
            _log.info("residency is sent anew", extra={"kv": {"gateway": self.gateway}})
            self._feed.restart()
        for submit in frame.submits:
            self._submit(submit)
        for call_id in frame.cancels:
            call = self._calls.pop(call_id, None)
            if call is not None:
                call.abandon()
        if len(self._outbox) > 2 * OPEN_CALLS:
            self._refuse("resource_exhausted", f"the gateway does not read: {len(self._outbox)} answers wait for it")

    def _submit(self, submit: Submit) -> None:
        call_id, request_id = submit[0], submit[-1]
        if call_id <= self._last_submit:
            # Answering an id that is in flight would end the request that owns it.
            _log.warning("submit id %d does not count up", call_id, extra={"kv": {"gateway": self.gateway}})
            if call_id not in self._calls:
                error = InvalidRequest(f"submit id {call_id} does not count up, the last was {self._last_submit}")
                Call(call_id, request_id, self._outbox).fail(error)
            return
        self._last_submit = call_id
        if len(self._calls) >= OPEN_CALLS:
            full = Overloaded(f"{OPEN_CALLS} requests are open on this Link", retry_after_s=1)
            Call(call_id, request_id, self._outbox).fail(full)
            return
        self._calls[call_id] = self._intake.begin(submit, self._outbox)

    # ---- out ------------------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """The stream asks for the next frame; empty when nothing waits."""
        if self._is_finished:
            return b""
        try:
            frame = self._next_frame()
        except Exception as error:
            _log.exception("a frame for %s could not be made", self.gateway)
            self._refuse("internal", f"the Link failed: {error}")
            return b""
        if frame:
            if self._is_closed or len(self._outbox) or self._has_more:
                self._stream.wake()
        elif self._is_closed:
            self._finish("ok", "")
        return frame

    def _next_frame(self) -> bytes:
        self._outbox.put(self._writer, FRAME_BYTES, self._ended)
        if self._is_load_due:
            self._put_load()
        if self._is_account_due:
            self._put_account()
        # After the answers that it may be about: whoever routes by it has settled them.
        self._has_more = self._feed is not None and self._feed.put(self._writer)
        return self._writer.take()

    def _ended(self, call_id: int) -> None:
        self._calls.pop(call_id, None)

    def _put_account(self) -> None:
        """Say how the engine's events are followed, if anything of it has changed."""
        self._is_account_due = False
        account = self._residency.account
        told = b"" if account is None else account.serialized()
        if told != self._sent_account:
            self._sent_account = told
            self._writer.following(told)

    def _put_load(self) -> None:
        self._is_load_due = False
        report = self._adapter.load()
        load = (
            report.running,
            report.waiting,
            report.queued_prefill_tokens,
            report.kv_blocks_used,
            report.kv_blocks_total,
            self._outbox.last_begun,
        )
        if load != self._sent_load:
            self._sent_load = load
            self._writer.load(*load)

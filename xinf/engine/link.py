"""The shim's end of one Link: frames in, frames out, nothing that one request does can end it.

One write is in flight at a time; whatever happened meanwhile, on all requests, goes into the next frame. A frame is
kept below FRAME_BYTES, far under the message limit, so that one large answer does not hold up the tokens of the others.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio

from xinf._fast.wire import EngineFrameWriter, WireError, decode_gateway_frame
from xinf.core.errors import InvalidRequest, Overloaded
from xinf.engine.adapter import Adapter
from xinf.engine.call import Call, Outbox
from xinf.engine.intake import Intake, Submit

_log = logging.getLogger(__name__)

PROTOCOL = 1
FRAME_BYTES = 4 << 20
# A gateway that does not read loses its Link when this much waits for it; a stream is 1 MiB at most in the gateway.
OUTBOX_BYTES = 64 << 20
# Far above what a gateway sends (its max_inflight_per_replica); bounds memory against one that has gone wild.
OPEN_CALLS = 8192

# A change of load rides on the next frame with tokens; this long it waits for one before it takes a frame of its own.
LOAD_LINGER_S = 0.02
_LAST_WRITE_S = 0.5

Context = grpc.aio.ServicerContext[bytes, bytes]  # frames, read and written by our own codec


class Link:
    """One gateway process. `hello`: EngineInfo, serialized."""

    def __init__(self, intake: Intake, adapter: Adapter, hello: bytes, context: Context) -> None:
        self._intake = intake
        self._adapter = adapter
        self._hello = hello
        self._context = context
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox = Outbox(OUTBOX_BYTES, self._run_over)
        self._calls: dict[int, Call] = {}
        self._last_submit = 0
        self._is_load_due = True
        self._writer = EngineFrameWriter()
        self._sent_load: tuple[int, ...] | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._refused: tuple[grpc.StatusCode, str] | None = None  # why the shim ends it, for the gateway
        self.gateway = "?"

    async def run(self) -> None:
        """Serve until the gateway ends the Link, goes away or stops reading. Then cancel its requests."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer, self._over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reader.cancel()
            if self._load_timer is not None:
                self._load_timer.cancel()
            for call in list(self._calls.values()):
                call.abandon()
            self._calls.clear()
            # A write in flight is let end: cancelled halfway through the initial metadata, it would keep gRPC from
            # sending the status (seen in grpcio 1.85). It cannot end when the gateway does not read.
            self.close()
            await asyncio.wait({writer}, timeout=_LAST_WRITE_S)
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for task in (reader, writer):
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("link of %s ended: %s: %s", self.gateway, type(error).__name__, error)
                self._refused = self._refused or (grpc.StatusCode.INTERNAL, f"the Link failed: {error}")
        if self._refused is not None:
            await self._context.abort(*self._refused)

    def load_changed(self) -> None:
        """Send the load if it is not what was sent last: with the next frame, or soon on its own."""
        self._is_load_due = True
        if self._load_timer is None:
            self._load_timer = asyncio.get_running_loop().call_later(LOAD_LINGER_S, self._send_load)

    def repeat_load(self) -> None:
        """Send the load even if it has not changed."""
        self._sent_load = None
        self._is_load_due = True
        self._outbox.wake()

    def _send_load(self) -> None:
        self._load_timer = None
        if self._is_load_due:
            self._outbox.wake()

    def close(self) -> None:
        """End the Link once everything waiting has been sent."""
        self._is_closed = True
        self._outbox.wake()

    def _run_over(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
            reason = f"the gateway does not read: more than {OUTBOX_BYTES >> 20} MiB wait for it"
            self._refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            _log.warning("link of %s ended: %s", self.gateway, reason)

    # ---- in -------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        is_first = True
        while True:
            data = await self._context.read()
            if data is grpc.aio.EOF:  # type: ignore[attr-defined]  # the gateway closed its side
                return
            try:
                frame = decode_gateway_frame(data)
            except WireError as error:
                self._refused = (grpc.StatusCode.INVALID_ARGUMENT, f"that is no frame of a Link: {error}")
                return
            if is_first:
                is_first = False
                version = None if frame.hello is None else frame.hello[1]
                if frame.hello is None or version != PROTOCOL:
                    asked = "no hello" if version is None else f"version {version}"
                    reason = f"this engine speaks version {PROTOCOL} of the Link, the gateway sent {asked}"
                    self._refused = (grpc.StatusCode.FAILED_PRECONDITION, reason)
                    return
                self.gateway = frame.hello[0] or "?"
                _log.info("link opened", extra={"kv": {"gateway": self.gateway}})
            for submit in frame.submits:
                self._submit(submit)
            for call_id in frame.cancels:
                call = self._calls.pop(call_id, None)
                if call is not None:
                    call.abandon()

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

    async def _write(self) -> None:
        self._writer.hello(self._hello)
        await self._context.write(self._writer.take())
        while True:
            await self._outbox.wait()
            # One turn of the loop: what else this step says, the end of an answer above all, goes into the same frame.
            await asyncio.sleep(0)
            while frame := self._next_frame():
                await self._context.write(frame)
            if self._is_closed:
                return

    def _next_frame(self) -> bytes:
        """Put together what waits to be sent; empty when nothing does."""
        self._outbox.put(self._writer, FRAME_BYTES, self._ended)
        if self._is_load_due:
            self._put_load()
        return self._writer.take()

    def _ended(self, call_id: int) -> None:
        self._calls.pop(call_id, None)

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

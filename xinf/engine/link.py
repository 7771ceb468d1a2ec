"""The shim's end of one Link: frames in, frames out, nothing that one request does can end it.

One write is in flight at a time; whatever happened meanwhile, on all requests, goes into the next frame. A frame is
kept below FRAME_BYTES, far under the message limit, so that one large answer does not hold up the tokens of the others.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio

from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import InvalidRequest, Overloaded
from xinf.engine.adapter import Adapter
from xinf.engine.call import Call, Outbox
from xinf.engine.intake import Intake

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

Context = grpc.aio.ServicerContext[pb.GatewayFrame, pb.EngineFrame]


class Link:
    """One gateway process."""

    def __init__(self, intake: Intake, adapter: Adapter, hello: pb.EngineInfo, context: Context) -> None:
        self._intake = intake
        self._adapter = adapter
        self._hello = hello
        self._context = context
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox = Outbox(OUTBOX_BYTES, self._run_over)
        self._calls: dict[int, Call] = {}
        self._last_submit = 0
        self._is_load_due = True
        self._sent_load: pb.Load | None = None
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
            frame = await self._context.read()
            if frame is grpc.aio.EOF:  # type: ignore[attr-defined]  # the gateway closed its side
                return
            if is_first:
                is_first = False
                if not frame.HasField("hello") or frame.hello.version != PROTOCOL:
                    asked = f"version {frame.hello.version}" if frame.HasField("hello") else "no hello"
                    reason = f"this engine speaks version {PROTOCOL} of the Link, the gateway sent {asked}"
                    self._refused = (grpc.StatusCode.FAILED_PRECONDITION, reason)
                    return
                self.gateway = frame.hello.gateway or "?"
                _log.info("link opened", extra={"kv": {"gateway": self.gateway}})
            for submit in frame.submits:
                self._submit(submit)
            for call_id in frame.cancels:
                call = self._calls.pop(call_id, None)
                if call is not None:
                    call.abandon()

    def _submit(self, submit: pb.Submit) -> None:
        if submit.id <= self._last_submit:
            # Answering an id that is in flight would end the request that owns it.
            _log.warning("submit id %d does not count up", submit.id, extra={"kv": {"gateway": self.gateway}})
            if submit.id not in self._calls:
                error = InvalidRequest(f"submit id {submit.id} does not count up, the last was {self._last_submit}")
                Call(submit.id, submit.request_id, self._outbox).fail(error)
            return
        self._last_submit = submit.id
        if len(self._calls) >= OPEN_CALLS:
            full = Overloaded(f"{OPEN_CALLS} requests are open on this Link", retry_after_s=1)
            Call(submit.id, submit.request_id, self._outbox).fail(full)
            return
        self._calls[submit.id] = self._intake.begin(submit, self._outbox)

    # ---- out ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        await self._context.write(pb.EngineFrame(hello=self._hello))
        while True:
            await self._outbox.wait()
            # One turn of the loop: what else this step says, the end of an answer above all, goes into the same frame.
            await asyncio.sleep(0)
            while (frame := self._next_frame()) is not None:
                await self._context.write(frame)
            if self._is_closed:
                return

    def _next_frame(self) -> pb.EngineFrame | None:
        """Put together what waits to be sent; None when nothing does."""
        frame = pb.EngineFrame()
        room = FRAME_BYTES
        outbox = self._outbox
        while room > 0 and (call := outbox.first()) is not None:
            start = call.take_start()
            if start is not None:
                frame.starts.append(start)
            data = call.take_data(room)
            if data:
                frame.chunks.add(id=call.id, data=data)
            end = call.take_end()
            if end is not None:
                frame.ends.append(end)
                self._calls.pop(call.id, None)
            room -= len(data) + 64  # 64: about what a start or end takes
            outbox.taken(len(data))
        has_load = self._is_load_due and self._add_load(frame)
        return frame if has_load or room < FRAME_BYTES else None

    def _add_load(self, frame: pb.EngineFrame) -> bool:
        self._is_load_due = False
        report = self._adapter.load()
        load = pb.Load(
            running=report.running,
            waiting=report.waiting,
            queued_prefill_tokens=report.queued_prefill_tokens,
            kv_blocks_used=report.kv_blocks_used,
            kv_blocks_total=report.kv_blocks_total,
            last_submit=self._outbox.last_begun,
        )
        if load == self._sent_load:
            return False
        self._sent_load = load
        frame.load.CopyFrom(load)
        return True

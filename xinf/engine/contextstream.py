"""The stream of a Link that came over grpc.aio: two tasks turn its context into what a Link knows.

For clients that share their connection with other calls, or whose gRPC knows nothing of ours. Each message costs some
hundred us here: gRPC hands it between threads.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import grpc.aio

from xinf.engine.link import Link

_LAST_WRITE_S = 0.5

Context = grpc.aio.ServicerContext[bytes, bytes]  # frames, read and written by our own codec

_log = logging.getLogger(__name__)


class ContextStream:
    """A Link's Stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._woken = asyncio.Event()
        self._ending: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        self._woken.set()

    def finish(self, status: str, message: str) -> None:
        if not self._ending.done():
            self._ending.set_result((status, message))
            self._woken.set()

    async def run(self, link: Link) -> None:
        """Serve `link` until it finishes or the client goes away."""
        reader = asyncio.create_task(self._read(link))
        writer = asyncio.create_task(self._write(link))
        self.wake()
        try:
            both: set[asyncio.Future[Any]] = {reader, writer, self._ending}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in (reader, writer):
                if task.done() and (error := task.exception()) is not None and not self._ending.done():
                    _log.warning("link of %s ended: %s: %s", link.gateway, type(error).__name__, error)
                    self.finish("internal", f"the Link failed: {error}")
            status, message = await self._ending
            # A write in flight is let end: cancelled halfway through the initial metadata, it would keep gRPC from
            # sending the status (seen in grpcio 1.85). It cannot end when the gateway does not read.
            await asyncio.wait({writer}, timeout=_LAST_WRITE_S)
        finally:
            reader.cancel()
            writer.cancel()
            link.on_lost("the call ended")
            await asyncio.gather(reader, writer, return_exceptions=True)
        if status != "ok":
            await self._context.abort(grpc.StatusCode[status.upper()], message)

    async def _read(self, link: Link) -> None:
        while (data := await self._context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            link.on_message(data)
        link.on_closed()

    async def _write(self, link: Link) -> None:
        while not self._ending.done():
            await self._woken.wait()
            self._woken.clear()
            # One turn of the loop: what else this step says, the end of an answer above all, goes into the same frame.
            await asyncio.sleep(0)
            while frame := link.take():
                await self._context.write(frame)

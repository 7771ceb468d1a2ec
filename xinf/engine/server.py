"""The server of a shim: EngineService, the standard health service, reflection, limits.

Gateways' Links are served on the event loop, at the door; whatever else comes is passed on to gRPC's server on a Unix
socket in a private directory. That lies in the replica's own, so that what a killed shim leaves behind is used again by
the next one and goes with the replica; only where its path would be too long for a socket it is a temporary one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from xinf.core.errors import EngineStartFailed
from xinf.engine.service import SERVICE_NAME, EngineService, add_service
from xinf.link import Door

# A little under the second that the protocol promises.
_LOAD_INTERVAL_S = 0.9
_SOCKET_PATH_BYTES = 107  # of sockaddr_un, less its NUL


class EngineServer:
    """Listens on one address until stopped."""

    def __init__(self, service: EngineService, *, listen: str, directory: Path, max_message_bytes: int) -> None:
        """`directory`: the replica's."""
        self._service = service
        self._listen = listen
        self._ticker: asyncio.Task[None] | None = None
        self._private = directory / "grpc"
        if len(os.fsencode(self._private / "s")) > _SOCKET_PATH_BYTES:
            self._private = Path(tempfile.mkdtemp(prefix="xinf-"))
        self._door = Door(
            path=f"/{SERVICE_NAME}/Link",
            make_listener=service.open_link,
            behind=self._private / "s",
            max_message_bytes=max_message_bytes,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs know the sync one
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Gateways ping idle Links to notice a dead engine; that is no offence.
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        add_service(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listen, not serving yet. Raises: EngineStartFailed when the address cannot be had."""
        await self.set_serving(False)
        try:
            # First: who has the address has the directory.
            self._door.bind(self._listen)
            self._private.mkdir(mode=0o700, exist_ok=True)
            self._private.chmod(0o700)
            self._server.add_insecure_port(f"unix:{self._private}/s")
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineStartFailed(
                f"cannot listen on {self._listen}: {error}",
                remedy="see whether another process listens there",
                cause="bad_arguments",
            ) from error
        await self._server.start()
        await self._door.open()
        self._ticker = asyncio.create_task(self._repeat_load())

    async def set_serving(self, is_serving: bool) -> None:
        """Tell the standard health service."""
        kind = health_pb2.HealthCheckResponse
        state = kind.SERVING if is_serving else kind.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, state)

    async def stop(self, *, flush_s: float) -> None:
        """Send what waits on the Links for at most `flush_s`, then close and leave no socket behind."""
        await self._service.close_links(flush_s)
        if self._ticker is not None:
            self._ticker.cancel()
        await self._server.stop(grace=0.2)
        await self._door.close()
        shutil.rmtree(self._private, ignore_errors=True)

    async def _repeat_load(self) -> None:
        while True:
            await asyncio.sleep(_LOAD_INTERVAL_S)
            self._service.repeat_load()

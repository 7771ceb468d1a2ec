"""MetaService: a Store for other processes, over gRPC, with health and reflection.

A watch holds nothing but its position (history.py) and writes one message at a time, waiting until the transport took
it: a client that does not read stops its own handler, never the store, and is in the end told Compacted.
"""

# ruff: noqa: N802 (methods are called as the service's calls are)
from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from xinf._pb import meta_service_pb2 as pb
from xinf._pb import meta_service_pb2_grpc as pb_grpc
from xinf.core.errors import InvalidRequest, StoreError, XinfError
from xinf.core.ids import LeaseId, Revision
from xinf.meta import wire
from xinf.meta.contract import Backup, Store, WatchBatch

if TYPE_CHECKING:
    from grpc.aio import ServicerContext

    Context = ServicerContext[Any, Any]

log = logging.getLogger("xinf.meta")

SERVICE = pb.DESCRIPTOR.services_by_name["MetaService"].full_name
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *wire.MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not half of the calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

T = TypeVar("T")


@runtime_checkable
class BackedUp(Protocol):
    """A store that can copy itself into a directory on this host."""

    async def backup(self, directory: Path) -> Backup: ...


class MetaServer:
    """Serves one store. `gateway_url` is told to who asks for the status; it may be set when it becomes known."""

    def __init__(self, store: Store, *, gateway_url: str = "") -> None:
        self._service = _Service(store, gateway_url)
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        self._unix_paths: list[Path] = []
        self.ports: tuple[int, ...] = ()  # as bound, in the order of the targets; 1 for a Unix socket

    @property
    def gateway_url(self) -> str:
        return self._service.gateway_url

    @gateway_url.setter
    def gateway_url(self, url: str) -> None:
        self._service.gateway_url = url

    async def start(self, targets: Sequence[str]) -> None:
        """Listen on "unix:/path" and "host:port" targets; port 0 picks one, see `ports`.

        Raises: StoreError when a target cannot be bound.
        """
        server = grpc.aio.server(options=SERVER_OPTIONS)
        pb_grpc.add_MetaServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self.ports = tuple(_bind(server, target) for target in targets)
        self._unix_paths = [Path(target[5:]) for target in targets if target.startswith("unix:")]
        await server.start()
        self._server = server
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, end the watches at once, let other calls end for `grace_s`. The store stays open."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self._service.end_watches()
        await self._server.stop(grace_s)
        self._server = None
        for path in self._unix_paths:
            path.unlink(missing_ok=True)


def _bind(server: grpc.aio.Server, target: str) -> int:
    try:
        port: int = server.add_insecure_port(target)
    except RuntimeError as error:
        raise StoreError(f"cannot listen on {target}: {error}", remedy="is the port or path in use?") from error
    if target.startswith("unix:"):
        Path(target[5:]).chmod(0o600)
    return port


class _Service(pb_grpc.MetaServiceServicer):
    def __init__(self, store: Store, gateway_url: str) -> None:
        self._store = store
        self.gateway_url = gateway_url
        self._watches: set[asyncio.Task[object]] = set()
        self._is_stopping = False

    def end_watches(self) -> None:
        self._is_stopping = True
        for task in self._watches:
            task.cancel()

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        kv = await _answer(context, self._store.get(request.key))
        if kv is None:
            return pb.GetResponse(found=False)
        return pb.GetResponse(found=True, kv=wire.key_value_to_pb(kv))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        return wire.listing_to_pb(await _answer(context, self._store.list(request.prefix)))

    async def Txn(self, request: pb.TxnRequest, context: Context) -> pb.TxnResponse:
        try:
            compares, ops = wire.txn_from_pb(request)
        except InvalidRequest as error:
            await _abort(context, error)
        result = await _answer(context, self._store.txn(compares, ops))
        return pb.TxnResponse(succeeded=result.succeeded, revision=result.revision)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> None:
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._watches.add(task)
        batches = cast(
            AsyncGenerator[WatchBatch, None], self._store.watch(request.prefix, Revision(request.from_revision))
        )
        try:
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    await context.write(wire.watch_batch_to_pb(batch))
        except XinfError as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._watches.discard(task)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the metastore is stopping")

    async def LeaseGrant(self, request: pb.LeaseGrantRequest, context: Context) -> pb.LeaseGrantResponse:
        return pb.LeaseGrantResponse(lease=await _answer(context, self._store.grant(request.ttl_s)))

    async def LeaseKeepAlive(self, request: pb.LeaseKeepAliveRequest, context: Context) -> pb.LeaseKeepAliveResponse:
        return pb.LeaseKeepAliveResponse(ttl_s=await _answer(context, self._store.keep_alive(LeaseId(request.lease))))

    async def LeaseRevoke(self, request: pb.LeaseRevokeRequest, context: Context) -> pb.LeaseRevokeResponse:
        await _answer(context, self._store.revoke(LeaseId(request.lease)))
        return pb.LeaseRevokeResponse()

    async def Status(self, _request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        message = wire.status_to_pb(await _answer(context, self._store.status()))
        message.gateway_url = self.gateway_url
        return message

    async def Check(self, _request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        return pb.CheckResponse(problems=await _answer(context, self._store.check()))

    async def Backup(self, request: pb.BackupRequest, context: Context) -> pb.BackupResponse:
        if not isinstance(self._store, BackedUp):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this backend is backed up with its own tools")
            raise AssertionError("abort raises")
        directory = Path(request.directory)
        if not directory.is_absolute():
            await _abort(context, InvalidRequest(f"{directory} is not an absolute path", param="directory"))
        done = await _answer(context, self._store.backup(directory))
        return pb.BackupResponse(revision=done.revision, written_bytes=done.written_bytes)


async def _answer(context: Context, answer: Awaitable[T]) -> T:
    """Await the store's answer; end the call with its error when it raises one."""
    try:
        return await answer
    except XinfError as error:
        await _abort(context, error)
        raise AssertionError("abort raises") from error


async def _abort(context: Context, error: XinfError) -> None:
    await context.abort(wire.status_code(error), str(error), wire.trailing_metadata(error))

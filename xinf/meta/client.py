"""MetaClient: the Store contract for processes that do not own the store, over gRPC.

While the owner is away:

    get list status check keep_alive grant     asked again until `timeout_s` has passed, then Unavailable
    revoke                                     the same; a repetition that finds the lease gone counts as done
    watch                                      comes back by itself, without end, behind the last revision delivered
    txn                                        waits for a connection, then asks once

A transaction is never sent twice: one that was on its way when the connection broke may or may not have been applied,
and repeating it could apply it twice or answer that its own first try was in the way. It raises Unavailable with
`fields["outcome"] == "unknown"` instead; whoever reconciles reads and decides again. `"not_applied"` means that nothing
was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from xinf._pb import meta_service_pb2 as pb
from xinf._pb import meta_service_pb2_grpc as pb_grpc
from xinf.core.errors import InvalidRequest, LeaseExpired, StoreError, Unavailable
from xinf.core.ids import LeaseId, Revision
from xinf.meta import wire
from xinf.meta.bounds import check_prefix, check_txn
from xinf.meta.contract import Backup, Compare, KeyValue, Listing, Op, StoreStatus, TxnResult, WatchBatch

log = logging.getLogger("xinf.meta")

RETRY_INITIAL_S = 0.02
RETRY_MAX_S = 1.0
LONG_CALL_S = 600.0  # check and backup walk the whole store
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *wire.MESSAGE_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # An owner that hangs or a host that vanished: a watch notices within 15 s, without a call that times out.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.use_local_subchannel_pool", 1),
)
# What a call may fail with on its way; anything else without our error in it is a bug on one side.
_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,  # a stream that was reset
        grpc.StatusCode.UNKNOWN,
    }
)
_READS = frozenset({"Get", "List", "Status", "Check"})


class MetaClient:
    """A Store over gRPC; see above. `target`: "unix:/path" or "host:port". Connects on first use, in its event loop."""

    def __init__(self, target: str, *, timeout_s: float = 10.0) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._is_closed = False

    async def get(self, key: str) -> KeyValue | None:
        message: pb.GetResponse = await self._ask("Get", pb.GetRequest(key=_text(key)))
        return wire.key_value_from_pb(message.kv) if message.found else None

    async def list(self, prefix: str) -> Listing:
        return wire.listing_from_pb(await self._ask("List", pb.ListRequest(prefix=_text(prefix))))

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """As the contract says; see above for what happens when the connection breaks.

        Raises: Unavailable with `fields["outcome"]`.
        """
        check_txn(compares, ops)
        request = wire.txn_to_pb(compares, ops)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        channel = self._open()
        try:
            async with asyncio.timeout_at(deadline_s):
                await channel.channel_ready()
        except TimeoutError:
            raise self._unavailable("not_applied") from None
        try:
            message = await self._stub.Txn(request, timeout=max(0.1, deadline_s - loop.time()), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            self._raise_told(error)
            raise self._unavailable("unknown") from error
        return wire.txn_result_from_pb(message)

    async def watch(self, prefix: str, from_revision: Revision) -> AsyncIterator[WatchBatch]:
        check_prefix(prefix)
        position = max(1, from_revision)
        delay_s = RETRY_INITIAL_S
        while not self.is_closed():
            self._open()
            call = self._stub.Watch(pb.WatchRequest(prefix=prefix, from_revision=position), wait_for_ready=True)
            try:
                async for message in call:
                    batch = wire.watch_batch_from_pb(message)
                    position = batch.revision + 1
                    delay_s = RETRY_INITIAL_S
                    yield batch
            except grpc.aio.AioRpcError as error:
                if not self.is_closed():
                    self._raise_told(error)
                    log.debug("watch lost", extra={"kv": {"prefix": prefix, "code": error.code().name}})
            except asyncio.CancelledError:
                if not self.is_closed() or _is_cancelled():
                    raise
                return  # closing the channel cancels its calls
            finally:
                call.cancel()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def grant(self, ttl_s: float) -> LeaseId:
        # Asked again after a lost answer, the first lease is nobody's and simply ends.
        message: pb.LeaseGrantResponse = await self._ask("LeaseGrant", pb.LeaseGrantRequest(ttl_s=ttl_s))
        return LeaseId(message.lease)

    async def keep_alive(self, lease: LeaseId) -> float:
        message: pb.LeaseKeepAliveResponse = await self._ask("LeaseKeepAlive", pb.LeaseKeepAliveRequest(lease=lease))
        ttl_s: float = message.ttl_s
        return ttl_s

    async def revoke(self, lease: LeaseId) -> None:
        await self._ask("LeaseRevoke", pb.LeaseRevokeRequest(lease=lease), repeated_ok=LeaseExpired)

    async def status(self) -> StoreStatus:
        return wire.status_from_pb(await self._ask("Status", pb.StatusRequest()))

    async def check(self) -> Sequence[str]:
        message: pb.CheckResponse = await self._ask("Check", pb.CheckRequest(), call_s=LONG_CALL_S)
        return list(message.problems)

    async def backup(self, directory: Path) -> Backup:
        """Have the owner copy the store into an empty directory on its host.

        Raises: InvalidRequest when something is there, StoreFull, Unavailable.
        """
        request = pb.BackupRequest(directory=str(directory.absolute()))
        message: pb.BackupResponse = await self._ask("Backup", request, call_s=LONG_CALL_S)
        return Backup(Revision(message.revision), message.written_bytes)

    def is_closed(self) -> bool:
        return self._is_closed

    async def close(self) -> None:
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def _ask(
        self,
        rpc: str,
        request: object,
        *,
        call_s: float | None = None,
        repeated_ok: type[StoreError] | None = None,
    ) -> Any:
        """Call until answered; for calls that may be repeated.

        `call_s`: how long one call may take once connected. `repeated_ok`: this error, on a repetition, is the answer.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        delay_s = RETRY_INITIAL_S
        is_repetition = False
        is_write = rpc not in _READS
        while True:
            channel = self._open()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await channel.channel_ready()
                timeout_s = max(0.1, deadline_s - loop.time()) if call_s is None else call_s
                return await getattr(self._stub, rpc)(request, timeout=timeout_s, wait_for_ready=True)
            except TimeoutError:
                raise self._unavailable("unknown" if is_repetition and is_write else "not_applied") from None
            except grpc.aio.AioRpcError as error:
                if is_repetition and repeated_ok and isinstance(wire.error_from_rpc(error), repeated_ok):
                    return None
                self._raise_told(error)
                if loop.time() + delay_s >= deadline_s:
                    raise self._unavailable("unknown" if is_write else "not_applied") from error
            is_repetition = True
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    def _open(self) -> grpc.aio.Channel:
        if self._is_closed:
            raise StoreError("the metastore client is closed")
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
            self._stub = pb_grpc.MetaServiceStub(self._channel)
        return self._channel

    def _raise_told(self, error: grpc.aio.AioRpcError) -> None:
        """Raise what the server said, if it said something; return when the call was lost on its way."""
        told = wire.error_from_rpc(error)
        if told is not None:
            raise told
        if error.code() not in _LOST:
            raise StoreError(f"metastore at {self.target} answered {error.code().name}: {error.details()}") from error

    def _unavailable(self, outcome: str) -> Unavailable:
        what = "; whether the change was made is unknown" if outcome == "unknown" else ""
        return Unavailable(
            f"the metastore at {self.target} gave no answer within {self._timeout_s:g} s{what}",
            remedy="start `xinf serve`",
            target=self.target,
            outcome=outcome,
        )


def _text(key: str) -> str:
    """Refuse here what protobuf cannot carry, with the contract's error."""
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{key!r} is not printable ASCII", param="key") from error
    return key


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

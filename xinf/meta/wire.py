"""The contract's structs as protobuf messages and back, and errors as gRPC statuses; nothing here does I/O.

Absent is None in the contract and 0 on the wire: revisions and leases start at 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import grpc
import msgspec

from xinf._pb import meta_service_pb2 as pb
from xinf.core.errors import InvalidRequest, XinfError, from_wire, to_wire
from xinf.core.ids import LeaseId, Revision
from xinf.meta.contract import Compare, Delete, Event, KeyValue, Listing, Op, Put, StoreStatus, TxnResult, WatchBatch

ERROR_KEY = "xinf-error-bin"
MAX_MESSAGE_BYTES = 64 << 20  # a listing of 48 MiB with its keys, revisions and framing
MESSAGE_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)


def key_value_to_pb(kv: KeyValue) -> pb.KeyValue:
    return pb.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease or 0,
    )


def key_value_from_pb(message: pb.KeyValue) -> KeyValue:
    return KeyValue(
        key=message.key,
        value=message.value,
        create_revision=Revision(message.create_revision),
        mod_revision=Revision(message.mod_revision),
        version=message.version,
        lease=LeaseId(message.lease) if message.lease else None,
    )


def listing_to_pb(listing: Listing) -> pb.ListResponse:
    return pb.ListResponse(kvs=map(key_value_to_pb, listing.items), revision=listing.revision)


def listing_from_pb(message: pb.ListResponse) -> Listing:
    return Listing(tuple(map(key_value_from_pb, message.kvs)), Revision(message.revision))


def txn_to_pb(compares: Sequence[Compare], ops: Sequence[Op]) -> pb.TxnRequest:
    request = pb.TxnRequest(
        compares=[pb.Compare(key=compare.key, mod_revision=compare.mod_revision or 0) for compare in compares]
    )
    for op in ops:
        if isinstance(op, Put):
            request.ops.add(put=pb.Put(key=op.key, value=op.value, lease=op.lease or 0))
        else:
            request.ops.add(delete=op.key)
    return request


def txn_from_pb(request: pb.TxnRequest) -> tuple[list[Compare], list[Op]]:
    """Raises: InvalidRequest for an operation of a kind that this version does not know."""
    compares = [Compare(c.key, Revision(c.mod_revision) if c.mod_revision else None) for c in request.compares]
    ops: list[Op] = []
    for op in request.ops:
        kind = op.WhichOneof("kind")
        if kind == "put":
            ops.append(Put(op.put.key, op.put.value, LeaseId(op.put.lease) if op.put.lease else None))
        elif kind == "delete":
            ops.append(Delete(op.delete))
        else:
            raise InvalidRequest("an operation of the transaction is neither put nor delete", param="ops")
    return compares, ops


def txn_result_from_pb(message: pb.TxnResponse) -> TxnResult:
    return TxnResult(message.succeeded, Revision(message.revision))


def watch_batch_to_pb(batch: WatchBatch) -> pb.WatchBatch:
    message = pb.WatchBatch(revision=batch.revision)
    for event in batch.events:
        if event.kv is None:
            message.events.add(delete=event.key, revision=event.revision)
        else:
            message.events.add(put=key_value_to_pb(event.kv), revision=event.revision)
    return message


def watch_batch_from_pb(message: pb.WatchBatch) -> WatchBatch:
    events = []
    for event in message.events:
        kv = key_value_from_pb(event.put) if event.WhichOneof("kind") == "put" else None
        events.append(Event(kv.key if kv else event.delete, Revision(event.revision), kv))
    return WatchBatch(tuple(events), Revision(message.revision))


def status_to_pb(status: StoreStatus) -> pb.StatusResponse:
    return pb.StatusResponse(**msgspec.structs.asdict(status))


def status_from_pb(message: pb.StatusResponse) -> StoreStatus:
    return msgspec.convert({name: getattr(message, name) for name in StoreStatus.__struct_fields__}, type=StoreStatus)


def status_code(error: XinfError) -> grpc.StatusCode:
    code: grpc.StatusCode = grpc.StatusCode[error.grpc_status]
    return code


def trailing_metadata(error: XinfError) -> tuple[tuple[str, bytes], ...]:
    return ((ERROR_KEY, to_wire(error)),)


def error_from_rpc(error: grpc.aio.AioRpcError) -> XinfError | None:
    """Restore the error that the server raised; None when the call failed on its way."""
    metadata = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == ERROR_KEY:
            return from_wire(value if isinstance(value, bytes) else value.encode())
    return None

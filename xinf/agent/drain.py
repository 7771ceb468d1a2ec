"""Asks a shim to end its requests before it is stopped."""

from __future__ import annotations

import grpc

from xinf._pb.engine_service_pb2 import DrainRequest
from xinf._pb.engine_service_pb2_grpc import EngineServiceStub

_ANSWER_S = 5.0  # beyond the drain's own deadline


async def drain(address: str, timeout_s: float) -> int | None:
    """Have the shim at `address` refuse new requests and end the open ones.

    Returns how many were left when `timeout_s` was over; None if the shim cannot be asked.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        stub = EngineServiceStub(channel)
        try:
            answer = await stub.Drain(DrainRequest(timeout_s=timeout_s), timeout=timeout_s + _ANSWER_S)
        except grpc.aio.AioRpcError:
            return None
    unfinished: int = answer.unfinished
    return unfinished

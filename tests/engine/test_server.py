"""One address for everything that a shim serves, over gRPC's client and a gateway's; what is left when it stops."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.engine.conftest import Serve
from tests.engine.link_client import LinkClient, generate, until
from xinf._fast.frame import decode_engine_frame
from xinf._fast.framewriter import GatewayFrameWriter, encode_head
from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc
from xinf.core.errors import EngineStartFailed
from xinf.engine import contextstream, server
from xinf.link import ClientStream, open_stream

BODY = b'{"model":"sim","prompt":"hello","max_tokens":3}'
N_ROUNDS = 10


class Gateway:
    """A gateway's Link, no more than its frames."""

    def __init__(self) -> None:
        self.writer = GatewayFrameWriter()
        self.writer.hello("test/1/0", 1, False)
        self.frames: list[Any] = []
        self.lost: list[str] = []
        self.stream: ClientStream

    async def open(self, target: str) -> None:
        self.stream = await open_stream(target, "/xinf.engine.v1.EngineService/Link", self)
        self.stream.wake()

    def is_worthwhile(self) -> bool:
        return True

    def take(self) -> bytes:
        return self.writer.take(1 << 20)

    def on_message(self, data: bytes) -> None:
        self.frames.append(decode_engine_frame(data))

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)

    async def ask(self, number: int) -> None:
        head = encode_head("POST", "/v1/completions", [])
        self.writer.submit(number, head, BODY, 0, 0, "", "")
        self.stream.wake()
        ends: Any = await until(
            lambda: self.lost or [end for frame in self.frames for end in frame.ends if end[0] == number], "the end"
        )
        assert ends[0][3] == 3, ends


async def test_everything_is_served_on_one_address_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    n_shared = []
    run = contextstream.ContextStream.run
    monkeypatch.setattr(contextstream.ContextStream, "run", lambda *a: (n_shared.append(1), run(*a))[1])
    shim = await serve(step_ms=1)
    gateway = Gateway()
    async with LinkClient(shim.spec.listen) as link, grpc.aio.insecure_channel(shim.spec.listen) as channel:
        stub = pb_grpc.EngineServiceStub(channel)
        await gateway.open(shim.spec.listen)

        async def info() -> None:
            assert (await stub.GetInfo(pb.GetInfoRequest())).replica == "r-1"

        async def well() -> None:
            assert (await stub.Health(pb.HealthRequest())).is_serving
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

        async def large() -> None:
            body = BODY.replace(b"hello", b"x" * (1 << 20))
            submit = pb.Submit(method="POST", path="/v1/completions", body=body)
            assert (await generate(stub, submit)).status in (200, 400)

        async def names() -> None:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            found = {service.name for service in (await call.read()).list_services_response.service}
            assert "xinf.engine.v1.EngineService" in found
            await call.done_writing()

        async def third() -> None:
            assert (await link.ask("POST", "/v1/completions", BODY)).end.completion_tokens == 3

        for number in range(1, N_ROUNDS):
            await asyncio.gather(info(), well(), large(), names(), third(), gateway.ask(number))
        assert n_shared == [1]
        # One connection for each channel, and the gateway's.
        assert len(shim.server._door._transports) == 3
    await shim.server.stop(flush_s=1.0)
    assert await until(lambda: gateway.lost, "the end of the Link") == ["the stream ended"]


async def test_a_gateways_link_is_refused_as_grpc_words_it(serve: Serve) -> None:
    shim = await serve()
    gateway = Gateway()
    gateway.writer.clear()
    gateway.writer.hello("test/1/0", 9, False)
    await gateway.open(shim.spec.listen)
    (reason,) = await until(lambda: gateway.lost, "the end of the Link")
    assert reason == "failed_precondition: this engine speaks version 1 of the Link, the gateway sent version 9"
    assert not shim.server._service._links


async def test_a_stop_leaves_nothing_behind_and_a_second_shim_cannot_listen(serve: Serve, short_dir: Path) -> None:
    shim = await serve()
    assert stat.S_IMODE((short_dir / "grpc").stat().st_mode) == 0o700
    with pytest.raises(EngineStartFailed, match=r"cannot listen on unix:.*/e\.sock"):
        await serve()
    async with LinkClient(shim.spec.listen):  # the first has lost nothing
        pass
    await shim.server.stop(flush_s=1.0)
    assert not (short_dir / "grpc").exists()
    assert not (short_dir / "e.sock").exists()


async def test_what_a_killed_shim_left_is_used_again(serve: Serve, short_dir: Path) -> None:
    (short_dir / "grpc").mkdir(mode=0o755)
    for name in ("e.sock", "grpc/s"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(short_dir / name))
    shim = await serve()
    assert stat.S_IMODE((short_dir / "grpc").stat().st_mode) == 0o700
    async with LinkClient(shim.spec.listen):
        pass


async def test_a_path_too_long_for_a_socket_is_a_temporary_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SOCKET_PATH_BYTES", 5)
    shim = await serve()
    private = shim.server._private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    async with LinkClient(shim.spec.listen):
        pass
    await shim.server.stop(flush_s=1.0)
    assert not private.exists()


async def test_a_port_is_served_and_not_shared(serve: Serve) -> None:
    shim = await serve(listen="127.0.0.1:0")
    target = f"127.0.0.1:{shim.server._door.port}"
    gateway = Gateway()
    await gateway.open(target)
    await gateway.ask(1)
    async with grpc.aio.insecure_channel(target) as channel:
        assert (await pb_grpc.EngineServiceStub(channel).GetInfo(pb.GetInfoRequest())).engine == "sim"
    with pytest.raises(EngineStartFailed, match="cannot listen on 127"):
        await serve(listen=target)
    gateway.stream.close()

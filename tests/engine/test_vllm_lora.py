"""LoRA adapters of the real vLLM, loaded and unloaded over gRPC while it serves.

The adapter's weights are zero and so is `o_proj` of the scripted model: the text stays as it is. It proves names,
places and errors, not what an adapter does to a model.
"""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from tests.engine.link_client import LinkClient
from tests.engine.lora_adapter import write_adapter
from tests.engine_fixtures import StartVllm, VllmEngine
from xinf._pb import engine_service_pb2 as pb
from xinf.registry import scripted

pytestmark = pytest.mark.engine


async def test_adapters_come_and_go_while_it_serves(start_vllm: StartVllm, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "polite")
    engine = start_vllm({"enable-lora": True, "max-lora-rank": 8})
    async with LinkClient(engine.target) as link:

        async def ask(model: str) -> tuple[int | None, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            answer = await link.ask("POST", "/v1/chat/completions", body)
            return answer.status, answer.body.decode()

        assert (await ask("polite"))[0] == 404
        await link.stub.LoadLora(pb.LoadLoraRequest(name="polite", path=str(adapter)))
        status, body = await ask("polite")
        assert status == 200
        assert scripted.ANSWER in body
        for name, path, code in (
            ("polite", str(adapter), grpc.StatusCode.INVALID_ARGUMENT),  # there already
            ("other", "/no/such/adapter", grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await link.stub.LoadLora(pb.LoadLoraRequest(name=name, path=path))
            assert caught.value.code() is code
        await link.stub.UnloadLora(pb.UnloadLoraRequest(name="polite"))
        assert (await ask("polite"))[0] == 404
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await link.stub.UnloadLora(pb.UnloadLoraRequest(name="polite"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await ask("scripted"))[0] == 200


async def test_adapters_need_an_engine_that_was_started_for_them(vllm_engine: VllmEngine) -> None:
    async with LinkClient(vllm_engine.target) as link:
        with pytest.raises(grpc.aio.AioRpcError, match="enable-lora"):
            await link.stub.LoadLora(pb.LoadLoraRequest(name="x", path="/x"))

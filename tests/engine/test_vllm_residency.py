"""What the real vLLM holds, as its shim tells it: promised and found are compared, request by request."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.link_client import Answer, LinkClient, until
from tests.engine.lora_adapter import write_adapter
from tests.engine_fixtures import SERVED_NAME, StartVllm, VllmEngine
from xinf._pb import engine_service_pb2 as pb
from xinf.core.seed import lora_seed

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
)
BLOCK = 32


@pytest.fixture
async def link(vllm_engine: VllmEngine) -> AsyncIterator[LinkClient]:
    async with LinkClient(vllm_engine.target, wants_residency=True) as made:
        await made.wait(lambda: made.n_residencies, "the first message")
        yield made


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words)) + rng.choice([".", " — déjà vu", " 你好", " 🙂", "?\n"])


def body_of(messages: list[dict[str, Any]], **fields: Any) -> bytes:
    return json.dumps({"model": SERVED_NAME, "messages": messages, "max_tokens": 64, **fields}).encode()


def usable(promised: int, answer: Answer) -> int:
    """Engines find whole blocks, and never the last token's."""
    return min(promised, answer.end.prompt_tokens - 1) // BLOCK * BLOCK


async def ask(link: LinkClient, body: bytes, seed: int) -> tuple[Answer, int]:
    """Ask, and give the answer with what was promised before. The engine must be as it said: nothing is in flight."""
    promised = link.promised(body, seed)
    answer = await link.ask("POST", CHAT, body)
    assert answer.status == 200, answer.body
    return answer, promised


async def test_engine_is_exact_and_says_how_prompts_are_chained(link: LinkClient) -> None:
    assert link.info is not None
    assert (link.info.residency, link.residency_state) == ("exact", "exact")
    assert link.info.chunk_bytes == 64
    assert link.info.chain_seed


async def test_conversations_are_promised_as_they_are_found(link: LinkClient) -> None:
    assert link.info is not None
    rng = random.Random(20)
    errors = []
    for _ in range(4):
        messages = [{"role": "system", "content": text(rng, 40)}, {"role": "user", "content": text(rng, 60)}]
        for _ in range(4):
            answer, promised = await ask(link, body_of(messages), link.info.chain_seed)
            errors.append((usable(promised, answer) - answer.end.cached_tokens) // BLOCK)
            content = answer.json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": content}, {"role": "user", "content": text(rng, 30)}]
    assert all(abs(error) <= 1 for error in errors), errors
    assert sum(error == 0 for error in errors) >= len(errors) - 2, errors


async def test_engine_says_how_its_events_are_followed(link: LinkClient) -> None:
    assert link.info is not None
    rng = random.Random(24)
    await ask(link, body_of([{"role": "user", "content": text(rng, 100)}]), link.info.chain_seed)
    told = await until(lambda: next((told for told in link.followings if told.events), None), "what came of events")
    assert told.batches >= told.replayed
    assert (told.gaps, told.resets, told.malformed, told.foreign, told.unbound) == (0, 0, 0, 0, 0)
    assert 0 < told.lag_mean_s <= told.lag_max_s


async def test_tools_are_part_of_what_is_promised(link: LinkClient) -> None:
    assert link.info is not None
    rng = random.Random(21)
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": text(rng, 60),
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    messages = [{"role": "user", "content": text(rng, 60)}]
    await ask(link, body_of(messages, tools=[tool]), link.info.chain_seed)
    other = [{"role": "user", "content": text(rng, 60)}]
    answer, promised = await ask(link, body_of(other, tools=[tool]), link.info.chain_seed)
    assert answer.end.cached_tokens > BLOCK
    assert abs(usable(promised, answer) - answer.end.cached_tokens) <= BLOCK


async def test_adapters_are_held_apart(start_vllm: StartVllm, tmp_path: Path) -> None:
    engine = start_vllm({"enable-lora": True, "max-lora-rank": 8})
    adapter = write_adapter(tmp_path / "poet")
    rng = random.Random(22)
    async with LinkClient(engine.target, wants_residency=True) as link:
        assert link.info is not None
        seed = link.info.chain_seed
        await link.stub.LoadLora(pb.LoadLoraRequest(name="poet", path=str(adapter)))
        await link.wait(lambda: link.info is not None and list(link.info.loras) == ["poet"], "the adapter's name")
        messages = [{"role": "user", "content": text(rng, 150)}]
        for model, own in (("poet", lora_seed(seed, "poet")), (SERVED_NAME, seed)):
            first, promised = await ask(link, body_of(messages, model=model), own)
            assert (promised, first.end.cached_tokens) == (0, 0)
            again, promised = await ask(link, body_of(messages, model=model), own)
            assert again.end.cached_tokens > BLOCK
            assert abs(usable(promised, again) - again.end.cached_tokens) <= BLOCK


async def test_streams_and_cancelled_requests_are_told_too(link: LinkClient) -> None:
    assert link.info is not None
    rng = random.Random(23)
    body = body_of([{"role": "user", "content": "go on forever " + text(rng, 100)}], stream=True, max_tokens=2000)
    answer = await link.submit("POST", CHAT, body)
    await link.wait(lambda: answer.chunks, "the first chunk")
    await link.cancel(answer.id)
    await link.wait_load(lambda load: load.running == 0 and load.waiting == 0, "an idle engine")
    again, promised = await ask(link, body_of(json.loads(body)["messages"]), link.info.chain_seed)
    assert again.end.cached_tokens > BLOCK
    assert abs(usable(promised, again) - again.end.cached_tokens) <= BLOCK


async def test_blocks_that_the_engine_evicts_are_taken_back(start_vllm: StartVllm) -> None:
    engine = start_vllm({"num-gpu-blocks-override": 40, "max-model-len": 1024})
    rng = random.Random(24)
    async with LinkClient(engine.target, wants_residency=True) as link:
        assert link.info is not None
        seed = link.info.chain_seed
        bodies = [body_of([{"role": "user", "content": text(rng, 300)}]) for _ in range(8)]
        for body in bodies:
            await ask(link, body, seed)
        await link.wait(lambda: link.promised(bodies[0], seed) == 0, "the oldest prompt taken back")
        assert len(link.held) <= 40 + 16
        errors = []
        for _ in range(30):
            answer, promised = await ask(link, rng.choice(bodies), seed)
            errors.append((usable(promised, answer) - answer.end.cached_tokens) // BLOCK)
        assert all(abs(error) <= 1 for error in errors), errors

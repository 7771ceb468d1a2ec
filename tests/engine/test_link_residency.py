"""What a Link tells of the engine's cache, with the simulated engine over real gRPC: promised and found compared."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.engine.conftest import Serve
from tests.engine.link_client import Answer, LinkClient
from xinf._pb import engine_service_pb2 as pb
from xinf.core.seed import chain_seed, lora_seed

CHAT = "/v1/chat/completions"
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
BLOCK = 16


def chat(*contents: str, max_tokens: int = 24, **fields: Any) -> bytes:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return json.dumps({"messages": messages, "max_tokens": max_tokens, **fields}).encode()


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


async def settled(link: LinkClient, body: bytes, seed: int, at_least: int) -> None:
    """Wait until so much of a prompt is promised."""
    await link.wait(lambda: link.promised(body, seed) >= at_least, f"{at_least} tokens promised")


async def test_hello_says_how_prompts_are_chained(serve: Serve) -> None:
    shim = await serve()
    async with LinkClient(shim.spec.listen) as link:
        assert link.info is not None
        assert link.info.residency == "exact"
        assert link.info.chunk_bytes == 64
        assert link.info.chain_seed == chain_seed("sim")


async def test_gateway_that_did_not_ask_hears_nothing(serve: Serve) -> None:
    shim = await serve()
    async with LinkClient(shim.spec.listen) as link:
        await link.ask("POST", CHAT, chat("a question that is long enough for a block or two of tokens, surely so"))
        assert link.n_residencies == 0


async def test_conversation_is_promised_as_it_is_found(serve: Serve) -> None:
    rng = random.Random(1)
    shim = await serve()
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        assert link.info is not None
        turns = [text(rng, 60)]
        for _ in range(6):
            body = chat(*turns)
            promised = link.promised(body, link.info.chain_seed)
            answer = await link.ask("POST", CHAT, body)
            found = answer.end.cached_tokens
            # Whole blocks, never the last token's.
            usable = min(promised, answer.end.prompt_tokens - 1) // BLOCK * BLOCK
            assert abs(usable - found) <= BLOCK, (promised, found)
            turns += [answer.json()["choices"][0]["message"]["content"], text(rng, 20)]
            n_before = answer.end.prompt_tokens + answer.end.completion_tokens
            await settled(link, chat(*turns), link.info.chain_seed, n_before - 2 * BLOCK)


async def test_evicted_blocks_are_taken_back(serve: Serve) -> None:
    rng = random.Random(2)
    shim = await serve(kv_blocks=40, max_model_len=512)
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        assert link.info is not None
        first = chat(text(rng, 150))
        await link.ask("POST", CHAT, first)
        assert link.promised(first, link.info.chain_seed) > 100
        for _ in range(4):
            await link.ask("POST", CHAT, chat(text(rng, 150)))
        await link.wait(lambda: link.promised(first, link.info.chain_seed) == 0, "the first prompt taken back")
        await link.wait(lambda: len(link.held) <= 40, "no more entries than blocks")


async def test_second_gateway_gets_all_that_is_held(serve: Serve) -> None:
    rng = random.Random(3)
    shim = await serve()
    async with LinkClient(shim.spec.listen, wants_residency=True) as first:
        body = chat(text(rng, 100))
        await first.ask("POST", CHAT, body)
        async with LinkClient(shim.spec.listen, wants_residency=True) as second:
            await second.wait(lambda: second.n_residencies, "a snapshot")
            assert second.info is not None
            assert second.promised(body, second.info.chain_seed) > 50
            await second.wait(lambda: second.held == first.held, "the same view")


async def test_resync_sends_everything_anew(serve: Serve) -> None:
    rng = random.Random(4)
    shim = await serve()
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        assert link.info is not None
        body = chat(text(rng, 100))
        await link.ask("POST", CHAT, body)
        held = dict(link.held)
        n_before = link.n_residencies
        link.held = {1: 1}
        await link.send(pb.GatewayFrame(resync=True))
        await link.wait(lambda: link.n_residencies > n_before, "a snapshot")
        await link.wait(lambda: 1 not in link.held and set(held) <= set(link.held), "what was held before")


async def test_adapter_is_announced_and_has_a_chain_of_its_own(serve: Serve) -> None:
    rng = random.Random(5)
    shim = await serve()
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        await link.stub.LoadLora(pb.LoadLoraRequest(name="poet", path="x"))
        await link.wait(lambda: link.info is not None and list(link.info.loras) == ["poet"], "the adapter's name")
        assert link.info is not None
        seed = link.info.chain_seed
        body = chat(text(rng, 100), model="poet")
        await link.ask("POST", CHAT, body)
        assert link.promised(body, lora_seed(seed, "poet")) > 50
        assert link.promised(body, seed) == 0
        await link.stub.UnloadLora(pb.UnloadLoraRequest(name="poet"))
        await link.wait(lambda: link.info is not None and not link.info.loras, "the end of the adapter")


async def test_salted_prompts_are_apart(serve: Serve) -> None:
    rng = random.Random(6)
    shim = await serve()
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        assert link.info is not None
        words = text(rng, 100)
        await link.ask("POST", CHAT, chat(words, cache_salt="a"))
        assert link.promised(chat(words, cache_salt="a"), link.info.chain_seed) > 50
        assert link.promised(chat(words, cache_salt="b"), link.info.chain_seed) == 0
        answer = await link.ask("POST", CHAT, chat(words, cache_salt="b"))
        assert answer.end.cached_tokens == 0


@pytest.mark.parametrize("state", ["approx", "off"])
async def test_engine_says_how_well_it_knows(state: str, serve: Serve) -> None:
    rng = random.Random(7)
    shim = await serve(residency=state)
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        await link.wait(lambda: link.n_residencies, "the first message")
        assert link.info is not None
        assert (link.residency_state, link.info.residency) == (state, state)
        body = chat(text(rng, 100))
        await link.ask("POST", CHAT, body)
        promised = link.promised(body, link.info.chain_seed)
        assert promised > 50 if state == "approx" else promised == 0


async def test_cancelled_and_odd_requests_leave_nothing_behind(serve: Serve) -> None:
    rng = random.Random(8)
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen, wants_residency=True) as link:
        answers: list[Answer] = [
            await link.submit("POST", CHAT, chat(text(rng, 80), max_tokens=500, stream=True)) for _ in range(3)
        ]
        await link.wait(lambda: all(answer.chunks for answer in answers), "three streams under way")
        await link.cancel(*(answer.id for answer in answers))
        await link.ask("POST", CHAT, chat(text(rng, 80), n=3, max_tokens=4))
        await link.ask("POST", "/v1/completions", {"prompt": ["one prompt", "another one"], "max_tokens": 2})
        await link.ask("POST", "/v1/completions", {"prompt": [5, 6, 7, 8] * 50, "max_tokens": 2})
        await link.ask("POST", CHAT, b"not json")
        await link.wait_load(lambda load: load.running == 0, "an idle engine")
        # Every promise is kept: what is held is in the engine's own cache.
        engine = shim.adapter._engine
        await link.wait(lambda: len(link.held) <= engine.cache.cached_blocks, "no more promised than cached")

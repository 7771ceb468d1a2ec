"""Prompts in flight: what is told of them while they run, when they end, and after."""

from __future__ import annotations

import asyncio
import struct
from array import array

import orjson
import pytest

from xinf._fast.answer import continue_chain
from xinf._fast.bind import Aligner
from xinf._fast.residency import BlockTable
from xinf._fast.scan import SYSTEM_TOOLS_REST, Scan, scan
from xinf.chat import ChatMl
from xinf.core.seed import chain_seed, lora_seed
from xinf.engine import prompts as module
from xinf.engine.prompts import Canon, Prompts, Registered
from xinf.engine.residency import Residency, State

BLOCK, CHUNK = 8, 32
CANON = Canon("demo/model", SYSTEM_TOOLS_REST, CHUNK)
# One token a byte.
PIECES = [bytes([byte]) for byte in range(256)]
HEADERS = {b"user": b"<|im_start|>user\n", b"assistant": b"<|im_start|>assistant\n"}


def rendered(body: bytes) -> bytes:
    return ChatMl(source_name="test").render(orjson.loads(body)["messages"]).encode()


def body_of(*contents: str) -> bytes:
    roles = ["user", "assistant"] * len(contents)
    return orjson.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]})


class Stage:
    def __init__(self) -> None:
        self.table = BlockTable(BLOCK)
        self.residency = Residency(self.table, State.EXACT)
        self.prompts = Prompts(CANON, self.residency)
        self.aligner = Aligner(PIECES, headers=HEADERS)

    def begin(self, body: bytes, *, lora: str = "") -> Registered:
        tokens = array("I", list(rendered(body)))

        def bind(scanned: Scan, seed: int) -> tuple[bytes, bytes]:
            bound = self.aligner.bind(scanned, tokens, seed=seed, order=CANON.order, chunk_bytes=CHUNK)
            return bound.chain, bound.positions

        registered = self.prompts.begin(body, tokens, bind, lora=lora)
        assert registered is not None
        return registered

    def answer(self, registered: Registered, text: bytes) -> None:
        tokens = array("I", list(text))
        ends = array("I", range(1, len(text) + 1))
        n_before = len(registered.tokens)
        chain, positions = continue_chain(registered.chain, text, ends, n_before=n_before, chunk_bytes=CHUNK)
        self.prompts.answered(registered, tokens, chain, positions)

    def held(self) -> dict[int, int]:
        """What gateways know."""
        self.residency.flush()
        hashes, tokens = self.table.snapshot()
        return dict(
            zip(
                struct.unpack(f"<{len(hashes) // 8}Q", hashes),
                struct.unpack(f"<{len(tokens) // 4}I", tokens),
                strict=True,
            )
        )

    def promised(self, body: bytes, seed: int) -> int:
        """Tokens up to the furthest chunk of a body that is held: what a gateway would expect to be cached."""
        chain = scan(body).chain(seed, CANON.order, CHUNK)
        held = self.held()
        return max((held.get(chunk, 0) for chunk in struct.unpack(f"<{len(chain) // 8}Q", chain)), default=0)


@pytest.fixture
async def stage() -> Stage:
    return Stage()


LONG = "tell me about the weather in Paris and in Rome, please, and do take your time with it"


async def test_prompt_in_flight_counts_as_held(stage: Stage) -> None:
    body = body_of(LONG)
    stage.begin(body)
    n_tokens = len(rendered(body))
    assert n_tokens - BLOCK < stage.promised(body, CANON.seed("")) <= n_tokens


async def test_next_turn_goes_on_behind_the_answer(stage: Stage) -> None:
    first = body_of(LONG)
    answer = "It will be sunny in Paris for three days, and there is rain in Rome until Sunday."
    registered = stage.begin(first)
    stage.answer(registered, answer.encode())
    later = body_of(LONG, answer, "and tomorrow?")
    n_before = len(rendered(first)) + len(answer)
    assert n_before - BLOCK < stage.promised(later, CANON.seed("")) <= n_before


async def test_answer_that_the_client_changed_is_not_promised(stage: Stage) -> None:
    first = body_of(LONG)
    registered = stage.begin(first)
    stage.answer(registered, b"It will be sunny in Paris for three days, and there is rain in Rome until Sunday.")
    later = body_of(LONG, "Something else entirely, of more or less the same length as what was generated.", "and?")
    assert stage.promised(later, CANON.seed("")) <= len(rendered(first))


async def test_adapters_do_not_share(stage: Stage) -> None:
    body = body_of(LONG)
    stage.begin(body, lora="poet")
    assert stage.promised(body, CANON.seed("")) == 0
    assert stage.promised(body, CANON.seed("poet")) > 0
    assert CANON.seed("poet") == lora_seed(chain_seed("demo/model"), "poet")


async def test_what_the_engine_did_not_keep_is_dropped_a_little_after_the_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.005)
    body = body_of(LONG)
    registered = stage.begin(body)
    stage.prompts.end(registered)
    assert stage.promised(body, CANON.seed("")) > 0
    async with asyncio.timeout(30):
        while stage.held():
            await asyncio.sleep(0.001)
    # What was bound is remembered for a while: the engine's word may come late.
    chain = [7 + number for number in range(len(registered.tokens) // BLOCK)]
    stage.table.stored(array("Q", chain), None, registered.tokens[: len(chain) * BLOCK])
    assert stage.promised(body, CANON.seed("")) > 0


async def test_body_that_is_no_json_is_left_out(stage: Stage) -> None:
    def bind(scanned: Scan, seed: int) -> tuple[bytes, bytes]:
        raise AssertionError("must not be called")

    assert stage.prompts.begin(b"\x00audio", array("I", [1, 2]), bind) is None
    assert stage.prompts.n_unbound == 1


async def test_request_outlives_the_table_it_was_noted_in(stage: Stage) -> None:
    registered = stage.begin(body_of(LONG))
    stage.residency.replace(BlockTable(BLOCK), State.APPROX)
    stage.answer(registered, b"something of more than a block, to be sure that it would be noted")
    stage.prompts.end(registered)
    stage.prompts.close()
    assert len(stage.residency.table or ()) == 0

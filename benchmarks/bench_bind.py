"""What does it cost to bind a prompt's chunks to token positions?

Through Python, as the shim does it: the chain, the text of the tokens and the places of contents in it, beside the
chain alone. Tokens are cut from the rendered text, 3.7 bytes each on average, with ids all over a large vocabulary.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench_scan import body_of
from xinf._fast.bind import Aligner
from xinf._fast.scan import scan
from xinf.chat import CHATML, Template

SIZES = {"4.6 KB": 4600, "64 KB": 65536}
KINDS = ("chat", "escaped", "non-ASCII", "tools")
SEED, ORDER, CHUNK_BYTES = 7, 1, 64
VOCABULARY = 128_000
HEADERS = {role: b"<|im_start|>" + role + b"\n" for role in (b"system", b"user", b"assistant", b"tool")}


def tokens_of(text: bytes) -> tuple[list[bytes], array[int]]:
    """A vocabulary, and the ids in it that make the text."""
    rng = random.Random(len(text))
    pieces, at = [], 0
    while at < len(text):
        width = rng.choice((1, 2, 3, 4, 4, 5, 7))
        pieces.append(text[at : at + width])
        at += width
    ids = rng.sample(range(VOCABULARY), len(pieces))
    vocabulary = [b"filler"] * VOCABULARY
    for number, piece in zip(ids, pieces, strict=True):
        vocabulary[number] = piece
    return vocabulary, array("I", ids)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_bind(kind: str, size: str, compare: Callable[..., Any], benchmark: BenchmarkFixture) -> None:
    body = body_of(kind, SIZES[size])
    request = orjson.loads(body)
    text = Template(CHATML, source_name="chatml").render(request["messages"], tools=request.get("tools")).encode()
    vocabulary, tokens = tokens_of(text)
    aligner, bare, found = Aligner(vocabulary, headers=HEADERS), Aligner(vocabulary), scan(body)

    def whole() -> object:
        return aligner.bind(found, tokens, seed=SEED, order=ORDER, chunk_bytes=CHUNK_BYTES)

    bound = aligner.bind(found, tokens, seed=SEED, order=ORDER, chunk_bytes=CHUNK_BYTES)
    assert (bound.n_gaps, bound.chain) == (0, found.chain(SEED, ORDER, CHUNK_BYTES))
    compare(
        f"{kind}, {size}, {len(tokens)} tokens",
        {
            "bind": whole,
            "bind, headers unknown": lambda: bare.bind(found, tokens, seed=SEED, order=ORDER, chunk_bytes=CHUNK_BYTES),
            "chain alone": lambda: found.chain(SEED, ORDER, CHUNK_BYTES),
        },
    )
    benchmark(whole)

"""Chunks of an answer: those of the next prompt, at the tokens that the answer had."""

from __future__ import annotations

import random
import struct
from array import array

import orjson
import pytest

from xinf._fast.answer import continue_chain
from xinf._fast.scan import scan

SEED = 7


def unpacked(data: bytes, letter: str) -> list[int]:
    return [value for (value,) in struct.iter_unpack(f"<{letter}", data)]


def conversation(*contents: str) -> bytes:
    roles = ["user", "assistant"] * len(contents)
    return orjson.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]})


@pytest.mark.parametrize("seed", range(30))
def test_chunks_are_those_of_the_next_prompt(seed: int) -> None:
    rng = random.Random(seed)
    chunk_bytes = rng.choice([16, 32, 64, 100])
    answer = "".join(rng.choice('ab \n"\\é你🙂') for _ in range(rng.choice([1, 5, 64, 65, 300])))
    data = answer.encode()
    ends = array("I", sorted({*rng.sample(range(1, len(data) + 1), min(len(data), 20)), len(data)}))
    chain = scan(conversation("hello")).chain(SEED, 0, chunk_bytes)
    hashes, positions = continue_chain(chain, data, ends, n_before=11, chunk_bytes=chunk_bytes)
    later = scan(conversation("hello", answer, "more")).chain(SEED, 0, chunk_bytes)
    assert later[: len(chain)] == chain
    assert later[len(chain) : len(chain) + len(hashes)] == hashes
    n_chunks = -(-len(data) // chunk_bytes)
    stops = [min(len(data), (number + 1) * chunk_bytes) for number in range(n_chunks)]
    assert unpacked(positions, "I") == [11 + sum(end <= stop for end in ends) for stop in stops]
    assert len(unpacked(hashes, "Q")) == n_chunks


def test_text_behind_the_last_token_is_left_out() -> None:
    chain = scan(conversation("hello")).chain(SEED, 0, 16)
    text = b"x" * 64
    hashes, positions = continue_chain(chain, text, array("I", [10, 20]), n_before=0, chunk_bytes=16)
    # The chunk that the last token ends in is told, what is behind it is not.
    assert (len(hashes) // 8, unpacked(positions, "I")) == (2, [1, 2])
    assert continue_chain(chain, text, array("I"), n_before=3, chunk_bytes=16) == (b"", b"")
    assert continue_chain(chain, b"", array("I", [1]), n_before=3, chunk_bytes=16) == (b"", b"")


@pytest.mark.parametrize(
    ("chain", "ends", "n_before", "chunk_bytes"),
    [
        (b"", array("I"), 0, 64),
        (b"1234567", array("I"), 0, 64),
        (b"12345678", array("Q", [1]), 0, 64),
        (b"12345678", array("I"), -1, 64),
        (b"12345678", array("I", [1]), 2**32 - 1, 64),
        (b"12345678", array("I"), 0, 15),
        (b"12345678", array("I"), 0, 4097),
    ],
)
def test_wrong_arguments_are_refused(chain: bytes, ends: array[int], n_before: int, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"must be|n_before is"):
        continue_chain(chain, b"text", ends, n_before=n_before, chunk_bytes=chunk_bytes)

"""What records of the experiment on residency amount to, and why too much was predicted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench_exact import judge
from benchmarks.exact.record import Cause, Record
from benchmarks.exact.table import markdown, row
from benchmarks.exact.tape import Tape

BLOCK = 32


def record(predicted: int, cached: int, **given: Any) -> Record:
    values: dict[str, Any] = {
        "number": 0, "kind": "next", "template": "qwen2", "mode": "parallel", "block_tokens": BLOCK, "state": "exact",
        "prompt_tokens": 200, "completion_tokens": 10, "sent_s": 10.0, "ended_s": 11.0, "is_streamed": False,
        "lora": "", "salt": "",
    }  # fmt: skip
    return Record(predicted=predicted, cached=cached, **(values | given))


def stored(hashes: list[int], tokens: list[int], parent: int | None = None, **given: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": BLOCK, "lora_name": None, "extra_keys": None, **given,
    }  # fmt: skip


TOKENS = list(range(3 * BLOCK))


def test_errors_are_in_whole_blocks() -> None:
    assert record(63, 32).error_blocks == 0
    assert record(31, 32).error_blocks == -1
    assert record(160, 96).error_blocks == 2


def test_row_counts_shares_and_leaves_lost_races_out_where_it_says_so() -> None:
    records = [
        record(64, 64),
        record(96, 64),
        record(64, 128, kind="hot"),
        record(160, 32, cause=Cause.RACE, walked=32),
        record(160, 32, cause=Cause.OTHER, walked=96),
    ]
    found = row(records)
    assert (found.n, found.exact_pct, found.within_1_pct, found.within_2_pct) == (5, 20, 40, 60)
    assert found.raceless_pct == 50
    assert found.walk_1_pct == 50
    assert (found.worst, found.n_over, found.n_under, found.n_lost) == (4, 2, 1, 1)
    assert found.misses == {"hot": 1, "next": 1}
    assert found.hit_pct == pytest.approx(100 * 320 / 1000)


def test_table_shows_every_row() -> None:
    found = markdown([row([record(64, 64)]), row([record(64, 256, template="llama3")])]).splitlines()
    assert found[2].startswith("| qwen2 | 32 | parallel | exact | 1 | 100.00 | 100.00 |")
    assert "| -6 |" in found[3]


def test_a_block_that_went_after_the_request_was_sent_is_a_lost_race() -> None:
    tape = Tape(BLOCK)
    tape.add(1.0, stored([1, 2, 3], TOKENS))
    tape.add(10.5, {"type": "BlockRemoved", "block_hashes": [3]})
    over = record(96, 0, prompt_tokens=97)
    judge(over, tape, TOKENS)
    assert (over.walked, over.cause) == (96, Cause.OTHER)
    tape.add(10.6, {"type": "BlockRemoved", "block_hashes": [2, 1]})
    judge(over, tape, TOKENS)
    assert over.cause is Cause.RACE


def test_a_block_that_went_just_before_is_told_apart_from_one_that_was_gone_for_long() -> None:
    for gone_s, cause in ((9.97, Cause.LAG), (9.0, Cause.OTHER)):
        tape = Tape(BLOCK)
        tape.add(1.0, stored([1, 2, 3], TOKENS))
        tape.add(gone_s, {"type": "BlockRemoved", "block_hashes": [1, 2, 3]})
        over = record(96, 0, prompt_tokens=97)
        judge(over, tape, TOKENS)
        assert (over.walked, over.cause) == (0, cause)


def test_walk_never_promises_the_last_token() -> None:
    tape = Tape(BLOCK)
    tape.add(1.0, stored([1, 2, 3], TOKENS))
    whole = record(64, 64, prompt_tokens=96)
    judge(whole, tape, TOKENS)
    assert whole.walked == 64


def test_tape_counts_copies_and_keeps_salts_and_adapters_apart() -> None:
    tape = Tape(BLOCK)
    tape.add(1.0, stored([1], TOKENS[:BLOCK]))
    tape.add(2.0, stored([1], TOKENS[:BLOCK]))
    tape.add(3.0, stored([7], TOKENS[:BLOCK], lora_name="polite", extra_keys=[["polite", "tenant-1"]]))
    tape.add(4.0, stored([9], TOKENS[:BLOCK], parent=1234))
    tape.add(5.0, {"type": "BlockRemoved", "block_hashes": [1]})
    (plain,), (special,) = tape.keys(TOKENS[:BLOCK], "", ""), tape.keys(TOKENS[:BLOCK], "polite", "tenant-1")
    assert tape.held(plain, 6.0)
    assert tape.held(special, 6.0)
    assert tape.n_orphans == 1
    tape.add(7.0, {"type": "BlockRemoved", "block_hashes": [1]})
    assert not tape.held(plain, 8.0)
    assert tape.left(plain, 6.0, 7.0)
    tape.add(9.0, {"type": "AllBlocksCleared"})
    assert not tape.held(special, 9.5)

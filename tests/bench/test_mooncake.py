"""Traces in the Mooncake format. The lines are ours, in the shape of kvcache-ai/Mooncake's FAST25-release/traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xinf.bench.fleet import FleetSettings
from xinf.bench.mooncake import Trace, read_trace
from xinf.bench.working_set import measure
from xinf.core.errors import InvalidRequest, NotFound

LINES = [
    {"timestamp": 1000, "input_length": 1300, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 26, "hash_ids": [46, 47]},
    {"timestamp": 2500, "input_length": 700, "output_length": 0, "hash_ids": [46, 2353], "more": "is skipped"},
]


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def text_of(trace: Trace, number: int) -> str:
    return trace.session(number).steps[0].messages[0].content


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return read_trace(write(tmp_path / "trace.jsonl", [*LINES]), seed=1)


def test_times_and_lengths_are_those_of_the_file(trace: Trace) -> None:
    assert trace.n_sessions == 3
    assert [trace.at_s(number) for number in range(3)] == [0.0, 1.5, 2.0]  # in order of time
    # Four bytes a word but for the last one's space: a token each to the simulated engine.
    assert [len(text_of(trace, number)) for number in range(3)] == [1300 * 4 - 1, 700 * 4 - 1, 1024 * 4 - 1]
    assert [trace.session(number).steps[0].max_tokens for number in range(3)] == [52, 1, 26]


def test_equal_ids_are_equal_text_and_others_are_not(trace: Trace) -> None:
    block = 512 * 4
    first, second, third = (text_of(trace, number) for number in range(3))
    assert first[: 2 * block - 1] == third
    assert first[:block] == second[:block]
    assert first[block : block + 40] != second[block : block + 40]


def test_working_set_is_that_of_the_distinct_blocks(trace: Trace) -> None:
    sizes = measure(trace, n_requests=3, fleet=FleetSettings(n_replicas=1))
    assert sizes.n_requests == 3
    # 46 47 48 and 2353, the last two in part; what is at a boundary is no full block of 16 tokens.
    assert sizes.n_blocks * 16 == pytest.approx(512 * 2 + 276 + 188, abs=64)


def test_seed_changes_the_text_and_not_the_sharing(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", [*LINES])
    one, other = (read_trace(path, seed=seed) for seed in (1, 2))
    assert text_of(one, 0)[:40] != text_of(other, 0)[:40]
    assert text_of(other, 0)[:2048] == text_of(other, 1)[:2048]


def test_speed_scales_time(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "trace.jsonl", [*LINES]), seed=1, speed=4.0)
    assert [trace.at_s(number) for number in range(3)] == [0.0, 0.375, 0.5]


def test_blocks_of_another_size(tmp_path: Path) -> None:
    line = {"timestamp": 0, "input_length": 40, "output_length": 1, "hash_ids": [1, 2, 3]}
    trace = read_trace(write(tmp_path / "trace.jsonl", [line]), seed=1, block_tokens=16)
    assert len(text_of(trace, 0)) == 159


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 2: JSON is malformed"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1}', "line 2: .*hash_ids"),
        ('{"timestamp": 1, "input_length": "5", "output_length": 1, "hash_ids": [1]}', "line 2: .*input_length"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 1, "hash_ids": []}', "line 2: input_length is 0"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 1, "hash_ids": [1]}', "line 2: .*timestamp -1"),
        ('{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}', "1 hash_ids for 513 tokens"),
        ('{"timestamp": 1, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}', "2 hash_ids for 512 tokens"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "trace.jsonl", [LINES[0], line, LINES[1]])
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_trace(path, seed=1)
    assert "trace.jsonl" in str(caught.value)
    assert "hash_ids" in str(caught.value.remedy)


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.jsonl", ["x", "y", LINES[0], "", "z", "[]", "{}"])
    with pytest.raises(InvalidRequest, match=r"line 1: .*; line 2: .*; line 5: .*, and 2 more lines"):
        read_trace(path, seed=1)


def test_no_file_and_no_lines(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"cannot read the trace .*nowhere\.jsonl: No such file.*Mooncake"):
        read_trace(tmp_path / "nowhere.jsonl", seed=1)
    with pytest.raises(InvalidRequest, match="holds no requests"):
        read_trace(write(tmp_path / "empty.jsonl", [""]), seed=1)

"""Prompts: their length, what they share, and that they follow from the seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.bench.words import Words
from xinf.bench.workload import FileWorkload, WorkloadKind, WorkloadSettings, make_workload
from xinf.core.errors import InvalidRequest, NotFound


def prompts(settings: WorkloadSettings, n: int, seed: int = 3) -> list[str]:
    workload = make_workload(settings, seed)
    return [str(workload.session(number).turns[0].prompt) for number in range(n)]


@pytest.mark.parametrize("n_words", [1, 7, 8, 9, 1000, 70_000, 200_000])
def test_text_has_as_many_words_as_asked(n_words: int) -> None:
    text = Words(1).text("x", n_words)
    assert len(text.split(" ")) == n_words
    assert len(text) == 4 * n_words - 1


def test_text_depends_on_seed_and_name_only() -> None:
    assert Words(1).text("a", 100) == Words(1).text("a", 100)
    assert Words(1).text("a", 100) != Words(2).text("a", 100)
    assert Words(1).text("a", 100) != Words(1).text("b", 100)


def test_random_prompts_never_begin_alike() -> None:
    openings = {prompt[:31] for prompt in prompts(WorkloadSettings(input_tokens=50), 2000)}
    assert len(openings) == 2000


def test_sessions_do_not_depend_on_the_order_they_are_asked_in() -> None:
    settings = WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=3, range_ratio=0.5)
    one, other = make_workload(settings, 9), make_workload(settings, 9)
    backwards = [one.session(number) for number in reversed(range(5))]
    assert [other.session(number) for number in range(5)] == backwards[::-1]


def test_lengths_vary_within_the_ratio() -> None:
    settings = WorkloadSettings(input_tokens=100, output_tokens=40, range_ratio=0.5)
    workload = make_workload(settings, 1)
    turns = [workload.session(number).turns[0] for number in range(500)]
    words = [len(str(turn.prompt).split()) for turn in turns]
    assert min(words) >= 50
    assert max(words) <= 150
    assert sum(words) / 500 == pytest.approx(100, rel=0.05)
    assert {turn.max_tokens for turn in turns} <= set(range(20, 61))


def test_shared_prefixes_are_as_many_as_asked_and_come_first() -> None:
    settings = WorkloadSettings(
        kind=WorkloadKind.SHARED_PREFIX, n_prefixes=4, prefix_tokens=30, input_tokens=20, prefix_share=1.0
    )
    found = prompts(settings, 200)
    assert len({" ".join(prompt.split()[:30]) for prompt in found}) == 4
    assert len(set(found)) == 200
    assert {len(prompt.split()) for prompt in found} == {50}


def test_share_of_prompts_without_a_shared_prefix_is_as_asked() -> None:
    settings = WorkloadSettings(
        kind=WorkloadKind.SHARED_PREFIX, n_prefixes=4, prefix_tokens=30, input_tokens=20, prefix_share=0.75
    )
    counts: dict[str, int] = {}
    for prompt in prompts(settings, 1000):
        prefix = " ".join(prompt.split()[:30])
        counts[prefix] = counts.get(prefix, 0) + 1
    assert sum(n for n in counts.values() if n > 1) == pytest.approx(750, abs=60)


def test_conversation_has_turns_and_a_name_of_its_own() -> None:
    workload = make_workload(WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=3), 5)
    sessions = [workload.session(number) for number in range(3)]
    assert [len(session.turns) for session in sessions] == [3, 3, 3]
    assert len({session.name for session in sessions}) == 3


def test_file_gives_its_lines_in_order_and_again(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '"just text"\n\n{"prompt": "a", "output_tokens": 7}\n{"messages": [{"role": "user", "content": "b"}]}\n'
        '{"prompt": "c", "max_tokens": 9, "temperature": 1}\n'
    )
    workload = FileWorkload(WorkloadSettings(kind=WorkloadKind.FILE, file=str(file), output_tokens=3))
    turns = [workload.session(number).turns[0] for number in range(5)]
    assert len(workload) == 4
    assert [turn.prompt for turn in turns] == ["just text", "a", None, None, "just text"]
    assert [turn.max_tokens for turn in turns] == [3, 7, 3, None, 3]
    assert turns[3].fields == b'{"prompt":"c","max_tokens":9,"temperature":1}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"ok"\n{"prompt": \n', "prompts.jsonl:2 is not JSON"),
        ("[1]\n", "prompts.jsonl:1 is neither"),
        ('{"text": "a"}\n', "prompts.jsonl:1 is neither"),
        ('{"prompt": "a", "output_tokens": -1}', "output_tokens is -1"),
        ("\n\n", "holds no prompts"),
    ],
)
def test_file_says_which_line_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        make_workload(WorkloadSettings(kind=WorkloadKind.FILE, file=str(file)), 0)


def test_file_that_is_not_there_is_named() -> None:
    missing = str(Path("/no/such/file"))
    with pytest.raises(NotFound, match="no/such/file"):
        make_workload(WorkloadSettings(kind=WorkloadKind.FILE, file=missing), 0)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"input_tokens": 0}, {"range_ratio": 1.0}, {"prefix_share": 1.5}, {"n_turns": 0}):
        with pytest.raises(InvalidRequest):
            WorkloadSettings(**wrong)  # type: ignore[arg-type]

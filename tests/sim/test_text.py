from __future__ import annotations

from xinf.sim import BYTES_PER_TOKEN, TextSource, count_tokens


def test_answer_is_four_bytes_a_token_and_needs_no_escapes() -> None:
    answer = TextSource(3).answer(b"a prompt", 500)
    assert len(answer) == 500 * BYTES_PER_TOKEN
    assert set(answer) <= set(b"abcdefghijklmnopqrstuvwxyz ")


def test_answer_depends_on_seed_prompt_and_choice_alone() -> None:
    source = TextSource(3)
    assert source.answer(b"x", 20) == TextSource(3).answer(b"x", 20)
    assert source.answer(b"x", 20) == source.answer(b"x", 40)[:80]
    others = [TextSource(4).answer(b"x", 20), source.answer(b"y", 20), source.answer(b"x", 20, choice=1)]
    assert source.answer(b"x", 20) not in others


def test_answer_goes_on_past_the_end_of_the_ring() -> None:
    source = TextSource(0)
    long = source.answer(b"x", 100_000)
    assert len(long) == 400_000
    assert long[: 4 << 15] == long[4 << 15 : 8 << 15]


def test_count_tokens_rounds_up() -> None:
    assert [count_tokens(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]

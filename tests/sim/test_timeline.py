"""Virtual time with many engines: the same as looking at each of them every time."""

from __future__ import annotations

import random

import pytest

from xinf.sim import SimEngine, SimSequence, SimSettings, TextSource, Timeline

TEXT = TextSource(0)
SETTINGS = SimSettings(prefill_tokens_per_s=4000, step_ms=7, max_running=3, max_batched_tokens=64, kv_blocks=64)


def sequence(rng: random.Random, at_s: float) -> SimSequence:
    prompt = bytes([65 + rng.randrange(4)]) * rng.randrange(1, 300)
    return SimSequence(prompt, TEXT.answer(prompt, rng.randrange(1, 12)), arrived_s=at_s)


def arrivals(seed: int) -> list[tuple[float, int, SimSequence]]:
    rng = random.Random(seed)
    # Whole hundredths, so that arrivals and steps meet now and then.
    times = sorted(rng.randrange(100) / 100 for _ in range(120))
    return [(at_s, rng.randrange(5), sequence(rng, at_s)) for at_s in times]


def play(seed: int) -> list[tuple[float | None, float | None, int]]:
    made = arrivals(seed)
    timeline = Timeline()
    engines = [SimEngine(SETTINGS) for _ in range(5)]
    for engine in engines:
        timeline.attach(engine, lambda _: None)
    for at_s, number, one in made:
        timeline.call_at(at_s, lambda n=number, one=one: engines[n].submit(one, timeline.now_s()))  # type: ignore[misc]
    timeline.run()
    return [(one.first_token_s, one.finished_s, one.cached_tokens) for _, _, one in made]


def play_naively(seed: int) -> list[tuple[float | None, float | None, int]]:
    """Engines know nothing of each other: each is run alone, up to each of its arrivals and then to its end."""
    made = arrivals(seed)
    for number in range(5):
        engine = SimEngine(SETTINGS)
        for at_s, n, one in made:
            if n != number:
                continue
            while (due_s := engine.due_s()) is not None and due_s <= at_s:
                engine.run_step()
            engine.submit(one, at_s)
        while engine.due_s() is not None:
            engine.run_step()
    return [(one.first_token_s, one.finished_s, one.cached_tokens) for _, _, one in made]


@pytest.mark.parametrize("seed", range(5))
def test_engines_beside_each_other_do_what_each_does_alone(seed: int) -> None:
    assert play(seed) == play_naively(seed)


def test_ends_of_steps_are_told_after_their_tokens_also_of_steps_without_any() -> None:
    timeline = Timeline()
    engine = SimEngine(SETTINGS)
    told: list[str] = []
    timeline.attach(engine, lambda _: told.append("token"), lambda: told.append("step"))
    one = SimSequence(b"x" * 4 * 100, TEXT.answer(b"x", 2), arrived_s=0.0)
    timeline.call_at(1.0, lambda: engine.submit(one, timeline.now_s()))
    timeline.run()
    # 100 tokens of prompt take two steps of at most 64.
    assert told == ["step", "token", "step", "token", "step"]


def test_token_that_wakes_another_engine_is_followed_by_its_steps() -> None:
    timeline = Timeline()
    first, second = SimEngine(SETTINGS), SimEngine(SETTINGS)
    one, other = (SimSequence(b"x" * 40, TEXT.answer(b"x", 1), arrived_s=0.0) for _ in range(2))
    timeline.attach(first, lambda _: second.submit(other, timeline.now_s()))
    timeline.attach(second, lambda _: None)
    first.submit(one, 0.0)
    assert timeline.run() == pytest.approx(2 * 10 / 4000)
    assert other.is_done


def test_now_and_then_is_in_order() -> None:
    timeline = Timeline()
    told: list[str] = []
    for name in ("a", "b", "c"):
        timeline.call_at(1.0, lambda name=name: told.append(name))  # type: ignore[misc]
    timeline.call_at(0.5, lambda: timeline.call_at(0.1, lambda: told.append("late")))
    timeline.run()
    assert told == ["late", "a", "b", "c"]

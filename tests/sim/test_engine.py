from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from xinf.sim import SimEngine, SimSequence, SimSettings, TextSource, Timeline

TEXT = TextSource(0)


def sequence(prompt: bytes, n_answer: int, *, at_s: float = 0.0, salt: str | None = None) -> SimSequence:
    return SimSequence(prompt, TEXT.answer(prompt, n_answer), arrived_s=at_s, salt=salt)


def run_all(settings: SimSettings, arrivals: list[tuple[float, SimSequence]]) -> SimEngine:
    """Play arrivals to their end in virtual time."""
    engine = SimEngine(settings)
    timeline = Timeline()
    timeline.attach(engine, lambda _: None)
    for at_s, one in arrivals:
        timeline.call_at(at_s, lambda one=one: engine.submit(one, timeline.monotonic_s()))  # type: ignore[misc]
    timeline.run()
    return engine


def test_one_request_takes_prefill_and_a_step_per_further_token() -> None:
    one = sequence(b"x" * 4000, 5)
    run_all(SimSettings(prefill_tokens_per_s=1000, step_ms=10), [(2.0, one)])
    assert one.first_token_s == pytest.approx(2.0 + 1.0)
    assert one.finished_s == pytest.approx(2.0 + 1.0 + 4 * 0.010)
    assert (one.n_prompt, one.n_generated, one.cached_tokens) == (1000, 5, 0)


def test_zero_rates_take_no_time() -> None:
    one = sequence(b"x" * 4000, 500)
    run_all(SimSettings(), [(1.0, one)])
    assert one.finished_s == 1.0


def test_repeated_prompt_is_cached_but_for_its_last_token() -> None:
    first, second = sequence(b"a" * 256, 1), sequence(b"a" * 256, 1)
    run_all(SimSettings(prefill_tokens_per_s=100, block_tokens=16), [(0.0, first), (10.0, second)])
    assert first.cached_tokens == 0
    assert second.cached_tokens == 48  # 64 tokens are 4 blocks; the last one has the token that must be computed
    assert second.finished_s == pytest.approx(10.0 + 16 / 100)


def test_next_turn_finds_the_answer_cached() -> None:
    first = sequence(b"q" * 63, 33)
    turn = b"q" * 63 + TEXT.answer(b"q" * 63, 33) + b"and then?" * 10
    second = sequence(turn, 1)
    run_all(SimSettings(block_tokens=16), [(0.0, first), (1.0, second)])
    assert second.cached_tokens == (16 + 32) // 16 * 16


def test_salt_keeps_equal_text_apart() -> None:
    first, second = sequence(b"a" * 256, 1), sequence(b"a" * 256, 1, salt="lora")
    run_all(SimSettings(), [(0.0, first), (1.0, second)])
    assert second.cached_tokens == 0


def test_max_running_bounds_the_batch_and_the_queue_is_fair() -> None:
    ones = [sequence(bytes([n]) * 40, 10) for n in range(6)]
    run_all(SimSettings(step_ms=10, max_running=2), [(0.0, one) for one in ones])
    ends = [one.finished_s or 0.0 for one in ones]
    assert ends == sorted(ends)
    # The first begins a step at once; whoever comes while a step is under way joins the next: its prefill takes no
    # time, but the step does, as the first decodes in it. Nine more tokens follow the first one.
    assert ends[:4] == pytest.approx([0.09, 0.11, 0.19, 0.21])
    assert ones[4].queued_s == pytest.approx(0.19)


def test_running_requests_share_their_steps() -> None:
    ones = [sequence(bytes([n]) * 40, 11) for n in range(50)]
    engine = run_all(SimSettings(step_ms=10), [(0.0, one) for one in ones])
    assert engine.n_steps <= 13
    assert engine.n_tokens == 550


def test_long_prompt_is_prefilled_in_chunks_between_the_tokens_of_others() -> None:
    short, long = sequence(b"s" * 40, 30), sequence(b"l" * 4000, 1)
    settings = SimSettings(step_ms=10, prefill_tokens_per_s=10_000, max_batched_tokens=101, max_running=8)
    run_all(settings, [(0.0, short), (0.001, long)])
    # The prefill of the short one, its step under way, then 1000 tokens, 100 of them beside each decoded token.
    assert long.finished_s == pytest.approx(0.001 + 0.010 + 10 * 0.020)
    assert short.n_generated == 30


def test_preempted_request_is_computed_again_and_ends_right() -> None:
    settings = SimSettings(kv_blocks=20, block_tokens=4, step_ms=1)
    ones = [sequence(bytes([65 + n]) * 64, 50) for n in range(2)]
    engine = run_all(settings, [(0.0, one) for one in ones])
    assert [one.n_generated for one in ones] == [50, 50]
    assert sum(one.preemptions for one in ones) >= 1
    assert engine.cache.used_blocks == 0
    assert ones[1].cached_tokens == 0  # what it found the first time, not after it was preempted


def test_request_larger_than_the_cache_is_refused() -> None:
    engine = SimEngine(SimSettings(kv_blocks=2, block_tokens=4))
    with pytest.raises(ValueError, match="never fits"):
        engine.submit(sequence(b"x" * 20, 4), 0.0)


def test_embedding_ends_with_its_prompt() -> None:
    one = SimSequence(b"x" * 400, b"", arrived_s=0.0)
    engine = run_all(SimSettings(prefill_tokens_per_s=100), [(0.0, one)])
    assert (one.is_done, one.n_generated, engine.n_tokens) == (True, 0, 0)
    assert one.finished_s == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_random_load_with_cancels_ends_clean(seed: int) -> None:
    rng = random.Random(seed)
    settings = SimSettings(
        prefill_tokens_per_s=5000,
        step_ms=5,
        kv_blocks=rng.choice([64, 200]),
        block_tokens=rng.choice([4, 16]),
        max_running=rng.choice([1, 4, 16]),
        max_batched_tokens=rng.choice([16, 64, 4096]),
    )
    engine = SimEngine(settings)
    timeline = Timeline()
    ones: list[SimSequence] = []
    cancelled: set[SimSequence] = set()

    def check(_: SimSequence) -> None:
        load = engine.load()
        running = [one for one in ones if not one.is_waiting and not one.is_done]
        waiting = [one for one in ones if one.is_waiting and not one.is_done]
        assert (load.running, load.waiting) == (len(running), len(waiting)), f"seed {seed}"
        left = sum(max(0, one.n_prompt - one.n_computed) for one in ones if not one.is_done)
        # What the step under way computes is computed when it ends.
        assert left <= load.queued_prefill_tokens <= left + settings.max_batched_tokens, f"seed {seed}"
        assert load.kv_blocks_used <= settings.kv_blocks
        assert load.running <= settings.max_running

    timeline.attach(engine, check)

    def arrive() -> None:
        prompt = bytes([65 + rng.randrange(3)]) * rng.randrange(1, 400)
        one = sequence(prompt, rng.randrange(1, 30), at_s=timeline.monotonic_s())
        ones.append(one)
        engine.submit(one, timeline.monotonic_s())

    def cancel() -> None:
        one = rng.choice(ones)
        if not one.is_done:
            cancelled.add(one)
        engine.cancel(one)

    for n in range(300):
        timeline.call_at(rng.random() * 3, arrive)
        if n % 3 == 0:
            timeline.call_at(1 + rng.random() * 3, cancel)
    timeline.run()
    assert all(one.is_done for one in ones)
    assert cancelled
    assert all((one.n_generated == one.n_answer) != (one in cancelled) for one in ones)
    load = engine.load()
    assert (load.running, load.waiting, load.queued_prefill_tokens, load.kv_blocks_used) == (0, 0, 0, 0)


def test_prefill_of_the_step_under_way_is_queued_until_it_ends() -> None:
    engine = SimEngine(SimSettings(prefill_tokens_per_s=1000, step_ms=1, max_batched_tokens=64, max_running=4))
    engine.submit(sequence(b"x" * 400, 3), 0.0)
    queued = [engine.load().queued_prefill_tokens]
    while engine.due_s() is not None:
        engine.run_step()
        queued.append(engine.load().queued_prefill_tokens)
    assert queued == [100, 36, 0, 0, 0]


def test_steps_last_longer_for_each_request_that_decodes() -> None:
    settings = SimSettings(step_ms=10, step_ms_per_running=2, max_running=4)
    for n_requests in (1, 3, 6):
        engine = SimEngine(settings)
        for _ in range(n_requests):
            engine.submit(sequence(b"abcd", 5), 0.0)
        engine.run_step()
        begun_s = engine.due_s()
        engine.run_step()
        ended_s = engine.due_s()
        assert begun_s is not None
        assert ended_s is not None
        assert ended_s - begun_s == pytest.approx(0.010 + 0.002 * min(4, n_requests))


def test_same_calls_give_the_same_times() -> None:
    def play() -> list[Any]:
        rng = random.Random(1)
        ones = [(rng.random(), sequence(rng.randbytes(rng.randrange(1, 999)), 9)) for _ in range(40)]
        run_all(SimSettings(prefill_tokens_per_s=3000, step_ms=7, max_running=4), ones)
        return [(one.first_token_s, one.finished_s, one.cached_tokens) for _, one in ones]

    assert play() == play()


def test_timeline_stops_where_it_is_told() -> None:
    engine = SimEngine(SimSettings(step_ms=10))
    timeline = Timeline()
    timeline.attach(engine, lambda _: None)
    one = sequence(b"x", 100)
    engine.submit(one, 0.0)
    assert timeline.run(until_s=0.0555) == pytest.approx(0.05)
    assert one.n_generated == 6
    timeline.run()
    assert one.is_done


@pytest.mark.parametrize(
    "wrong",
    [{"kv_blocks": 0}, {"step_ms": -1}, {"prefill_tokens_per_s": float("nan")}, {"max_running": 9000}, {"x": 1}],
)
def test_settings_refuse_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(wrong, SimSettings)


FIELDS = ("n_generated", "n_computed", "cached_tokens", "is_done", "first_token_s", "finished_s", "queued_s")


@pytest.mark.parametrize("seed", range(6))
def test_run_at_once_comes_to_what_steps_come_to(seed: int) -> None:
    rng = random.Random(seed)
    settings = SimSettings(
        kv_blocks=rng.choice([24, 100]),
        block_tokens=rng.choice([1, 4, 16]),
        max_running=1,
        max_batched_tokens=rng.choice([7, 4096]),
        cache=seed != 5,
    )
    stepped, jumped = SimEngine(settings), SimEngine(settings)
    for number in range(200):
        prompt = bytes([65 + rng.randrange(2)]) * rng.randrange(1, 60) + rng.choice([b"", b"x" * 20])
        n_answer = min(rng.choice([0, 1, 2, 9, 17]), settings.kv_tokens - 20)
        one, other = sequence(prompt, n_answer), sequence(prompt, n_answer)
        if one.n_prompt + n_answer > settings.kv_tokens:
            continue
        stepped.submit(one, 1.0)
        while stepped.due_s() is not None:
            stepped.run_step()
        jumped.run_at_once(other, 1.0)
        where = f"seed {seed}, request {number}"
        for field in FIELDS:
            assert getattr(other, field) == getattr(one, field), f"{where}: {field}"
        assert (jumped.n_tokens, jumped.n_steps, jumped.load()) == (stepped.n_tokens, stepped.n_steps, stepped.load())
        assert list(jumped.cache._idle) == list(stepped.cache._idle), where
        assert jumped.cache._users == stepped.cache._users, where


def test_run_at_once_is_for_an_idle_engine_without_time() -> None:
    busy = SimEngine(SimSettings())
    busy.submit(sequence(b"x", 5), 0.0)
    for engine in (busy, SimEngine(SimSettings(step_ms=1)), SimEngine(SimSettings(prefill_tokens_per_s=1))):
        with pytest.raises(ValueError, match="step through them"):
            engine.run_at_once(sequence(b"y", 1), 0.0)


def test_without_a_cache_nothing_is_found_and_blocks_are_counted() -> None:
    first, second = sequence(b"a" * 256, 3), sequence(b"a" * 256, 3)
    settings = SimSettings(prefill_tokens_per_s=100, step_ms=10, cache=False)
    engine = run_all(settings, [(0.0, first), (10.0, second)])
    assert (second.cached_tokens, engine.cache.cached_blocks, engine.cache.used_blocks) == (0, 0, 0)
    assert second.finished_s == pytest.approx(10.0 + 64 / 100 + 2 * 0.010)
    engine.submit(sequence(b"a" * 256, 3), 20.0)
    assert engine.load().kv_blocks_used == 4

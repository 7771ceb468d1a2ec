"""Repeated work makes our own prefill dearer: counts against the naive oracle, and what must follow from them."""

from __future__ import annotations

import random

import orjson
import pytest

from tests.model import scan_model
from tests.model.losses_model import LossesModel
from xinf._fast.scan import scan
from xinf.core.clock import FakeClock
from xinf.core.records import RoutingPolicy
from xinf.router import Repetition, Router, RouterSettings

BLOCK_TOKENS = 16
LEAST = 4.0


def body_of(text: str) -> bytes:
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})


def router_of(n: int, policy: RoutingPolicy = RoutingPolicy.AUTO) -> Router:
    router = Router(RouterSettings(), clock=FakeClock(), turn=0)
    for number in range(n):
        add(router, f"r{number}", policy)
    return router


def add(router: Router, name: str, policy: RoutingPolicy = RoutingPolicy.AUTO) -> None:
    router.set_replica(name, model="m", policy=policy, block_tokens=BLOCK_TOKENS, is_ready=True)


def answer(router: Router, body: bytes, prompt_tokens: int, cached_tokens: int) -> None:
    choice = router.choose("m", scan(body), seed=1)
    assert choice is not None
    router.finished(choice, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=1, is_ok=True)


def weights(router: Router) -> set[float]:
    """What a second of own prefill costs later: on an idle replica that is all there is of the third term."""
    views = router.explain("m", scan(body_of("?" * 2000)), seed=1)
    return {round(view.terms.decode_s / view.terms.prefill_s, 6) for view in views}


@pytest.mark.parametrize("seed", range(4))
def test_weight_agrees_with_the_naive_count(seed: int) -> None:
    draw = random.Random(seed)
    router, model = router_of(3), LossesModel()
    shared = "".join(draw.choices("abcdefgh ", k=2500))
    for _ in range(150):
        text = shared[: draw.choice((0, 300, 1000, 2500))] + "".join(draw.choices("xyz ", k=draw.choice((20, 700))))
        body = body_of(text)
        marks, ends = scan_model.marks_of(body, 1)
        tokens = max(1, len(text) // 3)
        cached = draw.choice((0, 0, tokens // 2, tokens))
        n_seen = model.recall(marks)
        model.seen |= set(marks)
        answer(router, body, tokens, cached)
        seen_tokens = (ends[n_seen - 1] if n_seen else 0) / ends[-1] * tokens
        model.learn(max(1, tokens - cached), seen_tokens - cached - BLOCK_TOKENS)
        (weight,) = weights(router)
        assert weight == pytest.approx(model.weight, rel=1e-4)
    assert model.weight > 2 * LEAST


def test_prompts_that_are_new_leave_the_weight_as_it_is() -> None:
    router = router_of(2)
    for number in range(100):
        answer(router, body_of(f"{number} " * 500), 500, 0)
    assert weights(router) == {LEAST}
    # What all chats begin with is less than a block.
    assert router.snapshot().repetitions == {"m": Repetition(computed_tokens=50_000, repeated_tokens=0)}


def test_prompts_that_are_found_leave_the_weight_as_it_is() -> None:
    router = router_of(2)
    for _ in range(100):
        answer(router, body_of("a" * 4000), 1000, 992)
    assert weights(router) == {LEAST}


def test_weight_is_bounded_however_much_is_repeated() -> None:
    router = router_of(2)
    for _ in range(2000):
        answer(router, body_of("a" * 4000), 1000, 0)
    assert weights(router) == {LEAST + 16 * 95 / 5}


def test_weight_falls_when_the_work_changes() -> None:
    router = router_of(2)
    for _ in range(300):
        answer(router, body_of("a" * 4000), 1000, 0)
    for number in range(2000):
        answer(router, body_of(f"{number} " * 800), 1000, 0)
    assert max(weights(router)) < 1.1 * LEAST


def test_new_replica_has_the_weight_of_the_others() -> None:
    router = router_of(2)
    for _ in range(300):
        answer(router, body_of("a" * 4000), 1000, 0)
    add(router, "late")
    assert len(weights(router)) == 1
    assert max(weights(router)) > 10 * LEAST


def test_only_the_newest_prompts_are_remembered() -> None:
    router = router_of(1)
    for number in range(6000):  # of some 60 marks each, in 65,536 places
        answer(router, body_of(f"{number} " * 700), 1000, 0)
    before = router.snapshot().repetitions["m"].repeated_tokens
    for number in range(50):
        answer(router, body_of(f"{number} " * 700), 1000, 0)
    again = router.snapshot().repetitions["m"].repeated_tokens - before
    assert again < 0.25 * 50 * 1000
    for number in range(5950, 6000):
        answer(router, body_of(f"{number} " * 700), 1000, 0)
    assert router.snapshot().repetitions["m"].repeated_tokens - before - again > 0.9 * 50 * 1000


def test_beginnings_are_recalled_when_many_marks_were_lost_to_others() -> None:
    """700 beginnings have two thirds as many marks as there are places: half of them share one with another."""
    draw = random.Random(0)
    router = router_of(1)
    beginnings = ["".join(draw.choices("abcdefgh ", k=8000)) for _ in range(700)]
    for text in beginnings:
        answer(router, body_of(text), 2000, 0)
    before = router.snapshot().repetitions["m"].repeated_tokens
    for number, text in enumerate(draw.sample(beginnings, 700)):
        answer(router, body_of(text + str(number) * draw.randrange(1, 1000)), 2000, 0)
    assert router.snapshot().repetitions["m"].repeated_tokens - before > 0.6 * 700 * 2000


@pytest.mark.parametrize("policy", [RoutingPolicy.LEAST_LOAD, RoutingPolicy.ROUND_ROBIN, RoutingPolicy.SESSION])
def test_policies_that_do_not_look_at_prefixes_count_nothing(policy: RoutingPolicy) -> None:
    router = router_of(2, policy)
    for _ in range(100):
        answer(router, body_of("a" * 4000), 1000, 0)
    assert router.snapshot().repetitions == {"m": Repetition(0, 0)}

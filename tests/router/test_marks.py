"""The marks that stand for a prompt in the index: which they are, and how far what is found of a match can be off."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from tests.model import scan_model
from tests.model.marks_model import DENSE, LAST_ROLES, STEPS, is_on_grid, marks_of
from tests.model.requests import random_request
from xinf._fast import decide
from xinf._fast.prefix import MIN_BYTES
from xinf._fast.scan import Scan, scan
from xinf.core.clock import FakeClock
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, Router, RouterSettings

CHUNK_BYTES = 16  # the least, so that chains are long


def router_of(n: int, *, index_max_bytes: int = 64 << 20) -> Router:
    settings = RouterSettings(index_max_bytes=index_max_bytes, chunk_bytes=CHUNK_BYTES, prior_bytes_per_token=1.0)
    router = Router(settings, clock=FakeClock(), turn=0)
    for i in range(n):
        router.set_replica(f"r{i}", model="m", policy=RoutingPolicy.AUTO, block_tokens=1, is_ready=True)
    return router


def text(body: str) -> Scan:
    return scan(orjson.dumps({"prompt": body}))


def chat(*turns: str, **fields: object) -> Scan:
    roles = ["system", "user", "assistant"]
    messages = [{"role": roles[i if i < 2 else 1 + (i + 1) % 2], "content": turn} for i, turn in enumerate(turns)]
    return scan(orjson.dumps({"messages": messages, **fields}))


def serve(router: Router, body: Scan) -> Choice:
    """Choose, and answer with as many tokens as there are bytes."""
    choice = router.choose("m", body, seed=1)
    assert choice is not None
    n_tokens = body.n_text_bytes + (9 if body.kind == "chat" else 0)
    router.finished(choice, prompt_tokens=n_tokens, cached_tokens=0, completion_tokens=1, is_ok=True)
    return choice


def letters(rng: random.Random, n: int) -> str:
    return "".join(rng.choices("abcdefghij", k=n))


@pytest.mark.parametrize("seed", range(40))
def test_marks_are_those_of_the_naive_ones(seed: int) -> None:
    rng = random.Random(seed)
    request = random_request(rng)
    kind, order, chunk_bytes = rng.random(), rng.randrange(3), rng.choice([16, 64])
    if kind < 0.4:
        request = {"prompt": "x" * rng.choice([0, 1, 31, 32, 33, 34, 50, 64, 65, 1024, 5000]) * chunk_bytes}
    elif kind < 0.8:
        content = [letters(rng, rng.choice([0, 9, 99, 999])) for _ in range(rng.randrange(60))]
        request = {"messages": [{"role": rng.choice(["user", "assistant"]), "content": one} for one in content]}
    body = orjson.dumps(request)
    hashes, ends = decide._marks(scan(body), seed=9, order=order, chunk_bytes=chunk_bytes)
    expected = scan_model.marks_of(body, 9, order, chunk_bytes)
    assert (array("Q", hashes).tolist(), array("I", ends).tolist()) == expected


def test_a_chain_has_few_marks() -> None:
    assert [len(marks_of(n, [])) for n in (0, 1, 32, 33, 64, 128, 1024, 1 << 17)] == [0, 1, 32, 33, 48, 64, 112, 224]
    assert marks_of(200, [1, 40, 41, 60, 199])[32:44] == [34, 36, 38, 40, 41, 42, 44, 46, 48, 50, 52, 54]
    assert len(marks_of(100_000, list(range(2, 100_000, 5)))) <= len(marks_of(100_000, [])) + LAST_ROLES


def test_the_grid_leaves_out_less_than_a_sixteenth() -> None:
    last = 0
    for number in range(1, 100_000):
        last = number if is_on_grid(number) else last
        assert STEPS * (number - last) < number
        assert number > DENSE or last == number


@pytest.mark.parametrize("seed", range(60))
def test_a_shared_beginning_is_found_to_a_sixteenth(seed: int) -> None:
    rng = random.Random(seed)
    router = router_of(1)
    shared = letters(rng, int(2 ** rng.uniform(4, 14)))
    serve(router, text(shared + "." + letters(rng, int(2 ** rng.uniform(1, 14)))))
    choice = router.choose("m", text(shared + "!" + letters(rng, int(2 ** rng.uniform(1, 14)))), seed=1)
    assert choice is not None
    whole = len(shared) // CHUNK_BYTES * CHUNK_BYTES
    assert whole * (1 - 1 / STEPS) < choice.matched_bytes + (whole == 0) <= whole + (whole == 0)
    # The same in tokens, which are as many as bytes here.
    assert abs(choice.matched_tokens - choice.matched_bytes) <= 1


@pytest.mark.parametrize("n_bytes", [1, 100, 1000, 5555, 40_000])
def test_the_same_prompt_is_found_whole(n_bytes: int) -> None:
    router = router_of(1)
    serve(router, text("z" * n_bytes))
    assert serve(router, text("z" * n_bytes)).matched_bytes == n_bytes


def test_the_next_turn_is_matched_to_the_chunk() -> None:
    rng = random.Random(5)
    router, turns, end = router_of(1), [letters(rng, 1111), letters(rng, 30_000)], 0
    for _ in range(30):
        choice = serve(router, chat(*turns))
        assert choice.matched_bytes == end
        end = chat(*turns).n_text_bytes + len("assistant")
        turns += [letters(rng, rng.randrange(1, 90)), letters(rng, rng.randrange(1, 90))]


def test_a_turn_shorter_than_a_step_still_prefers_who_had_the_last_one() -> None:
    """The replica with the longer match is dearer by nothing else: a tie would go to the session's favourite."""
    for user in ("anna", "berta", "carl", "dora", "emil"):
        router = router_of(6)
        turns, homes = ["s" * 2000, "q" * 20_011], []
        for number in range(4):  # each on another replica
            choice = router.choose("m", chat(*turns, user=user), seed=1, exclude=homes)
            assert choice is not None
            router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=True)
            homes.append(choice.replica_id)
            turns += ["a" * 20, f"{number}" * 20]
        assert serve(router, chat(*turns, user=user)).replica_id == homes[-1]


def test_a_system_prompt_is_found_whole() -> None:
    router = router_of(1)
    serve(router, chat("s" * 9999, "one question"))
    assert serve(router, chat("s" * 9999, "another")).matched_bytes >= len("system") + 9999 + len("user")


def test_the_index_holds_marks_and_drops_them() -> None:
    router = router_of(2)
    one, other = serve(router, text("a" * CHUNK_BYTES * 1024)), serve(router, text("b" * CHUNK_BYTES * 1000))
    assert (one.n_marks, other.n_marks) == (112, 112)  # 1,000 is not on the grid and the end
    assert router.snapshot().index_entries == 224
    router.remove_replica(one.replica_id)
    assert router.snapshot().index_entries == 112
    assert serve(router, text("a" * CHUNK_BYTES * 1024)).matched_bytes == 0


def test_a_failed_request_takes_its_marks_out_again() -> None:
    router = router_of(1)
    serve(router, text("s" * 3000))
    held = router.snapshot().index_entries
    failed = router.choose("m", text("s" * 3000 + "t" * 30_000), seed=1)
    assert failed is not None
    assert router.snapshot().index_entries == held + failed.n_marks - failed.n_hits
    router.finished(failed, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    assert router.snapshot().index_entries == held


def test_usage_sets_the_positions_of_marks_right() -> None:
    router = router_of(1)
    text_bytes = CHUNK_BYTES * 600
    for n_tokens in (text_bytes // 4, text_bytes // 2):  # the second answer says otherwise
        choice = router.choose("m", text("p" * text_bytes), seed=1)
        assert choice is not None
        cached = choice.promised_tokens  # else the predictions would lose trust
        router.finished(choice, prompt_tokens=n_tokens, cached_tokens=cached, completion_tokens=1, is_ok=True)
        for part in (0.2, 0.5, 0.9):
            views = router.explain("m", text("p" * int(text_bytes * part) + "!"), seed=1)
            assert views[0].predicted_cached_tokens == pytest.approx(n_tokens * part, rel=1 / STEPS + 0.01)


@pytest.mark.parametrize("seed", range(6))
def test_a_full_index_never_promises_more_than_is_shared(seed: int) -> None:
    rng = random.Random(seed)
    router = router_of(3, index_max_bytes=MIN_BYTES)
    texts = [letters(rng, int(2 ** rng.uniform(4, 13)))]
    for _ in range(400):
        old = rng.choice(texts[-40:])
        new = old[: rng.randrange(len(old) + 1)] + letters(rng, int(2 ** rng.uniform(4, 13)))
        shared = max(n_shared(new, other) for other in texts)
        texts.append(new)
        assert serve(router, text(new)).matched_bytes <= shared
    assert router.snapshot().index_evictions > 0
    router.index._check()  # type: ignore[union-attr]


def n_shared(one: str, other: str) -> int:
    """How many letters they begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low

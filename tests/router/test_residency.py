"""What engines say of their caches: taken in, gone by with requests in flight, checked, given up and taken up again."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from xinf._fast import prefix
from xinf._fast.prefix import MIN_BYTES
from xinf._fast.scan import Scan, scan
from xinf.core.clock import FakeClock
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, ReplicaView, ResidencyUpdate, Router, RouterSettings

BLOCK_TOKENS = 16
SEED = 1


def text(body: str, **fields: object) -> Scan:
    return scan(orjson.dumps({"prompt": body, **fields}))


def router_of(n: int = 1, *, policy: RoutingPolicy = RoutingPolicy.AUTO, **settings: int) -> Router:
    router = Router(RouterSettings(**settings), clock=FakeClock(), turn=0)  # type: ignore[arg-type]
    for i in range(n):
        router.set_replica(f"r{i}", model="m", policy=policy, block_tokens=BLOCK_TOKENS, is_ready=True)
    return router


def update(chain: bytes, tokens: list[int], **fields: object) -> ResidencyUpdate:
    return ResidencyUpdate(added=chain, tokens=array("I", tokens).tobytes(), **fields)  # type: ignore[arg-type]


def tell(router: Router, body: Scan, replica: str = "r0", **fields: object) -> None:
    """The replica holds all of it, four bytes a token."""
    chain, ends = body.chain_with_ends(SEED)
    tokens = [end // 4 for end in array("I", ends)]
    router.on_residency(replica, update(chain, tokens, **fields))


def view(router: Router, replica: str = "r0") -> ReplicaView:
    return next(view for view in router.snapshot().replicas if view.replica_id == replica)


def choose(router: Router, body: Scan, **fields: object) -> Choice:
    choice = router.choose("m", body, seed=SEED, **fields)  # type: ignore[arg-type]
    assert choice is not None
    return choice


def finish(router: Router, choice: Choice, prompt_tokens: int = 1000, cached_tokens: int = 0) -> None:
    router.finished(choice, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=1, is_ok=True)


def predicted(router: Router, body: Scan) -> dict[str, int]:
    return {one.replica_id: one.predicted_cached_tokens for one in router.explain("m", body, seed=SEED)}


LONG = text("a" * 4000)


def test_a_snapshot_and_what_changes_are_gone_by() -> None:
    router = router_of(2)
    tell(router, LONG, cleared=True, state="exact")
    assert predicted(router, LONG) == {"r0": 992, "r1": 0}
    choice = choose(router, LONG)
    assert (choice.replica_id, choice.reason, choice.index_state) == ("r0", "prefix", "exact")
    assert (choice.matched_bytes, choice.matched_tokens, choice.predicted_cached_tokens) == (4000, 1000, 992)
    finish(router, choice, 1000, 992)
    # The last 2000 bytes are evicted.
    router.on_residency("r0", ResidencyUpdate(removed=LONG.chain(SEED)[8 * 32 :]))
    assert predicted(router, LONG) == {"r0": 32 * 64 // 4, "r1": 0}
    router.on_residency("r0", ResidencyUpdate(cleared=True))
    assert predicted(router, LONG) == {"r0": 0, "r1": 0}
    assert view(router).index_state == "exact"


def test_tokens_of_the_prompt_follow_from_what_is_known() -> None:
    router = router_of()
    half = text("a" * 2048)
    chain, ends = half.chain_with_ends(SEED)
    tokens = [end // 2 for end in array("I", ends)]  # two bytes a token, not the four that are assumed
    router.on_residency("r0", update(chain, tokens, cleared=True, state="exact"))
    choice = choose(router, text("a" * 2048 + "b" * 400))
    assert (choice.matched_tokens, choice.prompt_tokens) == (1024, 1024 + 100)


def test_trust_that_was_lost_does_not_shorten_what_is_told() -> None:
    router = router_of()
    for _ in range(30):
        finish(router, choose(router, LONG), 1000, 0)
    assert view(router).trust < 0.1
    tell(router, LONG, cleared=True, state="exact")
    assert choose(router, LONG).predicted_cached_tokens == 992
    router.on_hello("r0", "off")
    assert view(router).trust < 0.1


@pytest.mark.parametrize(
    ("says", "state", "expected"),
    [
        ("exact", "", ("exact", True)),
        ("approx", "", ("approx", True)),
        ("exact", "approx", ("approx", True)),
        ("off", "exact", ("exact", True)),
        ("exact", "off", ("off", False)),
        ("", "", ("approx", True)),
        ("surprise", "exact", ("exact", True)),
        ("exact", "surprise", ("exact", True)),
    ],
)
def test_the_state_is_the_last_one_said(says: str, state: str, expected: tuple[str, bool]) -> None:
    router = router_of()
    router.on_hello("r0", says)
    tell(router, LONG, cleared=True, state=state)
    seen = view(router)
    assert (seen.index_state, seen.is_told) == expected
    assert choose(router, LONG).index_state == expected[0]
    assert (seen.told_chunks > 0) == expected[1]


def test_a_hello_alone_changes_nothing_but_off() -> None:
    router = router_of()
    finish(router, choose(router, LONG), 1000, 0)
    for says, expected in (("exact", "approx"), ("approx", "approx"), ("off", "off"), ("exact", "approx")):
        router.on_hello("r0", says)
        assert (view(router).index_state, view(router).is_told) == (expected, False)


def test_what_comes_before_a_snapshot_is_nothing() -> None:
    router = router_of()
    tell(router, LONG, state="exact")
    assert (view(router).told_chunks, view(router).is_told) == (0, False)


def test_without_an_index_for_it_nobody_is_asked() -> None:
    router = router_of(exact_index_max_bytes=0)
    assert not router.wants_residency
    tell(router, LONG, cleared=True, state="exact")
    assert view(router).index_state == "approx"
    assert router_of().wants_residency


def test_what_is_told_works_without_an_index_of_what_was_routed() -> None:
    router = router_of(2, index_max_bytes=0)
    assert view(router).index_state == "off"
    tell(router, LONG, cleared=True, state="exact")
    assert (view(router).index_state, view(router, "r1").index_state) == ("exact", "off")
    for _ in range(3):
        choice = choose(router, LONG)
        assert (choice.replica_id, choice.predicted_cached_tokens) == ("r0", 992)
        finish(router, choice, 1000, 992)


def test_policies_without_prefixes_have_no_use_for_it() -> None:
    router = router_of(policy=RoutingPolicy.LEAST_LOAD)
    tell(router, LONG, cleared=True, state="exact")
    assert (view(router).index_state, view(router).index_cause) == ("off", "policy")
    assert choose(router, LONG).n_marks == 0
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
    assert view(router).index_state == "exact"  # it was kept
    assert choose(router, LONG).predicted_cached_tokens == 992


def test_a_replica_that_is_not_ready_keeps_what_it_told() -> None:
    router = router_of()
    tell(router, LONG, cleared=True, state="exact")
    for is_ready in (False, True):
        router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=is_ready)
    assert choose(router, LONG).predicted_cached_tokens == 992
    router.remove_replica("r0")
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
    assert (view(router).index_state, view(router).told_chunks) == ("approx", 0)


# ---- in flight -------------------------------------------------------------------------------------------------------


def test_what_was_just_sent_is_known_before_it_is_told() -> None:
    router = router_of(2)
    for name in ("r0", "r1"):
        router.on_residency(name, ResidencyUpdate(cleared=True, state="exact"))
    first = choose(router, LONG)
    assert predicted(router, LONG)[first.replica_id] == 992
    again = choose(router, LONG, exclude={"r0", "r1"} - {first.replica_id})
    assert again.predicted_cached_tokens == 992
    finish(router, first, 1000, 0)
    finish(router, again, 1000, 992)
    # Told or not: who has the answer does not go by what was sent any more.
    assert predicted(router, LONG) == {"r0": 0, "r1": 0}
    assert router.snapshot().index_entries == 0


def test_what_is_told_counts_as_soon_as_it_comes() -> None:
    """The estimate was 1000 tokens for the prompt; the engine says 500 up to its last block."""
    router = router_of()
    router.on_residency("r0", ResidencyUpdate(cleared=True, state="exact"))
    choose(router, LONG)
    chain, ends = LONG.chain_with_ends(SEED)
    router.on_residency("r0", update(chain, [end // 8 for end in array("I", ends)]))
    assert choose(router, LONG).matched_tokens == 500


def test_what_is_told_of_a_part_does_not_hide_what_is_in_flight() -> None:
    router = router_of()
    router.on_residency("r0", ResidencyUpdate(cleared=True, state="exact"))
    choose(router, LONG)
    tell(router, text("a" * 640))
    assert choose(router, LONG).predicted_cached_tokens == 992


def test_a_request_that_failed_leaves_nothing_in_flight() -> None:
    router = router_of()
    tell(router, text("a" * 640), cleared=True, state="exact")
    choice = choose(router, LONG)
    router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    assert predicted(router, LONG) == {"r0": 160}
    assert router.snapshot().index_entries == 0


# ---- checked ---------------------------------------------------------------------------------------------------------


def ask(router: Router, n: int, *, cached_tokens: int) -> None:
    for _ in range(n):
        finish(router, choose(router, LONG), 1000, cached_tokens)


def told_router() -> Router:
    router = router_of()
    tell(router, LONG, cleared=True, state="exact")
    return router


def test_what_does_not_come_true_is_given_up() -> None:
    router = told_router()
    ask(router, 49, cached_tokens=0)
    assert (view(router).index_state, view(router).share) == ("exact", 0.0)
    ask(router, 1, cached_tokens=0)
    seen = view(router)
    assert (seen.index_state, seen.index_cause, seen.is_told, seen.n_checked) == ("approx", "check", False, 0)
    assert seen.changes == {("exact", "engine"): 1, ("approx", "check"): 1}
    assert seen.told_chunks == 63  # kept, to be checked


def test_a_few_that_do_not_come_true_are_borne() -> None:
    router = told_router()
    for _ in range(40):
        ask(router, 1, cached_tokens=0)
        ask(router, 9, cached_tokens=992)
    assert view(router).index_state == "exact"
    assert view(router).share == pytest.approx(0.9, abs=0.05)


def test_what_comes_true_again_is_gone_by_again() -> None:
    router = told_router()
    ask(router, 50, cached_tokens=0)
    ask(router, 99, cached_tokens=992)
    assert (view(router).index_state, view(router).share) == ("approx", 1.0)
    ask(router, 1, cached_tokens=992)
    seen = view(router)
    assert (seen.index_state, seen.index_cause) == ("exact", "recovery")
    assert seen.changes["exact", "recovery"] == 1
    assert choose(router, LONG).predicted_cached_tokens == 992


def test_it_takes_more_to_return_than_to_leave() -> None:
    router = told_router()
    ask(router, 50, cached_tokens=0)
    for _ in range(50):
        ask(router, 9, cached_tokens=992)
        ask(router, 1, cached_tokens=0)
    assert view(router).index_state == "approx"


def test_within_a_block_is_true() -> None:
    router = told_router()
    ask(router, 60, cached_tokens=992 - BLOCK_TOKENS)
    assert (view(router).index_state, view(router).share) == ("exact", 1.0)
    ask(router, 60, cached_tokens=992 - BLOCK_TOKENS - 1)
    assert view(router).index_state == "approx"


def test_answers_that_say_nothing_do_not_count() -> None:
    """Neither expected nor found: right for any index, also for one that is of no use."""
    router = told_router()
    for number in range(300):
        finish(router, choose(router, text(f"{number} is new")), 5, 0)
    assert view(router).n_checked == 0
    finish(router, choose(router, text("found, but not expected")), 100, 96)
    assert (view(router).n_checked, view(router).share) == (1, 0.0)


def test_an_approximate_tale_is_checked_too() -> None:
    router = router_of()
    tell(router, LONG, cleared=True, state="approx")
    ask(router, 50, cached_tokens=0)
    assert (view(router).index_state, view(router).is_told, view(router).index_cause) == ("approx", False, "check")


def test_marks_are_gone_by_while_what_is_told_is_doubted() -> None:
    router = told_router()
    ask(router, 50, cached_tokens=0)
    other = text("b" * 4000)
    finish(router, choose(router, other), 1000, 0)
    assert predicted(router, other)["r0"] > 900
    assert predicted(router, LONG)["r0"] < 992  # by marks of the last requests, which came to nothing


def test_what_was_marked_goes_when_the_engine_begins_to_tell() -> None:
    router = router_of()
    finish(router, choose(router, LONG), 1000, 0)
    assert predicted(router, LONG)["r0"] > 900
    router.on_residency("r0", ResidencyUpdate(cleared=True, state="exact"))
    assert predicted(router, LONG) == {"r0": 0}
    assert view(router).held_chunks == 0


def test_a_request_may_outlive_what_it_was_chosen_by() -> None:
    router = router_of()
    before = choose(router, LONG)
    tell(router, LONG, cleared=True, state="exact")
    during = choose(router, text("a" * 8000))
    router.on_hello("r0", "off")
    finish(router, before, 1000, 0)
    finish(router, during, 2000, 992)
    assert view(router).n_checked == 0
    assert view(router).answers == 2


# ---- adapters, hostile engines, no memory ----------------------------------------------------------------------------


def test_seeds_keep_what_is_told_apart() -> None:
    router = told_router()
    other = router.choose("m", LONG, seed=SEED + 1)
    assert other is not None
    assert (other.matched_bytes, other.index_state) == (0, "exact")


def test_chunks_are_of_the_size_that_is_asked_for() -> None:
    router = router_of()
    chain = LONG.chain(SEED, 0, 32)
    router.on_residency("r0", update(chain[-8:], [1000], cleared=True, state="exact"))
    assert choose(router, LONG, chunk_bytes=32).matched_bytes == 4000
    assert router.explain("m", LONG, seed=SEED, chunk_bytes=32)[0].matched_bytes == 4000
    with pytest.raises(ValueError, match="chunk_bytes is 5"):
        router.choose("m", LONG, seed=SEED, chunk_bytes=5)


def test_residency_of_a_stranger_is_ignored() -> None:
    router = router_of()
    tell(router, LONG, "stranger", cleared=True, state="exact")
    router.on_hello("stranger", "exact")
    assert router.snapshot().exact_index_entries == 0


@pytest.mark.parametrize(
    ("added", "tokens", "removed"), [(8, 8, 0), (16, 4, 0), (8, 0, 0), (0, 4, 0), (7, 4, 0), (0, 0, 7)]
)
def test_arrays_that_do_not_fit_are_refused(added: int, tokens: int, removed: int) -> None:
    router = told_router()
    with pytest.raises(ValueError, match=r"bytes|positions"):
        router.on_residency("r0", ResidencyUpdate(False, bytes(added), bytes(tokens), bytes(removed)))
    assert choose(router, LONG).predicted_cached_tokens == 992


def test_removing_what_was_never_added_is_harmless() -> None:
    router = told_router()
    router.on_residency("r0", ResidencyUpdate(removed=text("b" * 4000).chain(SEED) * 3))
    assert choose(router, LONG).predicted_cached_tokens == 992


@pytest.mark.parametrize("tokens", [0, 1, 2**31, 2**32 - 1])
def test_positions_that_cannot_be_make_nobody_dear(tokens: int) -> None:
    router = router_of(2)
    router.on_residency("r0", update(LONG.chain(SEED), [tokens] * 63, cleared=True, state="exact"))
    choice = choose(router, LONG)
    assert choice.prompt_tokens <= 4 * 4000 + (1 << 14) + 1
    assert choice.predicted_cached_tokens < choice.prompt_tokens
    costs = {one.replica_id: one.terms.total_s for one in router.explain("m", LONG, seed=SEED)}
    assert max(costs.values()) < 50  # bounded: it would be hours


def test_many_chunks_of_one_hash_are_one() -> None:
    router = router_of()
    router.on_residency("r0", update(LONG.chain(SEED)[-8:] * 5000, list(range(5000)), cleared=True, state="exact"))
    assert view(router).told_chunks == 1
    assert choose(router, LONG).matched_tokens == 4999


def test_more_than_fits_is_forgotten() -> None:
    router = router_of(exact_index_max_bytes=MIN_BYTES)
    rng = random.Random(3)
    for _ in range(20):
        router.on_residency("r0", update(rng.randbytes(8 * 10_000), [7] * 10_000, cleared=_ == 0, state="exact"))
    seen = router.snapshot()
    assert seen.exact_index_bytes <= seen.exact_index_max_bytes == MIN_BYTES
    assert seen.exact_index_evictions > 100_000
    assert router.exact is not None
    router.exact._check()


@pytest.mark.parametrize("k", range(1, 5))
def test_no_memory_for_what_is_told_leaves_the_router_whole(k: int) -> None:
    router = router_of(2)
    prefix._fail_allocation(k)
    try:
        tell(router, LONG, cleared=True, state="exact")
        choose(router, LONG)
    except MemoryError:
        pass
    finally:
        prefix._fail_allocation(0)
    tell(router, LONG, cleared=True, state="exact")
    assert predicted(router, LONG)["r0"] == 992
    assert router.exact is not None
    router.exact._check()

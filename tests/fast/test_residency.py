"""The block table against the naive one, rule by rule, its bounds and failing allocations."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

import pytest

from tests.model.block_pair import BlockPair, Mirror, ids, pairs, q, random_case, run_case
from xinf._fast import buffer, residency
from xinf._fast.residency import GRACE_S, MIN_BYTES, UNTRACKED, BlockTable

PROMPT = list(range(100, 120))  # five blocks of 4
CHAIN = [11, 12, 13, 14, 15]
ENDS = [4, 8, 12, 16, 20]


@pytest.fixture(autouse=True)
def _no_failure_is_left() -> Iterator[None]:
    yield
    residency._fail_allocation(0)


def news(table: BlockTable) -> tuple[dict[int, int], set[int]] | None:
    if (taken := table.take()) is None:
        return None
    return pairs(taken[0], taken[1]), set(array("Q", taken[2]))


def opened(table: BlockTable, tokens: list[int] = PROMPT, chain: list[int] = CHAIN, ends: list[int] = ENDS) -> int:
    return table.register(ids(tokens), q(chain), ids(ends))


def known(table: BlockTable) -> None:
    """All blocks stored, registered and told of."""
    assert table.stored(q([1, 2, 3, 4, 5]), None, ids(PROMPT)) == 0
    table.release(opened(table))
    table.take()


# ---- against the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_table_agrees_with_the_naive_one(seed: int) -> None:
    print("seed", seed)
    pair = run_case(random_case(random.Random(seed)))
    assert pair.table.refused == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_full_table_stays_within_its_bytes_and_never_invents_a_block(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    pair = BlockPair(1, MIN_BYTES, None)
    prompts = [[rng.randrange(1 << 32) for _ in range(rng.randrange(50, 250))] for _ in range(14)]
    hashes = {(n, i): rng.getrandbits(64) for n, prompt in enumerate(prompts) for i in range(len(prompt))}
    for _ in range(60):
        n = rng.randrange(len(prompts))
        prompt, names = prompts[n], [hashes[n, i] for i in range(len(prompts[n]))]
        kind = rng.random()
        if kind < 0.4:
            # The chunks of several prompts are the same now and then: so bindings move.
            chunks = [(1000 * (n % 5) + i, i) for i in range(1, len(prompt) + 1)]
            pair.do(("register", prompt, chunks, 0))
        elif kind < 0.6:
            pair.do(("release", rng.randrange(100)))
        elif kind < 0.8:
            pair.do(("stored", names, None, prompt, 0))
        elif kind < 0.9:
            pair.do(("removed", names))
        else:
            pair.do(rng.choice([("take",), ("collect", 1.5), ("clear",)]))
    assert pair.table.refused > 100
    assert len(pair.table) <= pair.table.max_blocks < 1024


def test_growing_loses_nothing() -> None:
    table, rng = BlockTable(1), random.Random(3)
    handles = []
    for n in range(40):
        tokens = [rng.randrange(1 << 32) for _ in range(500)]
        handles.append(table.register(ids(tokens), q([n << 40 | i for i in range(1, 501)]), ids(list(range(1, 501)))))
    table._check()
    mirror = Mirror()
    mirror.follow(table)
    assert len(table) == table.resident == len(mirror.held) == 20_000
    assert table.nbytes / len(table) < 300
    for handle in handles[::2]:
        table.release(handle)
    table.collect(1.0)
    assert table.collect(1.0 + GRACE_S + 0.1) == 10_000
    mirror.follow(table)
    table._check()
    assert len(table) == len(mirror.held) == 10_000
    n_bytes = table.nbytes
    for n in range(20):
        tokens = [rng.randrange(1 << 32) for _ in range(500)]
        table.register(ids(tokens), q([n << 50 | i for i in range(1, 501)]), ids(list(range(1, 501))))
    table._check()
    assert len(table) == 20_000
    assert table.nbytes <= n_bytes + 65_536  # what was freed is used again; the requests' own lists are new


# ---- requests and bindings -----------------------------------------------------------------------------------------


def test_a_request_in_flight_counts_as_resident() -> None:
    table = BlockTable(4)
    handle = opened(table)
    assert news(table) == (dict(zip(CHAIN, ENDS, strict=True)), set())
    assert table.resident == len(table) == 5
    table.release(handle)
    assert news(table) == ({}, set(CHAIN))
    assert news(table) is None


def test_a_block_has_the_first_chunk_at_its_end_or_behind() -> None:
    table = BlockTable(4)
    # 3: in block 1. 5 and 7: behind its end. 8: the end of the second. 18: behind that of the third and the fourth.
    opened(table, PROMPT, [21, 22, 23, 24, 25], [3, 5, 7, 8, 18])
    assert news(table) == ({22: 5, 24: 8, 25: 18}, set())


def test_a_block_that_was_jumped_over_keeps_its_chunk() -> None:
    table = BlockTable(4)
    opened(table)
    table.take()
    opened(table, PROMPT, [31], [12])
    assert news(table) == ({31: 12}, {13})


def test_the_latest_binding_wins() -> None:
    table = BlockTable(4)
    known(table)
    other = [7, 7, 7, 7]
    handle = opened(table, other, [13], [4])  # 13 stood for the third block
    assert news(table) == ({13: 4}, set())
    table.release(handle)
    assert news(table) == ({}, {13})
    table._check()
    opened(table)
    assert news(table) == ({13: 12}, set())


def test_other_tokens_of_a_chunk_are_news() -> None:
    table = BlockTable(4)
    known(table)
    opened(table, PROMPT, CHAIN, [5, 8, 12, 16, 20])
    assert news(table) == ({11: 5}, set())


def test_only_the_net_effect_is_news() -> None:
    table = BlockTable(4)
    known(table)
    table.removed(q([5]))
    table.stored(q([5]), 4, ids(PROMPT[16:]))
    handle = opened(table, [9] * 4, [90], [4])
    table.release(handle)
    assert news(table) is None


def test_a_full_hit_is_bound_without_events() -> None:
    table = BlockTable(4)
    assert table.stored(q([1, 2, 3, 4, 5]), None, ids(PROMPT)) == 0
    assert table.resident == 5
    assert news(table) is None  # resident, but no text is known that stands for it
    table.release(opened(table))
    assert news(table) == (dict(zip(CHAIN, ENDS, strict=True)), set())


def test_the_answer_is_added_by_extend() -> None:
    table = BlockTable(4)
    handle = opened(table, PROMPT[:10], CHAIN[:2], ENDS[:2])
    table.take()
    table.extend(handle, ids(PROMPT), q(CHAIN), ids(ENDS))
    assert news(table) == ({13: 12, 14: 16, 15: 20}, set())
    table.release(handle)
    assert news(table) == ({}, set(CHAIN))


def test_extend_uses_the_salt_of_register() -> None:
    table = BlockTable(4)
    handle = table.register(ids(PROMPT[:8]), q([]), ids([]), salt=5)
    table.extend(handle, ids(PROMPT), q([]), ids([]))
    assert len(table) == 5
    table.stored(q([1, 2, 3, 4, 5]), None, ids(PROMPT), salt=5)
    assert len(table) == 5
    table.stored(q([6]), None, ids(PROMPT[:4]))
    assert len(table) == 6


def test_two_requests_share_an_overlay() -> None:
    table = BlockTable(4)
    one, other = opened(table), opened(table)
    table.take()
    table.release(one)
    table.release(one)
    table.extend(one, ids([1] * 4), q([1]), ids([4]))
    assert news(table) is None
    table.release(other)
    assert news(table) == ({}, set(CHAIN))


@pytest.mark.parametrize("handle", [UNTRACKED, -1, 1, 1 << 31, 1 << 63, 1 << 80])
def test_a_dead_handle_is_ignored(handle: int) -> None:
    table = BlockTable(4)
    table.release(handle)
    table.extend(handle, ids(PROMPT), q(CHAIN), ids(ENDS))
    assert len(table) == 0


def test_a_prompt_below_a_block_has_a_handle() -> None:
    table = BlockTable(4)
    handle = opened(table, PROMPT[:3], [1], [3])
    assert handle > UNTRACKED
    assert news(table) is None
    table.release(handle)


# ---- events --------------------------------------------------------------------------------------------------------


def test_copies_are_counted() -> None:
    table = BlockTable(4)
    known(table)
    table.stored(q([1, 2]), None, ids(PROMPT[:8]))
    assert table.duplicates == 2
    assert table.removed(q([2, 1])) == 2
    assert news(table) is None
    assert table.removed(q([2])) == 1
    assert news(table) == ({}, {12})
    assert table.removed(q([2])) == 0


def test_a_block_of_an_unknown_parent_is_an_orphan() -> None:
    table = BlockTable(4)
    assert table.stored(q([8, 9]), 7, ids(PROMPT[:8])) == 2
    assert table.stored(q([10]), 9, ids(PROMPT[:4])) == 1
    assert (table.orphans, len(table), table.resident) == (3, 0, 0)
    assert table.removed(q([8, 9, 10])) == 0
    opened(table)
    assert table.removed(q([8])) == 0
    assert table.resident == 5


def test_a_known_block_behind_an_unknown_parent_is_a_copy() -> None:
    table = BlockTable(4)
    known(table)
    # As when the list is cut: 77 is not known, 3 is, and what follows it can be told apart again.
    assert table.stored(q([77, 3, 6]), 66, ids([0] * 4 + PROMPT[8:12] + [5] * 4)) == 1
    assert table.duplicates == 1
    assert table.removed(q([3])) == 1
    assert news(table) is None
    opened(table, PROMPT[:12] + [5] * 4, [60], [16])
    assert news(table) == ({60: 16}, set())


def test_a_known_hash_with_other_tokens_is_an_orphan() -> None:
    table = BlockTable(4)
    known(table)
    assert table.stored(q([1]), None, ids([0] * 4)) == 1
    assert (table.resident, table.duplicates) == (5, 0)


def test_two_hashes_of_one_block_are_two_copies() -> None:
    table = BlockTable(4)
    known(table)
    table.stored(q([1001]), None, ids(PROMPT[:4]))
    table.removed(q([1]))
    assert news(table) is None
    table.removed(q([1001]))
    assert news(table) == ({}, {11})


def test_own_keys_go_on_from_the_parent() -> None:
    table = BlockTable(4)
    table.stored(q([1, 2]), None, ids(PROMPT[:8]), salt=3)
    table.stored(q([3, 4, 5]), 2, ids(PROMPT[8:]), salt=99)
    table.register(ids(PROMPT), q(CHAIN), ids(ENDS), salt=3)
    assert len(table) == 5


def test_a_stored_event_may_come_after_the_end() -> None:
    table = BlockTable(4)
    table.release(opened(table))
    assert table.collect(10.0) == 0
    assert table.collect(10.0 + GRACE_S) == 0
    table.stored(q([1, 2]), None, ids(PROMPT[:8]))
    assert news(table) == ({11: 4, 12: 8}, set())
    assert table.collect(10.1 + GRACE_S) == 3
    assert len(table) == 2
    table.stored(q([3]), 2, ids(PROMPT[8:12]))  # too late: nobody knows its text
    assert news(table) is None


def test_what_comes_back_starts_its_time_anew() -> None:
    table = BlockTable(4)
    table.release(opened(table))
    table.collect(10.0)
    table.release(opened(table))
    assert table.collect(11.0 + GRACE_S) == 0  # seen to be gone only now
    assert table.collect(11.1 + 2 * GRACE_S) == 5
    assert len(table) == 0


def test_a_clear_keeps_what_is_in_flight() -> None:
    table, mirror = BlockTable(4), Mirror()
    known(table)
    mirror.follow(table)
    handle = opened(table, PROMPT[:8], CHAIN[:2], ENDS[:2])
    table.clear()
    assert table.n_clears == 1
    assert table.snapshot() == (b"", b"")
    assert table.resident == 2
    assert mirror.follow(table) == ({11: 4, 12: 8}, set())
    assert table.removed(q([1, 2, 3])) == 0
    table.release(handle)
    mirror.follow(table)
    assert mirror.held == pairs(*table.snapshot()) == {}
    table.stored(q([1]), None, ids(PROMPT[:4]))  # its binding outlives the reset, too
    assert news(table) == ({11: 4}, set())


def test_a_clear_is_news_even_of_nothing() -> None:
    table = BlockTable(4)
    table.clear()
    assert news(table) == ({}, set())
    assert news(table) is None


# ---- a simulated engine --------------------------------------------------------------------------------------------


def test_a_simulated_engine_keeps_blocks_until_others_need_their_place() -> None:
    table = BlockTable(4, capacity_blocks=6)
    table.release(opened(table))
    assert news(table) == (dict(zip(CHAIN, ENDS, strict=True)), set())
    assert table.resident == 5
    table.release(opened(table, [1] * 4, [21], [4]))
    assert news(table) == ({21: 4}, set())
    table.release(opened(table, [2] * 8, [31, 32], [4, 8]))  # the tail goes first
    assert news(table) == ({31: 4, 32: 8}, {14, 15})
    table.release(opened(table, PROMPT[:12], CHAIN[:3], ENDS[:3]))  # used again: the youngest now
    handle = opened(table, [3] * 8, [41, 42], [4, 8])
    assert news(table) == ({41: 4, 42: 8}, {21, 32})
    table.clear()
    assert news(table) == ({41: 4, 42: 8}, set())
    table.release(handle)
    assert table.resident == 2
    table._check()


def test_open_requests_may_take_more_than_the_capacity() -> None:
    table = BlockTable(4, capacity_blocks=3)
    handle = opened(table)
    assert table.resident == 5
    table.release(handle)
    assert table.resident == 3
    assert pairs(*(table.take() or (b"", b"", b""))[:2]) == {11: 4, 12: 8, 13: 12}


def test_a_simulated_engine_sends_no_events() -> None:
    table = BlockTable(4, capacity_blocks=3)
    assert table.capacity_blocks == 3
    with pytest.raises(ValueError, match="simulates an engine of 3 blocks"):
        table.stored(q([1]), None, ids(PROMPT[:4]))
    with pytest.raises(ValueError, match="simulates an engine of 3 blocks"):
        table.removed(q([1]))


# ---- arguments, bounds, memory -------------------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    table = BlockTable(4)
    for block_tokens, max_bytes, capacity in (
        (0, MIN_BYTES, None),
        (1 << 21, MIN_BYTES, None),
        (4, 5, None),
        (4, -1, None),
    ):
        with pytest.raises(ValueError, match="is"):
            BlockTable(block_tokens, max_bytes, capacity_blocks=capacity)
    with pytest.raises(ValueError, match="capacity_blocks is 0"):
        BlockTable(4, capacity_blocks=0)
    with pytest.raises(ValueError, match="1 positions for 2 chunks"):
        opened(table, PROMPT, [1, 2], [4])
    with pytest.raises(ValueError, match="position 1 is 4, after 8"):
        opened(table, PROMPT, [1, 2], [8, 4])
    with pytest.raises(ValueError, match="the last position is 21, of 20 tokens"):
        opened(table, PROMPT, [1], [21])
    with pytest.raises(ValueError, match="chain must be items of 8 bytes, got 4 bytes in items of 4"):
        table.register(ids(PROMPT), ids([1]), ids([1]))
    with pytest.raises(ValueError, match="tokens must be items of 4 bytes, got 3 bytes in items of 1"):
        table.register(b"abc", b"", b"")
    with pytest.raises(ValueError, match="salt is -1"):
        table.register(ids(PROMPT), q([]), ids([]), salt=-1)
    with pytest.raises(ValueError, match="salt is 18446744073709551616"):
        table.stored(q([1]), None, ids(PROMPT[:4]), salt=1 << 64)
    with pytest.raises(ValueError, match="parent is -5"):
        table.stored(q([1]), -5, ids(PROMPT[:4]))
    with pytest.raises(ValueError, match="7 tokens for 2 blocks of 4"):
        table.stored(q([1, 2]), None, ids(PROMPT[:7]))
    with pytest.raises(ValueError, match="4 tokens for 2 blocks of 4"):
        table.stored(q([1, 2]), None, ids(PROMPT[:4]))
    for now_s in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="now_s is"):
            table.collect(now_s)
    with pytest.raises(TypeError):
        table.register(PROMPT, q([]), ids([]))  # type: ignore[arg-type]
    assert len(table) == 0
    table._check()


def test_buffers_need_not_be_aligned() -> None:
    table = BlockTable(4)
    tokens, chain, ends = (memoryview(b"x" + part.tobytes())[1:] for part in (ids(PROMPT), q(CHAIN), ids(ENDS)))
    table.register(tokens, chain, ends)
    assert news(table) == (dict(zip(CHAIN, ENDS, strict=True)), set())


def test_requests_have_a_share_of_the_bytes() -> None:
    table = BlockTable(1, MIN_BYTES)
    tokens = ids([1] * 7000)
    handles = [table.register(tokens, q([]), ids([])) for _ in range(3)]
    assert handles[0] > UNTRACKED
    assert handles[1:] == [UNTRACKED, UNTRACKED]
    assert table.nbytes <= MIN_BYTES
    n_refused = table.refused
    table.extend(handles[0], ids([1] * 7000), q([]), ids([]))
    assert table.refused == n_refused + 7000
    table._check()
    table.release(handles[0])
    assert table.register(tokens, q([]), ids([])) != UNTRACKED
    while table.register(b"", b"", b"") != UNTRACKED:  # rows for ever more requests
        pass
    assert table.nbytes <= MIN_BYTES
    table._check()


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_failed_allocation_changes_nothing(n_before: int) -> None:
    """Pages of 1024, so 1,000 blocks each time: every call needs new pages of something; the buckets may do without."""
    for operation in ("register", "extend", "stored"):
        for k in range(1, 30):
            table = BlockTable(1)
            handle = table.register(ids([0] * 1000), q([]), ids([]))
            for n in range(1, n_before + 1):
                table.stored(q([n << 40 | i for i in range(1000)]), None, ids([n] * 1000))
                table.register(ids([n] * 1000), q([n << 40 | i for i in range(1, 1001)]), ids(list(range(1, 1001))))
            state, counts = table._state(), (len(table), table.resident, table.refused, table.orphans)
            tokens, hashes, ends = ids([99] * 1000), q(list(range(1, 1001))), ids(list(range(1, 1001)))
            arguments = {
                "register": (tokens, hashes, ends), "extend": (handle, tokens, hashes, ends),
                "stored": (hashes, None, tokens),
            }[operation]  # fmt: skip
            residency._fail_allocation(k)
            try:
                getattr(table, operation)(*arguments)
            except MemoryError:
                residency._fail_allocation(0)
                assert (table._state(), (len(table), table.resident, table.refused, table.orphans)) == (state, counts)
                table._check()
                getattr(table, operation)(*arguments)
            residency._fail_allocation(0)
            table._check()
            assert len(table) == 1000 * (n_before + (operation != "extend") + 1)
            assert table.refused == 0


def test_every_allocation_of_a_table_may_fail() -> None:
    n_failed = 0
    for k in range(1, 20):
        residency._fail_allocation(k)
        try:
            BlockTable(4)
        except MemoryError:
            n_failed += 1
        residency._fail_allocation(0)
    assert n_failed == 9  # three slabs of two directories and a page of heads


def test_an_aligned_copy_may_fail() -> None:
    table = BlockTable(4)
    buffer._fail_allocation(1)
    try:
        with pytest.raises(MemoryError, match="aligned copy of tokens"):
            table.register(memoryview(b"x" + ids(PROMPT).tobytes())[1:], q([]), ids([]))
    finally:
        buffer._fail_allocation(0)
    assert len(table) == 0
    table._check()


def test_records_have_the_sizes_that_the_bound_is_planned_with() -> None:
    assert residency._record_bytes() == (40, 32, 32)
    assert BlockTable(16).max_blocks > 1_900_000

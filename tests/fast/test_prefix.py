"""The prefix index against the naive one, its bounds, eviction and failing allocations."""

from __future__ import annotations

import random
from array import array
from itertools import accumulate

import pytest

from tests.model.chunk_hash import chunk_hash
from tests.model.index_model import IndexModel
from xinf._fast import prefix
from xinf._fast.prefix import MIN_BYTES, PrefixIndex, chain_bytes, hash_bytes, token_positions

N_REPLICAS = 40


def q(chain: list[int]) -> array[int]:
    return array("Q", chain)


def matched(index: PrefixIndex, chain: list[int], n_replicas: int = N_REPLICAS) -> tuple[list[int], list[int], int]:
    lengths, hits = array("I", [9] * n_replicas), array("I", [9] * n_replicas)
    best = index.match(q(chain), lengths, hits)
    return lengths.tolist(), hits.tolist(), best


def random_chain(rng: random.Random) -> list[int]:
    """Chains of a small tree: equal prefixes are common; the bits of the hashes are bad on purpose."""
    family = rng.randrange(6)
    return [family << 32 | (i if i < 12 else i + rng.randrange(3) * 100) for i in range(rng.randrange(1, 40))]


def far(index: PrefixIndex, chain: list[int], ends: list[int], window_bytes: int) -> tuple[list[int], list[int], int]:
    lengths, hits = array("I", [9] * N_REPLICAS), array("I", [9] * N_REPLICAS)
    best = index.match_far(q(chain), array("I", ends), window_bytes, lengths, hits)
    return lengths.tolist(), hits.tolist(), best


def entries_of(chain: list[int], ends: list[int], block_bytes: int) -> list[int]:
    """One chunk a block: the first that fills it."""
    found, n_blocks = [], 0
    for chunk, end in zip(chain, ends, strict=True):
        if end // block_bytes > n_blocks:
            n_blocks = end // block_bytes
            found.append(chunk)
    return found


def random_ends(rng: random.Random, n: int) -> list[int]:
    """Chunks of text, and short ones where messages end."""
    return list(accumulate(rng.choice([64, 64, 64, 32, 5, 1]) for _ in range(n)))


@pytest.mark.parametrize("block_bytes", [[64], [64, 128], [512], [1000, 30]])
@pytest.mark.parametrize("seed", range(8))
def test_beginnings_are_found_as_by_looking_at_all(seed: int, block_bytes: list[int]) -> None:
    """Prompts that branch; each replica holds beginnings of some of them, one chunk a block."""
    print("seed", seed)
    rng = random.Random(seed)
    index = PrefixIndex(1 << 22)
    prompts: list[tuple[list[int], list[int]]] = []
    for _ in range(12):
        chain, ends = rng.choice(prompts) if prompts else ([], [])
        n_kept = rng.randrange(len(chain) + 1)
        more = rng.choice([5, 300, 900])
        ends = ends[:n_kept] + [(ends[n_kept - 1] if n_kept else 0) + end for end in random_ends(rng, more)]
        prompts.append((chain[:n_kept] + [rng.getrandbits(64) for _ in range(more)], ends))
    for replica in range(N_REPLICAS):
        for chain, ends in rng.sample(prompts, rng.choice([0, 1, 3, 12])):
            places = dict(zip(chain, ends, strict=True))
            held = entries_of(chain, ends, block_bytes[replica % len(block_bytes)])
            held = held[: rng.choice([len(held), rng.randrange(len(held) + 1)])]
            index.insert(replica, q(held), array("I", [places[chunk] for chunk in held]))
    for chain, ends in prompts:
        chain, ends = chain + [rng.getrandbits(64)] * 30, ends + [ends[-1]] * 30
        assert far(index, chain, ends, 3 * max(block_bytes)) == matched(index, chain)


@pytest.mark.parametrize("seed", range(20))
def test_holes_make_beginnings_shorter_never_longer(seed: int) -> None:
    rng = random.Random(seed)
    index = PrefixIndex(1 << 22)
    ends = random_ends(rng, 800)
    chain = [rng.getrandbits(64) for _ in ends]
    places = dict(zip(chain, ends, strict=True))
    for replica in range(N_REPLICAS):
        n_held = rng.randrange(len(chain))
        held = [chunk for chunk in chain[:n_held] if rng.random() < rng.choice([0.01, 0.5, 0.99])]
        index.insert(replica, q(held), array("I", [places[chunk] for chunk in held]))
    whole = matched(index, chain)[0]
    lengths, found, best = far(index, chain, ends, 192)
    assert all(length <= other for length, other in zip(lengths, whole, strict=True))
    assert best == max(lengths)
    for length, hit in zip(lengths, found, strict=True):
        assert (length == 0) == (hit == 0)
        assert length == (ends[hit - 1] if hit else 0)
    # A hole in one block is no end.
    index = PrefixIndex(1 << 22)
    index.insert(3, q([chunk for i, chunk in enumerate(chain) if i % 2]), array("I", ends[1::2]))
    assert far(index, chain, ends, 192) == matched(index, chain)


def test_a_long_chain_needs_ends_for_each_chunk() -> None:
    index = PrefixIndex(MIN_BYTES)
    with pytest.raises(ValueError, match="2 chunks have 1 ends"):
        index.match_far(q([1, 2]), array("I", [5]), 64, array("I", [0]))
    assert far(index, [], [], 64)[2] == 0
    assert far(index, [1, 2], [5, 6], 64)[2] == 0


@pytest.mark.parametrize("seed", range(60))
def test_index_agrees_with_the_naive_one(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    index, model = PrefixIndex(1 << 20), IndexModel()
    for step in range(400):
        replica, chain = rng.randrange(N_REPLICAS), random_chain(rng)
        pick = rng.random()
        if pick < 0.5:
            positions = None if rng.random() < 0.5 else [rng.randrange(1000) for _ in chain]
            index.insert(replica, q(chain), None if positions is None else array("I", positions))
            model.insert(replica, chain, positions)
        elif pick < 0.65:
            part = [chunk for chunk in chain if rng.random() < 0.7]
            index.remove(replica, q(part))
            model.remove(replica, part)
        elif pick < 0.7:
            index.drop(replica)
            model.drop(replica)
        n_replicas = rng.choice([0, 1, 7, N_REPLICAS])
        lengths, hits = model.match(chain, n_replicas)
        assert matched(index, chain, n_replicas) == (lengths, hits, max(lengths, default=0))
        assert len(index) == len(model)
        if step % 50 == 0:
            index._check()
    index._check()
    held = [sum(replica in replicas for replicas in model.holders.values()) for replica in range(N_REPLICAS)]
    assert [index.held_by(replica) for replica in range(N_REPLICAS)] == held
    assert index.evictions == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_full_index_stays_within_its_bytes_and_never_invents_a_match(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    index, model = PrefixIndex(MIN_BYTES), IndexModel()
    for step in range(3000):
        replica = rng.randrange(30)
        chain = (
            [rng.getrandbits(64) | 1 for _ in range(rng.randrange(1, 60))] if rng.random() < 0.6 else random_chain(rng)
        )
        if rng.random() < 0.05:
            index.drop(replica)
            model.drop(replica)
        elif rng.random() < 0.05:
            index.remove(replica, q(chain))
            model.remove(replica, chain)
        else:
            index.insert(replica, q(chain))
            model.insert(replica, chain)
        assert index.nbytes <= index.max_bytes == MIN_BYTES
        lengths, _, _ = matched(index, chain, 30)
        allowed, _ = model.match(chain, 30)
        # Eviction makes holes, so each length is one that some chunk of the chain gives this replica.
        assert all(got <= most for got, most in zip(lengths, allowed, strict=True))
        if step % 300 == 0:
            index._check()
    assert index.evictions > 1000
    index._check()


def test_what_was_inserted_lately_outlives_what_was_not() -> None:
    index = PrefixIndex(MIN_BYTES)
    hot = list(range(1, 65))
    rng = random.Random(1)
    for _ in range(400):
        index.insert(0, q(hot))
        index.insert(1, q([rng.getrandbits(64) for _ in range(64)]))
    assert index.evictions > 10_000
    assert matched(index, hot)[0][0] == 64
    assert index.held_by(0) == 64


def test_a_chain_longer_than_the_index_holds_does_no_harm() -> None:
    index = PrefixIndex(MIN_BYTES)
    chain = list(range(1, 50_000))
    index.insert(3, q(chain))
    index._check()
    assert matched(index, chain)[2] == len(chain)  # its end was inserted last


def test_the_furthest_hit_counts_despite_holes() -> None:
    index = PrefixIndex(MIN_BYTES)
    index.insert(0, q([1, 2, 3, 4, 5]))
    index.remove(0, q([1, 2, 4]))
    index.insert(1, q([1]))
    lengths, hits, best = matched(index, [1, 2, 3, 4, 9], 2)
    assert (lengths, hits, best) == ([3, 1], [3, 1], 3)


def test_positions_are_given_back_and_the_last_one_counts() -> None:
    index = PrefixIndex(MIN_BYTES)
    index.insert(0, q([1, 2, 3]), array("I", [10, 20, 30]))
    index.insert(1, q([1, 2]), array("I", [11, 21]))
    lengths, hits, best = matched(index, [1, 2], 2)
    assert (lengths, hits, best) == ([21, 21], [2, 2], 21)


def test_drop_is_forgotten_at_once_and_scrubbed_later() -> None:
    index = PrefixIndex(MIN_BYTES)
    for replica in range(20):
        index.insert(replica, q(list(range(1, 101))))
    for replica in range(19):
        index.drop(replica)
    assert len(index) == 100
    assert matched(index, [100])[0][:20] == [0] * 19 + [100]
    index.insert(5, q([7]))
    assert matched(index, list(range(1, 101)))[1][5] == 7
    for step in range(200):
        index.insert(19, q([10_000 + step]))
    index._check()
    assert len(index) == 301


def test_replicas_can_come_and_go_more_often_than_there_are_ids() -> None:
    index = PrefixIndex(MIN_BYTES)
    for step in range(5 * index.max_replicas):
        index.drop(step % index.max_replicas)
        index.insert(step % index.max_replicas, q([1, 2, 3]))
    index._check()
    assert len(index) == 3 * index.max_replicas


def test_bytes_work_as_chains() -> None:
    index = PrefixIndex(MIN_BYTES)
    chain = chain_bytes(b"x" * 1000, 5)
    index.insert(2, chain)
    lengths = array("I", [0] * 3)
    assert index.match(chain_bytes(b"x" * 640 + b"y" * 300, 5), lengths) == 10
    assert lengths.tolist() == [0, 0, 10]


N_TABLES = 9  # allocations of an index that is being made


@pytest.mark.parametrize("k", range(1, 60))
def test_failed_allocations_leave_the_index_right(k: int) -> None:
    print("seed", k)
    prefix._fail_allocation(k)
    try:
        index = PrefixIndex(1 << 20)
    except MemoryError:
        assert k <= N_TABLES
        return
    finally:
        if k <= N_TABLES:
            prefix._fail_allocation(0)
    assert k > N_TABLES
    model, rng = IndexModel(), random.Random(k)
    try:
        for _ in range(300):
            replica, chain = rng.randrange(20), random_chain(rng)
            index.insert(replica, q(chain))
            model.insert(replica, chain)
            lengths, _, _ = matched(index, chain, 20)
            assert lengths[replica] == len(chain)  # what was inserted last is there, whatever failed
            allowed, _ = model.match(chain, 20)
            assert all(got <= most for got, most in zip(lengths, allowed, strict=True))
    finally:
        prefix._fail_allocation(0)
    index._check()
    assert len(index) <= len(model)


def test_a_set_of_holders_that_cannot_be_had_leaves_the_newcomer_alone() -> None:
    index = PrefixIndex(MIN_BYTES)
    chain = [1, 2, 3]
    for replica in range(4):  # as many as fit into a set without an allocation
        index.insert(replica, q(chain))
    for replica in range(4, 20):
        prefix._fail_allocation(1)
        try:
            index.insert(replica, q(chain))
        finally:
            prefix._fail_allocation(0)
        index._check()
        assert matched(index, chain)[0][replica] == 3
    assert len(index) < 3 * 20


@pytest.mark.parametrize("seed", range(6))
def test_more_sets_of_holders_than_there_is_room_for(seed: int) -> None:
    """Every chunk held by replicas of its own: sets are emptied and swept, what was just inserted is there."""
    print("seed", seed)
    rng = random.Random(seed)
    index, model = PrefixIndex(MIN_BYTES), IndexModel()
    for step in range(4000):
        replica, chunk = rng.randrange(30), rng.randrange(1, 600)
        index.insert(replica, q([chunk]))
        model.insert(replica, [chunk])
        if rng.random() < 0.1:
            index.remove(replica, q([chunk]))
            model.remove(replica, [chunk])
        elif rng.random() < 0.01:
            index.drop(replica)
            model.drop(replica)
        else:
            assert matched(index, [chunk])[0][replica] == 1
        lengths, _, _ = matched(index, [chunk], 30)
        allowed, _ = model.match([chunk], 30)
        assert all(got <= most for got, most in zip(lengths, allowed, strict=True))
        assert index.nbytes <= MIN_BYTES
        if step % 200 == 0:
            index._check()
    index._check()


@pytest.mark.parametrize("seed", range(4))
def test_a_growing_index_agrees_with_the_naive_one(seed: int) -> None:
    """Segments split, the directory doubles, replicas come and go; nothing is lost on the way."""
    print("seed", seed)
    rng = random.Random(seed)
    index, model = PrefixIndex(4 << 20), IndexModel()
    chains = [[rng.getrandbits(64) for _ in range(rng.randrange(1, 80))] for _ in range(900)]
    for step in range(2500):
        replica, chain = rng.randrange(N_REPLICAS), rng.choice(chains)
        pick = rng.random()
        if pick < 0.9:
            part = chain[: rng.randrange(1, len(chain) + 1)]
            index.insert(replica, q(part))
            model.insert(replica, part)
        elif pick < 0.99:
            index.remove(replica, q(chain[rng.randrange(len(chain)) :]))
            model.remove(replica, chain)
            index.remove(replica, q(chain))
        else:
            index.drop(replica)
            model.drop(replica)
        if step % 10 == 0:
            other = rng.choice(chains)
            lengths, hits = model.match(other, N_REPLICAS)
            assert matched(index, other) == (lengths, hits, max(lengths))
    index._check()
    assert len(index) == len(model)
    assert index.evictions == 0
    assert index.n_chunks > 20_000


def test_hashes_that_all_lead_to_one_segment_stay_within_bounds() -> None:
    """Whoever knows how hashes are spread can fill one segment, and evicts only there."""
    index = PrefixIndex(2 << 20)
    index.insert(0, q(list(range(1, 2000))))
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def leading(chunk: int) -> int:
        product = ((chunk ^ 0xA0761D6478BD642F) & mask) * golden
        return ((product & mask) ^ (product >> 64)) >> 56

    alike = [chunk for chunk in range(10_000, 1_500_000) if leading(chunk) == 0x5A]
    assert len(alike) > 4000
    index.insert(1, q(alike))
    index._check()
    assert index.nbytes <= 2 << 20
    assert index.held_by(0) > 1900
    assert matched(index, alike[-10:])[1][1] == 10


@pytest.mark.parametrize("replica", [-1, 1 << 20, 10**30])
def test_replica_numbers_out_of_range_are_refused(replica: int) -> None:
    index = PrefixIndex(MIN_BYTES)
    for call in (
        lambda: index.insert(replica, q([1])),
        lambda: index.drop(replica),
        lambda: index.remove(replica, q([1])),
    ):
        with pytest.raises(ValueError, match="must be 0 to"):
            call()


def test_buffers_of_the_wrong_size_are_refused() -> None:
    index = PrefixIndex(MIN_BYTES)
    with pytest.raises(ValueError, match="chain must be items of 8 bytes"):
        index.insert(0, b"1234567")
    with pytest.raises(ValueError, match="chain must be items of 8 bytes"):
        index.insert(0, array("I", [1, 2]))
    with pytest.raises(ValueError, match="1 positions for 2 chunks"):
        index.insert(0, q([1, 2]), array("I", [1]))
    with pytest.raises(ValueError, match="lengths must be items of 4 bytes"):
        index.match(q([1]), array("Q", [0]))
    with pytest.raises(ValueError, match="hits has 1 items"):
        index.match(q([1]), array("I", [0, 0]), array("I", [0]))
    with pytest.raises((BufferError, ValueError)):
        index.match(q([1]), bytes(8))
    with pytest.raises(ValueError, match="max_bytes"):
        PrefixIndex(MIN_BYTES - 1)


def test_sizes_of_the_layout() -> None:
    assert prefix._entry_bytes() == 16
    assert PrefixIndex(64 << 20).max_replicas == 16_384
    assert PrefixIndex(64 << 20).nbytes < 1 << 20  # grows as it fills


def test_memory_per_entry_is_bounded_when_full() -> None:
    index = PrefixIndex(2 << 20)
    rng = random.Random(3)
    for _ in range(1200):
        index.insert(0, q([rng.getrandbits(64) for _ in range(64)]))
    assert index.evictions > 0
    assert index.nbytes / len(index) < 34


def test_chain_bytes_and_hash_bytes_are_the_chunk_hash() -> None:
    data, state, expected = bytes(range(256)) * 2 + b"tail", 77, []
    for at in range(0, len(data), 48):
        state = chunk_hash(state, data[at : at + 48], 6)
        expected.append(state)
    assert array("Q", chain_bytes(data, 77, 48)).tolist() == expected
    assert hash_bytes(b"model", 3) == chunk_hash(3, b"model", 0)
    assert chain_bytes(b"", 1) == b""
    with pytest.raises(ValueError, match="chunk_bytes"):
        chain_bytes(b"x", 1, 8)


def test_hashes_spread_and_flip() -> None:
    """Not a proof of quality: a mixing that loses bits or treats lanes alike would fail."""
    seen = {hash_bytes(i.to_bytes(4, "little") * 16) for i in range(50_000)}
    assert len(seen) == 50_000
    swapped = b"A" * 16 + b"B" * 16
    assert hash_bytes(swapped) != hash_bytes(swapped[16:] + swapped[:16])
    assert hash_bytes(b"\0" * 31) != hash_bytes(b"\0" * 32)
    flips = [(hash_bytes(bytes(64)) ^ hash_bytes((1 << bit).to_bytes(64, "little"))).bit_count() for bit in range(512)]
    assert 30 < sum(flips) / len(flips) < 34
    assert min(flips) > 12


def test_token_positions_run_through_what_is_known() -> None:
    ends = array("I", [10, 20, 40, 80]).tobytes()
    assert array("I", token_positions(ends, 40)).tolist() == [5, 10, 20, 40]
    assert array("I", token_positions(ends, 40, 2, 20)).tolist() == [10, 20, 26, 40]
    assert array("I", token_positions(ends, 5, 2, 20)).tolist() == [10, 20, 20, 20]  # never backwards
    assert array("I", token_positions(array("I", [0, 0]).tobytes(), 3)).tolist() == [3, 3]
    assert token_positions(b"", 3) == b""
    with pytest.raises(ValueError, match="chunks known"):
        token_positions(ends, 3, 5)

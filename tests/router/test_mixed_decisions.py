"""Groups in which some engines say what they hold and others do not, against the naive router."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from tests.model import scan_model
from tests.router.test_decisions import Pair, request
from xinf._fast.scan import scan
from xinf.core.records import RoutingPolicy
from xinf.router import ResidencyUpdate

BYTES_PER_TOKEN = 4


def position_of(end: int) -> int:
    """Where in tokens a chunk stands in a rendered prompt: behind a preamble of ten."""
    return 10 + end // BYTES_PER_TOKEN


class MixedPair(Pair):
    """Engines hold beginnings of prompts, one entry a block, as a shim says them."""

    def __init__(self, rng: random.Random, policy: RoutingPolicy) -> None:
        super().__init__(rng, policy)
        self.bodies: list[bytes] = []
        self.held: dict[str, dict[int, int]] = {}  # replica -> chunk -> position

    def begin_to_tell(self, name: str) -> None:
        self.held[name] = {}
        self.model.tell(self.rows[name], {}, [])
        self.router.on_residency(name, ResidencyUpdate(cleared=True, state="exact"))

    def remove(self, name: str) -> None:
        super().remove(name)
        self.held.pop(name, None)

    def tell(self, name: str) -> None:
        """The engine computes a beginning of a prompt, or evicts the ends of what it holds."""
        if not self.bodies:
            return
        rng, held, block = self.rng, self.held[name], self.model.ledger.replicas[self.rows[name]].block_tokens
        chain, ends = scan_model.chain_of(rng.choice(self.bodies), 5)
        entries, n_blocks = [], 0
        for chunk, end in zip(chain, ends, strict=True):
            position = position_of(end)
            if position // block > n_blocks:
                n_blocks = position // block
                entries.append((chunk, position))
        added: dict[int, int] = {}
        removed: list[int] = []
        if rng.random() < 0.7:
            added = dict(entries[: rng.randrange(len(entries) + 1)])
        else:
            kept = max(held.values(), default=0) * rng.random()
            removed = [chunk for chunk, position in held.items() if position > kept]
        self.held[name] = {chunk: at for chunk, at in (held | added).items() if chunk not in removed}
        self.model.tell(self.rows[name], added, removed)
        self.router.on_residency(
            name,
            ResidencyUpdate(
                added=array("Q", added).tobytes(),
                tokens=array("I", added.values()).tobytes(),
                removed=array("Q", removed).tobytes(),
            ),
        )

    def make_request(self) -> bytes:
        self.bodies.append(request(self.rng, self.dialogues))
        return self.bodies[-1]

    def finish(self) -> None:
        """With the tokens that positions are made of, so that what is learnt of the text stays near them."""
        choice, twin = self.open.pop(self.rng.randrange(len(self.open)))
        prompt_tokens = self.rng.choice([0, position_of(twin.ends[-1]) if twin.ends else 9])
        cached = min(choice.predicted_cached_tokens, prompt_tokens)  # else it would not be believed any more
        completion, is_ok = self.rng.choice([0, 1, 50]), self.rng.random() < 0.7
        self.router.finished(
            choice, prompt_tokens=prompt_tokens, cached_tokens=cached, completion_tokens=completion, is_ok=is_ok
        )
        self.model.finish(twin, prompt_tokens, cached, completion, is_ok, self.clock.monotonic_s())

    def check(self) -> None:
        super().check()
        views = {view.replica_id: view for view in self.router.snapshot().replicas}
        for name, held in self.held.items():
            assert views[name].told_chunks == len(held)
            assert views[name].index_state == "exact"


@pytest.mark.parametrize("policy", [RoutingPolicy.AUTO, RoutingPolicy.PREFIX])
@pytest.mark.parametrize("n_told", [5, 2])
@pytest.mark.parametrize("seed", range(12))
def test_mixed_groups_agree_with_the_naive_router(policy: RoutingPolicy, n_told: int, seed: int) -> None:
    print("seed", seed, policy, n_told)
    pair = MixedPair(random.Random(seed), policy)
    names = [f"r{i}" for i in range(5)]
    for name in names:
        pair.add(name)
    for name in names[:n_told]:
        pair.begin_to_tell(name)
    for step in range(150):
        pair.clock.advance(pair.rng.choice([0.0, 0.01, 0.3]))
        pick = pair.rng.random()
        if pick < 0.3:
            pair.choose()
        elif pick < 0.6:
            pair.tell(pair.rng.choice(names[:n_told]))
        elif pick < 0.65:
            pair.report(pair.rng.choice(names))
        elif pick < 0.66:
            name = pair.rng.choice(names[:n_told])
            pair.remove(name)
            pair.add(name)
            pair.begin_to_tell(name)
        elif pair.open:
            pair.rng.choice([pair.submit, pair.start, pair.finish, pair.finish])()
        if step % 40 == 0:
            pair.check()
    pair.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_long_prompt_is_found_to_the_block(seed: int) -> None:
    """Chains that are too long to be looked at whole; each replica holds another beginning."""
    rng = random.Random(seed)
    pair = MixedPair(rng, RoutingPolicy.AUTO)
    words = [f"{rng.randrange(10**9)}" for _ in range(rng.choice([3000, 9000]))]
    messages = []
    while words:
        n = rng.choice([3, 40, 2500])
        messages.append({"role": "user", "content": " ".join(words[:n])})
        words = words[n:]
    body = orjson.dumps({"messages": messages})
    chain, ends = scan_model.chain_of(body, 5)
    expected = {}
    block = rng.choice([16, 32, 128])
    for i in range(12):
        name = f"r{i}"
        pair.router.set_replica(name, model="m", policy=RoutingPolicy.AUTO, block_tokens=block, is_ready=True)
        n_held, n_blocks, added = rng.choice([0, len(chain), rng.randrange(len(chain))]), 0, {}
        for chunk, end in zip(chain[:n_held], ends, strict=False):
            if position_of(end) // block > n_blocks:
                n_blocks = position_of(end) // block
                added[chunk] = position_of(end)
        pair.router.on_residency(
            name,
            ResidencyUpdate(
                cleared=True, added=array("Q", added).tobytes(), tokens=array("I", added.values()).tobytes()
            ),
        )
        expected[name] = min(max(added.values(), default=0), position_of(ends[-1]) - 1) // block * block
    found = {view.replica_id: view.predicted_cached_tokens for view in pair.router.explain("m", scan(body), seed=5)}
    assert found == expected

"""Routing workloads share what they promise: measured on their text, by the engine's own block hashes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xinf.bench.fleet import ENGINE, FleetSettings
from xinf.bench.prompt_text import render
from xinf.bench.route_document import RouteSettings
from xinf.bench.route_plan import RouteLoad
from xinf.bench.route_session import Message, RouteSession, RouteWorkload, Step
from xinf.bench.route_workload import RouteKind, RouteWorkloadSettings, make_route_workload
from xinf.bench.working_set import measure, size_pool
from xinf.chat import ChatMl
from xinf.core.errors import InvalidRequest
from xinf.sim import SimSequence, TextSource

FLEET = FleetSettings(n_replicas=4)
MADE_UP = [kind for kind in RouteKind if kind is not RouteKind.TRACE]
TEXT = TextSource(0)


def workload_of(kind: RouteKind, seed: int = 1, scale: float = 1.0) -> RouteWorkload:
    return make_route_workload(RouteWorkloadSettings(kind=kind, scale=scale), seed)


def prompts_of(session: RouteSession) -> Iterator[tuple[int, bytes]]:
    """Each step's prompt, with the answers that the simulated engine gives."""
    answers: dict[int, str] = {}
    for number, step in enumerate(session.steps):
        prompt = render(session.history(number, answers), session.tools)
        answers[number] = TEXT.answer(prompt, step.max_tokens).decode()
        yield number, prompt


def n_shared(a: bytes, b: bytes) -> int:
    """Tokens of the blocks that two prompts begin with alike."""
    hashes = [SimSequence(prompt, b"", arrived_s=0.0).hashes(16) for prompt in (a, b)]
    n = 0
    for one, other in zip(*hashes, strict=False):
        if one != other:
            break
        n += 16
    return n


def first_prompts(kind: RouteKind, n: int) -> list[bytes]:
    workload = workload_of(kind)
    return [next(prompts_of(workload.session(number)))[1] for number in range(n)]


@pytest.mark.parametrize("kind", MADE_UP)
def test_the_same_seed_and_number_give_the_same_session(kind: RouteKind) -> None:
    one, other = workload_of(kind), workload_of(kind)
    other.session(3)  # what was asked before makes no difference
    assert one.session(7) == other.session(7)
    assert workload_of(kind, seed=2).session(7) != one.session(7)
    assert one.session(8) != one.session(7)


@pytest.mark.parametrize("kind", MADE_UP)
def test_steps_follow_earlier_ones_and_their_prompts_go_on_from_them(kind: RouteKind) -> None:
    for number in range(20):
        session = workload_of(kind).session(number)
        prompts = dict(prompts_of(session))
        assert session.steps[0].follows is None
        for at, step in enumerate(session.steps):
            if step.follows is None:
                continue
            assert step.follows < at
            before = prompts[step.follows]
            answer = TEXT.answer(before, session.steps[step.follows].max_tokens)
            assert prompts[at].startswith(before + answer)


def test_chat_shares_the_system_prompt_of_a_tenant_and_its_own_past() -> None:
    prompts = first_prompts(RouteKind.CHAT, 300)
    shared = [n_shared(prompts[0], other) for other in prompts[1:]]
    # 512 words are 512 tokens; who has another tenant shares less than a block more than the template.
    assert {n >= 496 for n in shared} == {True, False}
    assert all(n >= 496 or n <= 16 for n in shared)
    assert 1 / 32 < sum(n >= 496 for n in shared) / len(shared) < 1 / 8  # of 16 tenants


def test_hot_prefix_is_that_of_four_in_five() -> None:
    prompts = first_prompts(RouteKind.HOT_PREFIX, 300)
    words = [prompt[40:2000] for prompt in prompts]
    hot = max(set(words), key=words.count)
    assert words.count(hot) / len(words) == pytest.approx(0.8, abs=0.08)
    assert len(set(words)) == 1 + len(words) - words.count(hot)
    first, second, *_ = [prompt for prompt, word in zip(prompts, words, strict=True) if word == hot]
    assert 2048 - 16 <= n_shared(first, second) <= 2048 + 32


def test_documents_are_read_by_rank() -> None:
    starts = [prompt[30:300] for prompt in first_prompts(RouteKind.DOCUMENTS, 400)]
    counts = sorted((starts.count(start) for start in set(starts)), reverse=True)
    # The first of 1,024 with weights 1/n has 1 / H(1024) = 13 % of the readers.
    assert counts[0] / len(starts) == pytest.approx(0.13, abs=0.05)
    assert counts[0] > 1.2 * counts[2]
    assert counts.count(1) > 50


def test_agents_branch_from_one_history_and_share_their_tools() -> None:
    workload = workload_of(RouteKind.AGENTS)
    for number in range(10):
        session = workload.session(number)
        prompts = dict(prompts_of(session))
        forks = [at for at in prompts if len(session.followers(at)) > 1]
        assert len(forks) == 1
        one, other, *_ = session.followers(forks[0])
        common = prompts[forks[0]] + TEXT.answer(prompts[forks[0]], session.steps[forks[0]].max_tokens)
        assert n_shared(prompts[one], prompts[other]) == pytest.approx(len(common) / 4, abs=16)
    assert len({workload.session(number).tools for number in range(40)}) == 4


def test_random_prompts_share_nothing() -> None:
    sizes = measure(workload_of(RouteKind.RANDOM), n_requests=200, fleet=FLEET)
    # A block at the end of each that is not full is in no working set.
    assert sizes.shared_share < 0.02
    prompts = first_prompts(RouteKind.RANDOM, 30)
    assert max(n_shared(prompts[0], other) for other in prompts[1:]) <= 16


def test_scale_makes_prompts_longer_and_not_answers() -> None:
    one, other = (measure(workload_of(RouteKind.CHAT, scale=s), n_requests=100, fleet=FLEET) for s in (1.0, 2.0))
    assert one.answer_tokens == other.answer_tokens
    # Answers are part of later prompts, so not twice.
    assert 1.5 < other.prompt_tokens / one.prompt_tokens < 2.0


def test_prompts_are_rendered_as_the_engine_renders_them() -> None:
    session = workload_of(RouteKind.AGENTS).session(0)
    messages = [*session.history(0, {}), Message("assistant", 'ü "q"'), Message("tool", "found\n")]
    import msgspec

    as_sent = msgspec.json.decode(msgspec.json.encode(messages))
    tools = msgspec.json.decode(session.tools or b"")
    assert render(messages, session.tools) == ChatMl().render(as_sent, tools=tools).encode()
    assert render(messages, None) == ChatMl().render(as_sent).encode()


class Repeated:
    """Sessions of one request, of which each prompt comes `times` times."""

    n_sessions: int | None = None

    def __init__(self, times: int) -> None:
        self._times = times
        self._random = workload_of(RouteKind.RANDOM)

    def session(self, number: int) -> RouteSession:
        return self._random.session(number // self._times)

    def at_s(self, number: int) -> float | None:
        return None


def test_working_set_counts_each_block_once() -> None:
    once = measure(Repeated(1), n_requests=50, fleet=FLEET)
    twice = measure(Repeated(2), n_requests=100, fleet=FLEET)
    assert once.n_blocks == twice.n_blocks
    assert twice.prompt_tokens == 2 * once.prompt_tokens
    assert twice.shared_share == pytest.approx(0.5, abs=0.01)


def test_working_set_is_sampled_beyond_a_bound() -> None:
    exact = measure(Repeated(1), n_requests=200, fleet=FLEET)
    sampled = measure(Repeated(1), n_requests=200, fleet=FLEET, max_sample=2000)
    assert exact.n_blocks > 10_000
    assert sampled.n_blocks != exact.n_blocks
    assert sampled.n_blocks == pytest.approx(exact.n_blocks, rel=0.1)


def test_pools_are_percent_of_the_working_set_over_all_replicas() -> None:
    sizes = measure(workload_of(RouteKind.CHAT), n_requests=400, fleet=FLEET)
    half, more = (size_pool(sizes, pool_pct, 4) for pool_pct in (50, 150))
    assert half.kv_blocks * 4 == pytest.approx(sizes.n_blocks * 0.5, abs=4)
    assert more.kv_blocks == pytest.approx(3 * half.kv_blocks, abs=4)
    assert not half.is_raised
    # One that could not take the longest request is as large as that needs.
    tiny = size_pool(sizes, 0.001, 4)
    assert tiny.is_raised
    assert tiny.kv_blocks == -(-sizes.longest_tokens // ENGINE.block_tokens)


@pytest.mark.parametrize("pool_pct", [0.0, -7.0, float("nan"), float("inf")])
def test_a_pool_of_nothing_is_refused(pool_pct: float) -> None:
    with pytest.raises(InvalidRequest, match=r"holds nothing.*--pool 7,50,150"):
        RouteSettings(
            workloads=(RouteWorkloadSettings(kind=RouteKind.CHAT),),
            policies=("auto",),
            load=RouteLoad(rate=1.0, n_requests=1),
            fleet=FLEET,
            is_simulated=True,
            pools_pct=(7.0, pool_pct),
        )


def test_session_knows_what_waits_for_a_step() -> None:
    step = Step((Message("user", "a"),), 1)
    session = RouteSession(
        (step, Step((), 1, follows=0), Step((), 1, follows=1), Step((), 1, follows=1), Step((), 1, follows=0), step)
    )
    assert session.roots() == [0, 5]
    assert session.followers(1) == [2, 3]
    assert [session.below(number) for number in range(6)] == [4, 2, 0, 0, 0, 0]

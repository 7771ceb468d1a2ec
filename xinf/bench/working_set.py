"""How large a workload is: its requests walked through once with the simulated engine's own tokenizer and answers.

The working set is the distinct full blocks of all prompts, which is what a cache would need to hold so that nothing is
computed twice. Very many blocks are counted by a sample: those whose hash ends in so many zero bits, as many bits as
keep the sample below a million; the error is then about 0.1 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xinf.bench.fleet import FleetSettings
from xinf.bench.prompt_text import render
from xinf.bench.route_session import RouteSession, RouteWorkload
from xinf.sim import SimSequence, TextSource

_MAX_SAMPLE = 1 << 20


class WorkingSet(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a workload's first sessions. Token counts are of the simulated engine's tokenizer."""

    n_sessions: int
    n_requests: int
    prompt_tokens: int
    answer_tokens: int
    longest_tokens: int  # of a prompt with its answer
    block_tokens: int
    n_blocks: int  # distinct, full, of prompts

    @property
    def shared_share(self) -> float:
        """The share of prompt tokens that an earlier prompt has at the same place, behind the same text.

        A cache without bounds finds these, and answers that come back in prompts for the first time.
        """
        return max(0.0, 1.0 - self.n_blocks * self.block_tokens / self.prompt_tokens)


class _DistinctCount:
    """Counts distinct 64-bit hashes in bounded memory (adaptive sampling, after Wegman)."""

    def __init__(self, max_kept: int) -> None:
        self._kept: set[int] = set()
        self._mask = 0
        self._max_kept = max_kept

    def add(self, hashes: Sequence[int]) -> None:
        mask = self._mask
        self._kept.update([one for one in hashes if not one & mask] if mask else hashes)
        while len(self._kept) > self._max_kept:
            self._mask = self._mask << 1 | 1
            self._kept = {one for one in self._kept if not one & self._mask}

    @property
    def estimate(self) -> int:
        return len(self._kept) * (self._mask + 1)


def measure(
    workload: RouteWorkload, *, n_requests: int, fleet: FleetSettings, max_sample: int = _MAX_SAMPLE
) -> WorkingSet:
    """Walk through sessions until they have `n_requests` or end."""
    text = TextSource(fleet.engine.seed)
    block_tokens = fleet.engine.block_tokens
    blocks = _DistinctCount(max_sample)
    n_sessions = n_sent = n_prompt = n_answer = longest = 0
    while n_sent < n_requests and (workload.n_sessions is None or n_sessions < workload.n_sessions):
        session = workload.session(n_sessions)
        for prompt, max_tokens in _walk(session, text):
            sequence = SimSequence(prompt, b"", arrived_s=0.0)
            blocks.add(sequence.hashes(block_tokens)[: sequence.n_prompt // block_tokens])
            n_prompt += sequence.n_prompt
            n_answer += max_tokens
            longest = max(longest, sequence.n_prompt + max_tokens)
        n_sent += len(session.steps)
        n_sessions += 1
    return WorkingSet(
        n_sessions=n_sessions,
        n_requests=n_sent,
        prompt_tokens=n_prompt,
        answer_tokens=n_answer,
        longest_tokens=longest,
        block_tokens=block_tokens,
        n_blocks=blocks.estimate,
    )


def _walk(session: RouteSession, text: TextSource) -> list[tuple[bytes, int]]:
    """Give each request's prompt and the length of its answer, as the engine would write it."""
    answers: dict[int, str] = {}
    found = []
    for number, step in enumerate(session.steps):
        prompt = render(session.history(number, answers), session.tools)
        answers[number] = text.answer(prompt, step.max_tokens).decode()
        found.append((prompt, step.max_tokens))
    return found


class Pool(msgspec.Struct, frozen=True):
    """The KV of one replica. `is_raised`: it is more than was asked for, as the longest request needs it."""

    kv_blocks: int
    is_raised: bool


def size_pool(working_set: WorkingSet, pool_pct: float, n_replicas: int) -> Pool:
    """Size one replica's KV pool, so that all together hold this percentage of the working set.

    Never less than the longest request needs, or the engine would refuse it.
    """
    wanted = round(working_set.n_blocks * pool_pct / 100 / n_replicas)
    least = -(-working_set.longest_tokens // working_set.block_tokens)
    return Pool(max(wanted, least), is_raised=wanted < least)

"""Simulated engines behind a real router, in virtual time: who got what, and how long the first token took."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from xinf._fast.scan import scan
from xinf.core.clock import FakeClock
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, LoadView, Router, RouterSettings
from xinf.sim.engine import SimEngine
from xinf.sim.sequence import SimSequence
from xinf.sim.settings import SimSettings

MODEL = "m"
N_WARM_UP = 100


@dataclass
class Outcome:
    ttft_s: list[float] = field(default_factory=list)
    by_replica: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens

    @property
    def imbalance(self) -> float:
        """Most requests on one replica, as a multiple of the mean."""
        return max(self.by_replica.values()) * len(self.by_replica) / self.by_replica.total()

    @property
    def warm_ttft_s(self) -> list[float]:
        """Without the first requests, which find empty caches whatever the policy."""
        return sorted(self.ttft_s[N_WARM_UP:])

    def ttft_pct(self, pct: float) -> float:
        return self.warm_ttft_s[int(len(self.warm_ttft_s) * pct / 100)]

    @property
    def ttft_mean_s(self) -> float:
        return sum(self.warm_ttft_s) / len(self.warm_ttft_s)


class Fleet:
    """Engines that report their load after each step, as a shim does."""

    def __init__(self, policy: RoutingPolicy, settings: SimSettings, n_engines: int) -> None:
        self.clock = FakeClock(1000.0)
        self.router = Router(RouterSettings(), clock=self.clock, turn=0)
        self.engines = {f"r{i}": SimEngine(settings) for i in range(n_engines)}
        self.last_submit = dict.fromkeys(self.engines, 0)
        self.outcome = Outcome()
        self.policy = policy
        for name in self.engines:
            self.enter(name, settings)

    def enter(self, name: str, settings: SimSettings) -> None:
        self.router.set_replica(
            name,
            model=MODEL,
            policy=self.policy,
            block_tokens=settings.block_tokens,
            is_ready=True,
            max_running=settings.max_running,
        )

    def add(self, name: str, settings: SimSettings) -> None:
        """An engine that is new, with an empty cache."""
        self.engines[name] = SimEngine(settings)
        self.last_submit[name] = 0
        self.enter(name, settings)

    def run(
        self,
        *,
        n_requests: int,
        per_s: float,
        make_prompt: Callable[[random.Random], str],
        n_answer: int,
        seed: int,
        until_s: float | None = None,
    ) -> Outcome:
        """Open loop: Poisson arrivals, whatever the engines manage. `until_s`: stop then, with what is in flight."""
        rng = random.Random(seed)
        arrival_s, left = self.clock.now_s(), n_requests
        while left or any(engine.due_s() is not None for engine in self.engines.values()):
            due = {name: engine.due_s() for name, engine in self.engines.items()}
            first = min((at, name) for name, at in due.items() if at is not None) if any(due.values()) else None
            if left and (first is None or arrival_s <= first[0]):
                self.clock.advance(arrival_s - self.clock.now_s())
                self.submit(make_prompt(rng), n_answer)
                left -= 1
                if until_s is not None and self.clock.now_s() > until_s:
                    return self.outcome
                arrival_s += rng.expovariate(per_s)
            else:
                assert first is not None
                self.clock.advance(first[0] - self.clock.now_s())
                self.step(first[1])
        return self.outcome

    def submit(self, prompt: str, n_answer: int) -> None:
        choice = self.router.choose(MODEL, scan(orjson.dumps({"prompt": prompt, "stream": True})), seed=1)
        assert choice is not None
        name = choice.replica_id
        sequence = SimSequence(prompt.encode(), b"x" * 4 * n_answer, arrived_s=self.clock.now_s(), owner=choice)
        self.engines[name].submit(sequence, self.clock.now_s())
        self.last_submit[name] += 1
        self.router.submitted(choice, self.last_submit[name])
        self.outcome.by_replica[name] += 1
        self.report(name)

    def step(self, name: str) -> None:
        for sequence in self.engines[name].run_step():
            choice = sequence.owner
            assert isinstance(choice, Choice)
            self.router.started(choice)
            if sequence.is_done:
                assert sequence.first_token_s is not None
                self.outcome.ttft_s.append(sequence.first_token_s - sequence.arrived_s)
                self.outcome.prompt_tokens += sequence.n_prompt
                self.outcome.cached_tokens += sequence.cached_tokens
                self.router.finished(
                    choice,
                    prompt_tokens=sequence.n_prompt,
                    cached_tokens=sequence.cached_tokens,
                    completion_tokens=sequence.n_generated,
                    is_ok=True,
                )
        self.report(name)

    def report(self, name: str) -> None:
        load = self.engines[name].load()
        self.router.on_load(
            name,
            LoadView(
                running=load.running,
                waiting=load.waiting,
                queued_prefill_tokens=load.queued_prefill_tokens,
                kv_blocks_used=load.kv_blocks_used,
                kv_blocks_total=load.kv_blocks_total,
                last_submit=self.last_submit[name],
            ),
        )

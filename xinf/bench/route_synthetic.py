"""Made-up workloads: what they share, and with whom, is in each class's docstring. Lengths are in words (see words.py).

Sizes are of the order that the field reports for such traffic, small enough that eight simulated engines on a laptop
are under real pressure; `scale` makes prompts longer or shorter.
"""

from __future__ import annotations

import bisect
import itertools
import random
from functools import lru_cache

import msgspec

from xinf.bench.route_session import Message, RouteSession, Step
from xinf.bench.words import Words

_KEPT_TEXTS = 1024


class _Synthetic:
    """Text and draws by name. `scale`: of prompts, not of answers."""

    n_sessions: int | None = None

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._seed = seed
        self._scale = scale
        self._words = Words(seed)
        # What many sessions share is written once.
        self._shared = lru_cache(_KEPT_TEXTS)(self._text)

    def at_s(self, number: int) -> float | None:  # noqa: ARG002
        return None

    def _draw(self, number: int) -> random.Random:
        return random.Random(f"{type(self).__name__} {number} {self._seed}")

    def _text(self, name: str, n_words: int) -> str:
        return self._words.text(name, max(1, round(n_words * self._scale)))


class Chat(_Synthetic):
    """Conversations of 3 to 7 turns. Those of one of 16 tenants begin with the same system prompt of 512 words; each
    goes on with its own questions of 32 to 192 words and the answers of 32 to 96 tokens to them. Users think for 1 s.
    """

    n_tenants = 16
    system_words = 512
    think_s = 1.0

    def session(self, number: int) -> RouteSession:
        draw = self._draw(number)
        tenant = draw.randrange(self.n_tenants)
        steps = []
        for turn in range(draw.randint(3, 7)):
            question = Message("user", self._text(f"{number}.{turn}", draw.randint(32, 192)))
            system = Message("system", self._shared(f"tenant {tenant}", self.system_words))
            steps.append(
                Step(
                    messages=(question,) if turn else (system, question),
                    max_tokens=draw.randint(32, 96),
                    follows=turn - 1 if turn else None,
                    pause_s=draw.expovariate(1 / self.think_s),
                )
            )
        return RouteSession(tuple(steps), name=f"chat-{self._seed}-{number}")


class HotPrefix(_Synthetic):
    """Single requests. Four in five begin with one and the same 2,048 words, the others with 2,048 of their own; each
    asks 32 to 96 words more and gets 32 to 96 tokens.
    """

    hot_share = 0.8
    prefix_words = 2048

    def session(self, number: int) -> RouteSession:
        draw = self._draw(number)
        is_hot = draw.random() < self.hot_share
        prefix = self._shared("hot", self.prefix_words) if is_hot else self._text(f"own {number}", self.prefix_words)
        question = Message("user", self._text(f"{number}", draw.randint(32, 96)))
        return RouteSession((Step((Message("system", prefix), question), draw.randint(32, 96)),))


class Documents(_Synthetic):
    """Questions to one of 1,024 documents of 2,048 to 6,144 words, the n-th most read in proportion to 1/n. A reader
    asks 1 to 5 questions of 16 to 48 words, one after another in one conversation, and gets 32 to 96 tokens each.
    """

    n_documents = 1024
    read_s = 1.0

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__(seed, scale)
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, self.n_documents + 1)))

    def session(self, number: int) -> RouteSession:
        draw = self._draw(number)
        document = bisect.bisect(self._weights, draw.random() * self._weights[-1])
        n_words = random.Random(f"document {document} {self._seed}").randint(2048, 6144)
        text = Message("system", self._shared(f"document {document}", n_words))
        steps = []
        for turn in range(draw.randint(1, 5)):
            question = Message("user", self._text(f"{number}.{turn}", draw.randint(16, 48)))
            steps.append(
                Step(
                    messages=(question,) if turn else (text, question),
                    max_tokens=draw.randint(32, 96),
                    follows=turn - 1 if turn else None,
                    pause_s=draw.expovariate(1 / self.read_s),
                )
            )
        return RouteSession(tuple(steps), name=f"reader-{self._seed}-{number}")


class Agents(_Synthetic):
    """Agents with histories that branch. All of one of 4 kinds have the same system prompt of 256 words and the same
    tools (about 600 words of JSON). A task of 64 to 256 words leads to 2 or 3 calls of tools, whose results of 64 to
    384 words come back within 0.3 s; then 2 to 4 branches go on from there at once, each with 1 to 3 calls more.
    """

    n_kinds = 4
    system_words = 256
    n_tools = 8
    tool_s = 0.3

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__(seed, scale)
        self._tools = [self._make_tools(kind) for kind in range(self.n_kinds)]

    def session(self, number: int) -> RouteSession:
        draw = self._draw(number)
        kind = draw.randrange(self.n_kinds)
        system = Message("system", self._shared(f"agent {kind}", self.system_words))
        task = Message("user", self._text(f"{number}", draw.randint(64, 256)))
        steps = [Step((system, task), draw.randint(16, 64))]
        for _ in range(draw.randint(2, 3)):
            steps.append(self._call(draw, number, follows=len(steps) - 1, n_steps=len(steps)))
        trunk = len(steps) - 1
        for _ in range(draw.randint(2, 4)):
            follows = trunk
            for _ in range(draw.randint(1, 3)):
                steps.append(self._call(draw, number, follows=follows, n_steps=len(steps)))
                follows = len(steps) - 1
        return RouteSession(tuple(steps), name=f"agent-{self._seed}-{number}", tools=self._tools[kind])

    def _call(self, draw: random.Random, number: int, *, follows: int, n_steps: int) -> Step:
        text = self._text(f"{number}.{n_steps}", draw.randint(64, 384))
        result = Message("tool", text, tool_call_id=f"call_{n_steps}")
        return Step((result,), draw.randint(16, 64), follows=follows, pause_s=draw.uniform(0.0, self.tool_s))

    def _make_tools(self, kind: int) -> bytes:
        tools = [
            {
                "type": "function",
                "function": {
                    "name": f"tool_{kind}_{tool}",
                    "description": self._text(f"tool {kind}.{tool}", 48),
                    "parameters": {
                        "type": "object",
                        "properties": {"what": {"type": "string", "description": self._text(f"what {kind}.{tool}", 8)}},
                        "required": ["what"],
                    },
                },
            }
            for tool in range(self.n_tools)
        ]
        return msgspec.json.encode(tools)


class RandomPrompts(_Synthetic):
    """Single requests of 512 to 1,536 words that share nothing; answers have 32 to 96 tokens."""

    def session(self, number: int) -> RouteSession:
        draw = self._draw(number)
        prompt = Message("user", self._text(f"{number}", draw.randint(512, 1536)))
        return RouteSession((Step((prompt,), draw.randint(32, 96)),))

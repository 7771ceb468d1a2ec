"""A simulated engine as a pure model: block cache, batching, timing and text; no asyncio, no I/O, no clock of its own.

Owns what the sim adapter and the benchmarks run: `SimEngine` is told the time and says when its next step is due;
`Timeline` plays arrivals against it in virtual time. Knows nothing of HTTP, JSON or gRPC.

Invariants: the same settings and the same sequence of calls give the same result, token by token; every KV block is
exactly one of blank, private to a sequence, or cached under its hash with a count of its users; `cached_tokens` is what
the cache really held when the request was admitted.
"""

from xinf.sim.cache import BlockCache
from xinf.sim.engine import SimEngine, SimLoad
from xinf.sim.sequence import SimSequence
from xinf.sim.settings import SimSettings
from xinf.sim.text import BYTES_PER_TOKEN, TextSource, count_tokens
from xinf.sim.timeline import Timeline

__all__ = [
    "BYTES_PER_TOKEN",
    "BlockCache",
    "SimEngine",
    "SimLoad",
    "SimSequence",
    "SimSettings",
    "TextSource",
    "Timeline",
    "count_tokens",
]

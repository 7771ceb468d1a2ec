"""What takes part in a comparison: a gateway on its own core in front of simulated engines."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Protocol

import msgspec

from benchmarks.cpu import rss_bytes
from benchmarks.engines import Profile


class Family(enum.Enum):
    """What a contestant is compared as."""

    XINF = "xinf"
    CACHE_AWARE = "cache-aware Rust router"
    ROUND_ROBIN = "round-robin Rust router"
    PROXY = "general proxy"
    NAIVE = "naive Python proxy"
    FLOOR = "floor: no proxying at all"
    NONE = "no gateway"


class Engines(Protocol):
    """Engines on plain HTTP."""

    @property
    def urls(self) -> tuple[str, ...]: ...

    def pids(self) -> tuple[int, ...]: ...


class Site(msgspec.Struct, frozen=True):
    """Where a contestant runs: its own directory, and the HTTP engines of all peers."""

    directory: Path
    engines: Engines
    profile: Profile


class Contestant(Protocol):
    """One gateway in one mode. `start` returns when a request through it was answered; `close` ends all it started."""

    name: str
    family: Family
    settings: str  # what was set and why, for the report

    @property
    def ports(self) -> tuple[int, ...]: ...  # connections are dealt over them

    def version(self) -> str: ...

    def start(self, site: Site) -> None: ...

    def gateway_pids(self) -> tuple[int, ...]: ...

    def engine_pids(self) -> tuple[int, ...]: ...

    def close(self) -> None: ...


def gateway_rss_bytes(contestant: Contestant) -> int:
    """Resident memory of the gateway now."""
    return rss_bytes(contestant.gateway_pids())


def trial_body(model: str) -> bytes:
    """The request that a contestant must answer before it counts as started."""
    return b'{"model":"%s","messages":[{"role":"user","content":"are you there"}],"max_tokens":1}' % model.encode()

"""What the masters of all fronts have in common: how many workers, what these inherit, when a dead one is replaced."""

from __future__ import annotations

import os
import resource
import signal

from xinf.core.config import Config, to_environ

# Connections per worker, idle ones too: far above what is served at once, because an idle one is cheap.
MAX_CONNECTIONS = 65536
HEADER_TIMEOUT_S = 15
KILL_AFTER_DRAIN_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 10.0
STEADY_S = 10.0  # a worker that lived this long starts with the first back-off again
# Workers start with these blocked and lift the mask when they serve: what comes before waits for them.
HELD_BACK = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


class Backoff:
    """When the next worker takes a dead one's place: at once after a steady life, else later and later, for ever."""

    def __init__(self) -> None:
        self._last_s = 0.0

    def next_s(self, lived_s: float) -> float:
        """Seconds to wait after a worker that lived this long."""
        self._last_s = 0.0 if lived_s > STEADY_S else min(max(self._last_s * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S)
        return self._last_s


def worker_count(configured: int) -> int:
    """How many workers: as configured; 0 is one per two cores, at least one."""
    return configured or max(1, len(os.sched_getaffinity(0)) // 2)


def prepare(config: Config, meta_target: str) -> None:
    """Set what workers inherit: the environment that they read, and as many files as they have connections."""
    os.environ["XINF_EFFECTIVE_CONFIG"] = to_environ(config)
    os.environ["XINF_META_TARGET"] = meta_target
    os.environ["XINF_GATEWAY_MASTER"] = str(os.getpid())
    # Connections are files; the soft limit is often 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS * 2 if hard == resource.RLIM_INFINITY else min(hard, MAX_CONNECTIONS * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

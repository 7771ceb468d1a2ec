"""The machine and the programs that a result was made with."""

from __future__ import annotations

import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path

import msgspec

import xinf

_PACKAGES = ("uvloop", "httptools", "msgspec")
_SPARE_FILES = 64


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Of the load generator; the server may be elsewhere."""

    cpu: str
    n_cpus: int  # that this process may use
    kernel: str
    machine: str
    versions: dict[str, str]


def describe_host() -> Host:
    """Read what this machine is."""
    n_cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    versions = {"xinf": xinf.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    return Host(
        cpu=_cpu_name(), n_cpus=n_cpus, kernel=platform.release(), machine=platform.machine(), versions=versions
    )


def allow_files(n: int) -> int:
    """Raise the soft limit of open files for `n` connections as far as it goes; give how many are possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return n if soft == resource.RLIM_INFINITY else max(1, min(n, soft - _SPARE_FILES))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""The machine's own memory: a processor's, and of GPUs that have none of their own."""

from __future__ import annotations

from pathlib import Path

import msgspec


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says of the whole machine; None where there is no /proc/meminfo (macOS)."""

    total_bytes: int | None = None
    available_bytes: int | None = None  # what can be had without swapping


def read_host_memory(root: Path = Path("/")) -> HostMemory:
    """Read /proc/meminfo."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return HostMemory()
    found: dict[str, int] = {}
    for line in lines:
        key, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return HostMemory(total_bytes=found.get("MemTotal"), available_bytes=found.get("MemAvailable"))

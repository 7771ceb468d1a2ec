"""What macOS's own tools print of the GPU and the memory it shares with the processor.

system_profiler SPDisplaysDataType -json    {"SPDisplaysDataType": [{"sppci_model": "Apple M3 Pro", ...}]}
sysctl -n hw.memsize                        bytes
ioreg -r -d 1 -w 0 -c IOAccelerator         "PerformanceStatistics" = {"Device Utilization %"=3,...}
ioreg -r -d 1 -w 0 -c IOPlatformExpertDevice   "IOPlatformUUID" = "..."
vm_stat                                     Pages free:       12345.
"""

from __future__ import annotations

import json
import re

import msgspec

from xinf.device.tool import FormatError

PROFILER = ("system_profiler", "SPDisplaysDataType", "-json")
MEMORY_SIZE = ("sysctl", "-n", "hw.memsize")
ACCELERATOR = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
PLATFORM = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOPlatformExpertDevice")
MEMORY = ("vm_stat",)
_STATISTICS = re.compile(r'"PerformanceStatistics" = \{(.*)\}')
_UUID = re.compile(r'"IOPlatformUUID" = "([0-9A-Fa-f-]{36})"')
_PAGE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r"Pages (free|inactive|speculative|purgeable):\s+(\d+)\.")


class ProfilerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What system_profiler says of the GPU."""

    name: str
    n_cores: int | None
    metal: str | None  # "Metal 3"


class AcceleratorReading(msgspec.Struct, frozen=True, kw_only=True):
    """What the GPU is doing; None: it does not say."""

    util_pct: float | None
    memory_used_bytes: int | None


def parse_profiler(text: str) -> ProfilerFacts:
    """Read the first GPU of Apple's. Raises: FormatError."""
    try:
        content = json.loads(text)
    except ValueError:
        raise FormatError(f"system_profiler: not JSON: {text.strip()[:120]!r}") from None
    entries = content.get("SPDisplaysDataType") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FormatError(f"system_profiler: no SPDisplaysDataType in {text.strip()[:120]!r}")
    for entry in entries:
        # `_name` is no name: of a real M1 it is kHW_AppleM1Item.
        model = entry.get("sppci_model") if isinstance(entry, dict) else None
        if isinstance(model, str) and model.startswith("Apple"):
            cores, family = str(entry.get("sppci_cores", "")), str(entry.get("spdisplays_mtlgpufamilysupport", ""))
            version = re.fullmatch(r"spdisplays_metal(\d+)", family)
            return ProfilerFacts(
                name=model,
                n_cores=int(cores) if cores.isdecimal() else None,
                metal=f"Metal {version[1]}" if version else None,
            )
    raise FormatError("system_profiler: no display adapter has an sppci_model that begins with Apple")


def parse_memory_size(text: str) -> int:
    """Read `sysctl -n hw.memsize`. Raises: FormatError."""
    if not text.strip().isdecimal():
        raise FormatError(f"sysctl: hw.memsize is {text.strip()[:80]!r}, not a number")
    return int(text)


def parse_accelerator(text: str) -> AcceleratorReading:
    """Read the statistics of the first accelerator. Raises: FormatError."""
    match = _STATISTICS.search(text)
    if match is None:
        raise FormatError(f"ioreg: no IOAccelerator with PerformanceStatistics in {text.strip()[:120]!r}")
    # The quote and the sign keep "In use system memory (driver)" apart.
    busy, used = (_value(match[1], key) for key in ("Device Utilization %", "In use system memory"))
    if busy is None and used is None:
        raise FormatError("ioreg: PerformanceStatistics has neither Device Utilization % nor In use system memory")
    return AcceleratorReading(util_pct=None if busy is None else float(busy), memory_used_bytes=used)


def parse_platform_uuid(text: str) -> str:
    """Read the machine's own UUID. Raises: FormatError."""
    match = _UUID.search(text)
    if match is None:
        raise FormatError(f"ioreg: no IOPlatformUUID in {text.strip()[:120]!r}")
    return match[1].upper()


def parse_available(text: str) -> int:
    """Add up what vm_stat says can be given to a process, in bytes. Raises: FormatError."""
    page, pages = _PAGE.search(text), dict(_PAGES.findall(text))
    if page is None or "free" not in pages or "inactive" not in pages:
        raise FormatError(f"vm_stat: no page size, no Pages free or no Pages inactive in {text.strip()[:120]!r}")
    return int(page[1]) * sum(int(count) for count in pages.values())


def _value(statistics: str, key: str) -> int | None:
    match = re.search(rf'"{re.escape(key)}"\s*=\s*([0-9]{{1,18}})(?![0-9])', statistics)
    return int(match[1]) if match else None

"""Apple's GPU (MPS), of which a Mac has one: Metal first, then the system's own tools.

Its memory is the machine's. What an engine may fill is Metal's limit, about two thirds to three quarters of it; what is
free is the rest of that limit or of the machine's free memory, whichever is less. Intel Macs have no such device: the
engines need Apple's processors. Only on macOS; an engine has all of it, so there is nothing to make visible.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from xinf.core.device import Device, Health, Sample, Vendor
from xinf.device import apple_tool
from xinf.device.apple_library import MetalFacts, read_metal
from xinf.device.apple_tool import ProfilerFacts
from xinf.device.library import LibraryError
from xinf.device.tool import TIMEOUT_S, ToolError, find_tool, run_tool

_TOOLS = ("/usr/sbin", "/usr/bin")


class AppleProbe:
    """Reads the GPU of a Mac; `system` and `machine` say where it runs, `timeout_s` bounds each tool."""

    def __init__(
        self, *, system: str = sys.platform, machine: str = platform.machine(), timeout_s: float = TIMEOUT_S
    ) -> None:
        self._is_mac = system == "darwin" and machine == "arm64"
        self._timeout_s = timeout_s
        self._identity: str | None = None
        self._limit_bytes: int | None = None

    def is_present(self, root: Path) -> bool:  # noqa: ARG002 - the protocol's
        return self._is_mac

    def inventory(self, root: Path) -> tuple[Device, ...]:
        reasons: list[str] = []
        metal: MetalFacts | None = None
        profiler: ProfilerFacts | None = None
        try:
            metal = read_metal(root)
        except LibraryError as error:
            reasons.append(f"Metal: {error}")
        if metal is None or metal.name is None:
            try:
                profiler = apple_tool.parse_profiler(self._run(apple_tool.PROFILER, root))
            except ToolError as error:
                reasons.append(str(error))
        total = self._read_total(root, reasons)
        name = metal.name if metal and metal.name else profiler.name if profiler else None
        extra: dict[str, str | int] = {"memory": "unified"}
        if total is not None:
            extra["memory_total_bytes"] = total
        if profiler is not None and profiler.n_cores is not None:
            extra["gpu_cores"] = profiler.n_cores
        limit = metal.limit_bytes if metal else None
        return (
            Device(
                vendor=Vendor.APPLE,
                index=0,
                uuid=self._read_identity(root),
                name=name or "Apple GPU",
                arch=_arch_of(name),
                memory_bytes=limit or total,
                runtime=profiler.metal if profiler else None,
                health=Health.OK if name else Health.NO_DRIVER,
                reason=None if name else "; ".join(reasons),
                extra=extra,
            ),
        )

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the GPU is doing. Raises: ToolError."""
        reading = apple_tool.parse_accelerator(self._run(apple_tool.ACCELERATOR, root))
        free: int | None = None
        try:
            free = apple_tool.parse_available(self._run(apple_tool.MEMORY, root))
        except ToolError:
            pass  # then the limit alone says it
        limit, used = self._read_limit(root), reading.memory_used_bytes
        if limit is not None and used is not None:
            left = max(0, limit - used)
            free = left if free is None else min(free, left)
        return (
            Sample(
                uuid=self._read_identity(root),
                t_ns=time.time_ns(),
                memory_used_bytes=used,
                memory_free_bytes=free,
                util_pct=reading.util_pct,
            ),
        )

    def _read_limit(self, root: Path) -> int | None:
        """Find what the GPU may hold, once: it changes with a restart or an administrator only."""
        if self._limit_bytes is None:
            try:
                self._limit_bytes = read_metal(root).limit_bytes
            except LibraryError:
                self._limit_bytes = self._read_total(root, [])
        return self._limit_bytes

    def _read_total(self, root: Path, reasons: list[str]) -> int | None:
        try:
            return apple_tool.parse_memory_size(self._run(apple_tool.MEMORY_SIZE, root))
        except ToolError as error:
            reasons.append(str(error))
            return None

    def _read_identity(self, root: Path) -> str:
        """Name the GPU by a digest of the machine's UUID, which stays private."""
        if self._identity is None:
            try:
                seed = apple_tool.parse_platform_uuid(self._run(apple_tool.PLATFORM, root))
            except ToolError:
                seed = platform.node()
            self._identity = "MPS-" + hashlib.sha256(f"xinf {seed}".encode()).hexdigest()[:16]
        return self._identity

    def _run(self, argv: Sequence[str], root: Path) -> str:
        tool = find_tool(argv[0], directories=_TOOLS, root=root)
        if tool is None:
            raise ToolError(f"{argv[0]} is not there")
        return run_tool([tool, *argv[1:]], timeout_s=self._timeout_s)


def _arch_of(name: str | None) -> str | None:
    """Take the generation from the name: `Apple M3 Pro` is m3."""
    match = re.match(r"Apple (M\d+)\b", name or "")
    return match[1].lower() if match else None

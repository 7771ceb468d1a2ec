"""How much memory of each NVIDIA device each process has, asked in a child with a deadline.

    python -m xinf.device.process_memory     the answer as JSON, for the parent

NVML names processes as the host does: in a container with pids of its own, nobody's pid is found among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

DEADLINE_S = 15.0


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What one process has on one device."""

    uuid: str
    pid: int
    used_bytes: int


async def read_process_memory(
    *, deadline_s: float = DEADLINE_S, environ: Mapping[str, str] | None = None
) -> tuple[ProcessMemory, ...]:
    """List it; empty where there is no NVML, or where it does not answer."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "xinf.device.process_memory"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(os.environ if environ is None else environ),
    )
    try:
        async with asyncio.timeout(deadline_s):
            out, _ = await process.communicate()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if isinstance(error, TimeoutError):
            return ()
        raise
    try:
        return msgspec.json.decode(out, type=tuple[ProcessMemory, ...])
    except msgspec.MsgspecError:
        return ()


def list_process_memory() -> tuple[ProcessMemory, ...]:
    """Ask NVML, in this process; MIG instances under their own UUIDs."""
    import pynvml

    found: list[ProcessMemory] = []
    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            for device in (handle, *_instances(handle)):
                found += _processes(device)
    except pynvml.NVMLError:
        return ()
    return tuple(found)


def _processes(handle: Any) -> list[ProcessMemory]:
    import pynvml

    try:
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return []  # a card that fell off the bus, or one whose processes are nobody's business
    text = uuid.decode() if isinstance(uuid, bytes) else uuid
    return [
        ProcessMemory(uuid=text, pid=one.pid, used_bytes=one.usedGpuMemory)
        for one in running
        if one.usedGpuMemory is not None
    ]


def _instances(handle: Any) -> list[Any]:
    import pynvml

    found: list[Any] = []
    try:
        for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))
    except pynvml.NVMLError:
        pass  # a card that cannot be split
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(list_process_memory()) + b"\n")

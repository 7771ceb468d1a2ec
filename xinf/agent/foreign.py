"""How much memory of this host's devices others than our engines use: pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from xinf.core.device import Device, Vendor
from xinf.device import Reading

FOREIGN_STEP_BYTES = 256 << 20  # a change below this is not worth a write to the store
_FOREIGN_STEPS = 64  # of a host's memory, if that is more


def foreign_step_bytes(device: Device) -> int:
    """The change of a device's memory that is worth a write: that of a large host's is never still."""
    is_of_host = device.vendor is Vendor.CPU or device.is_unified
    share = (device.memory_bytes or 0) // _FOREIGN_STEPS if is_of_host else 0
    return max(FOREIGN_STEP_BYTES, share)


def foreign_bytes(
    reading: Reading,
    own_pids: Mapping[str, Collection[int]],
    own_bytes: Mapping[str, int],
    before: Mapping[str, int],
    steps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Say how much memory of each device others than our engines use; devices that nothing is known of keep `before`.

    `own_pids`: the processes of our engines by the device that they run on. `own_bytes`: what those use that
    hold the device, where this host knows it: of the processor, and of GPUs that compute in the same memory.
    `steps`: the changes that count, FOREIGN_STEP_BYTES by default.

    Of a device that our engines run on, the driver must know at least one of their processes: in a container of its own
    it counts pids of another namespace, and the engine would look like somebody else.
    """
    used = {sample.uuid: sample.memory_used_bytes for sample in reading.samples}
    told: dict[str, dict[int, int | None]] = {}
    for process in reading.processes:
        told.setdefault(process.uuid, {})[process.pid] = process.memory_bytes
    result = dict(before)
    for uuid, used_bytes in used.items():
        if used_bytes is None:
            continue
        if uuid in own_bytes:
            own: int | None = own_bytes[uuid]
        elif own_pids.get(uuid):
            mine = [told.get(uuid, {}).get(pid, -1) for pid in own_pids[uuid] if pid in told.get(uuid, {})]
            own = None if not mine or None in mine else sum(size for size in mine if size is not None)
        else:
            own = 0
        if own is None:
            continue
        others = max(0, used_bytes - own)
        if abs(others - before.get(uuid, 0)) > (steps or {}).get(uuid, FOREIGN_STEP_BYTES):
            result[uuid] = others
    return {uuid: size for uuid, size in result.items() if size}

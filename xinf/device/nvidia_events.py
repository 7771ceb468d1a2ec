"""What happens to NVIDIA devices: Xid, ECC, lost cards, drivers that come and go, as NVML's event sets tell it.

An upgrade of the driver replaces the library's file long before the kernel's module: this process goes on with the old
one, and no new process can start on the cards. So the file is looked at as well.

One thread waits, a second at a time: NVML's calls block and release the interpreter's lock. Cards are looked after by
the handles and UUIDs that they had at the start, so that one which is lost later can still be named.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pynvml

from xinf.core.device import DeviceEvent, Health
from xinf.device.nvidia_answer import known
from xinf.device.nvidia_library import LOST_REMEDY, handles, read_uuid
from xinf.device.nvidia_metrics import read_recovery_action
from xinf.device.xid import RECOVERY_ACTION_CHANGED, Verdict, find_xid

# By their numbers, as in nvml.h: older releases of the binding lack names, older drivers lack kinds.
_DOUBLE_BIT = 0x2
_XID = 0x8
_RECOVERY_ACTION = 0x8000
_CONTAINED = "uncorrectable ECC error: the process that met it was ended; an Xid tells if the card is to be reset"
_KINDS = {
    _DOUBLE_BIT: ("ecc", "uncorrectable (double bit) ECC error: drain it, then `nvidia-smi --gpu-reset`"),
    0x800: ("ecc", "a row or page of memory could not be retired: have it swapped"),
    0x2000: ("ecc", "fatal error of poisoned memory: drain it, then `nvidia-smi --gpu-reset`"),
    0x4000: ("lost", f"the GPU is unavailable: {LOST_REMEDY}"),
}
_WANTED = _XID | _RECOVERY_ACTION | _DOUBLE_BIT | 0x800 | 0x2000 | 0x4000
_UNBIND, _BIND = 0x1, 0x2  # nvmlSystemEventTypeGpuDriverUnbind, ...Bind

_WAIT_MS = 1000
_NO_WAIT_MS = 1  # 0 would wait for ever
_N_WAITS_PER_LOOK = 2  # a lost card is noticed within about two seconds
_VERSION = "sys/module/nvidia/version"
_LIBRARY = "libnvidia-ml.so"
_MAPS = Path("/proc/self/maps")


def watch(root: Path) -> Iterator[DeviceEvent]:
    """Yield what happens, for ever; after a `driver` event there is nothing more to come. NVML must be started."""
    cards = {uuid: handle for handle in handles() if (uuid := read_uuid(handle)) is not None}
    if not cards:
        return
    uuid_of = {_address(handle): uuid for uuid, handle in cards.items()}
    event_set, system_set = _register(cards), _register_system()
    version = _read(root / _VERSION)
    library = _find_library()
    library_is = _identify(library)
    lost: set[str] = set()
    for n_waits in count(1):
        data = _wait(event_set)
        if data is not None and (uuid := uuid_of.get(_address(data.device))):
            yield from _translate(uuid, cards[uuid], int(data.eventType), int(data.eventData))
        change = _driver_change(system_set, version, root)
        if change is None and _identify(library) != library_is:
            change = "the NVIDIA library was replaced, as by an upgrade of the driver: reload the driver or reboot"
        if change is not None:
            yield DeviceEvent(uuid=min(cards), t_ns=time.time_ns(), kind="driver", message=change)
            return
        if n_waits % _N_WAITS_PER_LOOK == 0:
            yield from _look_for_lost(cards, lost)


def _translate(uuid: str, handle: Any, kind: int, code: int) -> Iterator[DeviceEvent]:
    """Say what an event of NVML means. `code`: the Xid, where it is one."""
    now_ns = time.time_ns()
    if kind == _RECOVERY_ACTION or (kind == _XID and code == RECOVERY_ACTION_CHANGED):
        yield _recovery_event(uuid, handle, now_ns)
    elif kind == _XID:
        xid = find_xid(code)
        health = Health.FAULTY if xid.verdict is Verdict.UNUSABLE else Health.OK
        message = f"Xid {code}: {xid.meaning}: {xid.remedy}"
        yield DeviceEvent(uuid=uuid, t_ns=now_ns, kind="xid", code=code, message=message, health=health)
    elif kind == _DOUBLE_BIT and _remaps_rows(handle):
        yield DeviceEvent(uuid=uuid, t_ns=now_ns, kind="ecc", message=_CONTAINED)
    elif kind in _KINDS:
        name, message = _KINDS[kind]
        yield DeviceEvent(uuid=uuid, t_ns=now_ns, kind=name, message=message, health=Health.FAULTY)


def _remaps_rows(handle: Any) -> bool:
    """Whether a card replaces rows of its memory, as those do that keep errors from other processes."""
    try:
        return known(pynvml.nvmlDeviceGetRemappedRows, handle) is not None
    except pynvml.NVMLError:
        return False


def _recovery_event(uuid: str, handle: Any, now_ns: int) -> DeviceEvent:
    """Read what the driver wants done now that it changed its mind: an action, or nothing any more."""
    try:
        action = read_recovery_action(handle)
    except pynvml.NVMLError as error:
        action = f"the driver says `{error}`: {LOST_REMEDY}"
    if action is None:
        message = "the driver asks for no recovery any more"
        return DeviceEvent(uuid=uuid, t_ns=now_ns, kind="recovered", message=message)
    return DeviceEvent(
        uuid=uuid, t_ns=now_ns, kind="xid", code=RECOVERY_ACTION_CHANGED, message=action, health=Health.FAULTY
    )


def _look_for_lost(cards: dict[str, Any], lost: set[str]) -> Iterator[DeviceEvent]:
    """Touch every card: one may be lost without an Xid, and one that was lost may be back after a reset."""
    for uuid, handle in cards.items():
        try:
            known(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
        except pynvml.NVMLError as error:
            if uuid not in lost:
                lost.add(uuid)
                message = f"the driver says `{error}`: {LOST_REMEDY}"
                yield DeviceEvent(uuid=uuid, t_ns=time.time_ns(), kind="lost", message=message, health=Health.FAULTY)
            continue
        if uuid in lost:
            lost.remove(uuid)
            yield DeviceEvent(uuid=uuid, t_ns=time.time_ns(), kind="found", message="it answers again")


def _register(cards: dict[str, Any]) -> Any | None:
    """Register for what each card supports; None where none supports anything (WSL, old drivers)."""
    event_set = known(pynvml.nvmlEventSetCreate)
    n_registered = 0
    for handle in cards.values() if event_set is not None else ():
        try:
            kinds = (known(pynvml.nvmlDeviceGetSupportedEventTypes, handle) or 0) & _WANTED
            if kinds:
                pynvml.nvmlDeviceRegisterEvents(handle, kinds, event_set)
                n_registered += 1
        except pynvml.NVMLError:
            continue  # lost already, or not for us to watch
    return event_set if n_registered else None


def _register_system() -> Any | None:
    """Register for drivers that are bound and unbound; None where the driver or the binding does not know of it."""
    try:
        system_set = pynvml.nvmlSystemEventSetCreate(pynvml.nvmlSystemEventSetCreateRequest_v1)
        pynvml.nvmlSystemRegisterEvents(pynvml.nvmlSystemRegisterEventRequest_v1, _UNBIND | _BIND, system_set)
    except (pynvml.NVMLError, AttributeError):
        return None
    return system_set


def _wait(event_set: Any | None) -> Any | None:
    """Wait for the next event; None when there was none, which is the rule."""
    if event_set is None:
        time.sleep(_WAIT_MS / 1000)
        return None
    try:
        return pynvml.nvmlEventSetWait_v2(event_set, _WAIT_MS)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_TIMEOUT:
            # A lost card makes every wait return at once, with its error.
            time.sleep(_WAIT_MS / 1000)
        return None


def _driver_change(system_set: Any | None, version: str | None, root: Path) -> str | None:
    """Say what happened to the kernel driver; None: nothing."""
    if version is not None and (now := _read(root / _VERSION)) != version:
        return f"the NVIDIA kernel driver {version} was replaced by {now}" if now else "the NVIDIA driver was unloaded"
    if system_set is None:
        return None
    data = (pynvml.c_nvmlSystemEventData_v1_t * 1)()
    try:
        told = pynvml.nvmlSystemEventSetWait(
            pynvml.nvmlSystemEventSetWaitRequest_v1, system_set, _NO_WAIT_MS, data, len(data)
        )
    except pynvml.NVMLError:
        return None
    if not told:
        return None
    is_unbind = bool(told[0]["eventType"] & _UNBIND)
    return "the NVIDIA driver lets go of a device" if is_unbind else "the NVIDIA driver was bound to a device"


def _find_library() -> Path | None:
    """Find the file that NVML was loaded from; None where the system does not tell."""
    for line in (_read(_MAPS) or "").splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if Path(path).name.startswith(_LIBRARY):
            return Path(path)
    return None


def _identify(path: Path | None) -> tuple[int, int] | None:
    """Tell a file from another that takes its place; None: there is none."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _address(handle: Any) -> int | None:
    """A handle is a pointer that stays the same as long as NVML is started; two objects of it are not equal."""
    return ctypes.cast(handle, ctypes.c_void_p).value


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

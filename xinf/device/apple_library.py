"""Apple's GPU through Metal: its name, and how much of the shared memory it may hold.

Metal is called through the Objective-C runtime with ctypes; an object of the device is made, no queue and no memory.
Source: developer.apple.com, MTLDevice name, recommendedMaxWorkingSetSize (in bytes) and hasUnifiedMemory.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import msgspec

from xinf.device.library import LibraryError, find_function, load_library

# Since macOS 11 these are in the loader's cache and no files, so they are named by path and not looked for.
_METAL_DIRECTORY, _OBJC_DIRECTORY = "/System/Library/Frameworks/Metal.framework", "/usr/lib"
_METAL_NAMES = (f"{_METAL_DIRECTORY}/Metal", "Metal")
_OBJC_NAMES = (f"{_OBJC_DIRECTORY}/libobjc.A.dylib", "libobjc.A.dylib")


class MetalFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Metal says of the device."""

    name: str | None
    limit_bytes: int | None  # beyond which allocations slow down or fail
    is_unified: bool


def read_metal(root: Path) -> MetalFacts:
    """Ask Metal for the system's device. Raises: LibraryError."""
    metal = load_library(_METAL_NAMES, directories=(_METAL_DIRECTORY,), root=root)
    objc = load_library(_OBJC_NAMES, directories=(_OBJC_DIRECTORY,), root=root)
    make = find_function(metal, "MTLCreateSystemDefaultDevice")
    make.restype = c_void_p
    device = make()
    if not device:
        raise LibraryError("Metal has no device: a virtual machine, or a session without graphics")
    name = _send(objc, device, "name", c_void_p)
    text = _send(objc, name, "UTF8String", c_char_p) if name else None
    return MetalFacts(
        name=text.decode(errors="replace") if text else None,
        limit_bytes=_send(objc, device, "recommendedMaxWorkingSetSize", c_uint64) or None,
        is_unified=bool(_send(objc, device, "hasUnifiedMemory", c_bool)),
    )


def _send(objc: ctypes.CDLL, receiver: int, selector: str, answer: type[Any]) -> Any:
    """Send a message without arguments. The function has to be called as the method is declared, hence the cast."""
    register = find_function(objc, "sel_registerName")
    register.restype = c_void_p
    register.argtypes = [c_char_p]
    send = ctypes.cast(find_function(objc, "objc_msgSend"), ctypes.CFUNCTYPE(answer, c_void_p, c_void_p))
    return send(receiver, register(selector.encode()))

"""Calls of a C library whose functions return 0, or the number of what is wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import NamedTuple

from xinf.device.library import LibraryError, find_function

MAX_DEVICES = (
    256  # more than any host has: a count beyond is of another layout, and asking for each would take for ever
)


class Handle(NamedTuple):
    """What the library knows a device by, and the number that it counts it by."""

    number: int
    pointer: ctypes.c_void_p


class CCalls:
    """A library with the words for its errors. What a version or a card has no answer to is told from a failure."""

    def __init__(self, library: ctypes.CDLL, errors: Mapping[int, str]) -> None:
        self._library = library
        self._errors = errors

    def code(self, name: str, *arguments: object) -> int | None:
        """Call and give what it returned; None: there is no such function, or no handle to call it with."""
        if None in arguments:
            return None
        try:
            return int(find_function(self._library, name)(*arguments))
        except LibraryError:
            return None

    def ask(self, name: str, *arguments: object) -> bool:
        """Call; False when this version or this card has no answer."""
        return self.code(name, *arguments) == 0

    def demand(self, name: str, *arguments: object) -> None:
        """Call. Raises: LibraryError with the function and what is wrong."""
        code = find_function(self._library, name)(*arguments)
        if code != 0:
            raise LibraryError(f"{name}: {self._errors.get(code, f'error {code}')}")

    def open_all(self, count: str, opener: str, *parents: object) -> tuple[list[Handle], list[str]]:
        """Open the handles of all devices, and say of which there is none and why.

        `count(parents..., &n)` and `opener(parents..., index, &handle)`. Raises: LibraryError if they are not counted.
        """
        n_devices = ctypes.c_uint()
        self.demand(count, *parents, ctypes.byref(n_devices))
        if n_devices.value > MAX_DEVICES:
            raise LibraryError(f"{count} gives {n_devices.value} devices: its layout is not known")
        handles, complaints = list[Handle](), list[str]()
        for number in range(n_devices.value):
            pointer = ctypes.c_void_p()
            try:
                self.demand(opener, *parents, ctypes.c_uint(number), ctypes.byref(pointer))
            except LibraryError as error:
                complaints.append(f"device {number}: {error}")
            else:
                handles.append(Handle(number, pointer))
        return handles, complaints

    def text(self, name: str, *arguments: object, length: int) -> str | None:
        """Call with room for a text and its length behind the other arguments; None for no answer and for nothing."""
        buffer = ctypes.create_string_buffer(length)
        return decode(buffer.value) if self.ask(name, *arguments, buffer, ctypes.c_uint(length)) else None


def decode(text: bytes) -> str | None:
    """Decode what a library wrote, leniently; None for nothing."""
    return text.decode(errors="replace").strip() or None

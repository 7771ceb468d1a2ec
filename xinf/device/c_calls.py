"""Calls of a C library whose functions return 0, or the number of what is wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from xinf.device.library import LibraryError, find_function


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

    def text(self, name: str, *arguments: object, length: int) -> str | None:
        """Call with room for a text and its length behind the other arguments; None for no answer and for nothing."""
        buffer = ctypes.create_string_buffer(length)
        return decode(buffer.value) if self.ask(name, *arguments, buffer, ctypes.c_uint(length)) else None


def decode(text: bytes) -> str | None:
    """Decode what a library wrote, leniently; None for nothing."""
    return text.decode(errors="replace").strip() or None

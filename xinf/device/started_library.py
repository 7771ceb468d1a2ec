"""A vendor's library that a process starts once, if it is of a version whose layouts are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from xinf.device.library import LibraryError

T = TypeVar("T")


def check_version(library: str, version: str | None, majors: tuple[str, ...]) -> None:
    """Refuse a library of a version whose structs nobody has seen. Raises: LibraryError."""
    major = re.match(r"[Vv]?(\d+)\.\d", version or "")
    if major is None or major[1] not in majors:
        known = " and ".join(f"{number}.x" for number in majors)
        raise LibraryError(f"{library} says version {version or ''!r}; layouts are known of {known}")


class StartedLibrary(Generic[T]):
    """A library, started when it is first asked for: what starting it again does is the driver's secret.

    One that refused is not asked again either: after a change of the driver only a new process loads the new library,
    and the driver's change ends this one (see watcher). Until then the tool has the word.
    """

    def __init__(self, make: Callable[[Path], T]) -> None:
        self._make = make
        self._library: T | None = None
        self._refusal: str | None = None

    def start(self, root: Path) -> T:
        """Give the library. Raises: LibraryError with what it said when it was started."""
        if self._refusal is not None:
            raise LibraryError(self._refusal)
        if self._library is None:
            try:
                self._library = self._make(root)
            except LibraryError as error:
                self._refusal = str(error)
                raise
        return self._library

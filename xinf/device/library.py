"""Loads a vendor's C library with ctypes, from the loader's own paths and from where the vendors' packages put it.

Only in the probes' child processes: what a library does while it is loaded is its own business.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LibraryError(Exception):
    """A library is not there, lacks a function, or refuses to start. The message says which and why."""


def load_library(names: Sequence[str], *, directories: Sequence[str] = (), root: Path = Path("/")) -> ctypes.CDLL:
    """Load the first of the names that can be loaded. Raises: LibraryError with what the loader said of the first."""
    complaints = []
    paths = [str(root / directory.lstrip("/") / name) for directory in directories for name in names]
    for path in (*names, *(path for path in paths if Path(path).is_file())):
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            complaints.append(str(error))
    raise LibraryError(complaints[-1] if paths and len(complaints) > len(names) else complaints[0])


def find_function(library: ctypes.CDLL, name: str) -> Any:
    """Find a function. Raises: LibraryError naming it."""
    try:
        return getattr(library, name)
    except AttributeError:
        raise LibraryError(f"the library has no {name}: it is older or newer than what is known here") from None

"""The files of one model at one revision, wherever they are: names, sizes and ranges of bytes.

Everything that reads a model goes through `ModelFiles`, so that nothing of it knows where the model is. A range is
asked for with its length, and never more than that is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from xinf.core.errors import UnknownModel


def is_inside(name: str) -> bool:
    """Whether a name that a hub gave stays below the directory that it is put into."""
    # What a terminal or the file system would take for something else is no name of a model's file.
    is_plain = bool(name) and name.isprintable() and "\\" not in name
    path = PurePosixPath(name)
    # One file has one name: `a//b` and `./b` would be found, and be linked to the wrong place.
    return is_plain and bool(path.parts) and str(path) == name and not path.is_absolute() and ".." not in path.parts


def as_size(value: object) -> int | None:
    """A size that a hub gave; None for what can be none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


class ModelFiles(Protocol):
    """A model's files; `sizes` are in bytes, None where the source does not say."""

    @property
    def where(self) -> str:
        """For messages: a directory, or the id with its source."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit that is read; None for a directory that is no checkout of a hub."""
        ...

    @property
    def sizes(self) -> Mapping[str, int | None]: ...

    def read(self, name: str, length: int, *, offset: int = 0) -> bytes:
        """Read up to `length` bytes. Raises: UnknownModel if there is no such file; Unavailable if it cannot be had."""
        ...


class LocalFiles:
    """A directory on this host. Names are relative, with `/`; only the directory itself and one level below."""

    def __init__(self, directory: Path, *, revision: str | None = None) -> None:
        self._directory = directory
        self._revision = revision
        self._sizes = _sizes(directory)

    @property
    def where(self) -> str:
        return str(self._directory)

    @property
    def revision(self) -> str | None:
        return self._revision

    @property
    def sizes(self) -> Mapping[str, int | None]:
        return self._sizes

    def read(self, name: str, length: int, *, offset: int = 0) -> bytes:
        if name not in self._sizes:
            raise UnknownModel(
                f"{self._directory} has no {name}",
                remedy="give the directory that holds config.json, tokenizer and weights",
                param="model",
            )
        try:
            with (self._directory / name).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise UnknownModel(
                f"{self._directory / name} cannot be read: {error}", remedy="fetch the model again", param="model"
            ) from error


def _sizes(directory: Path) -> dict[str, int | None]:
    """Raises: UnknownModel if the directory cannot be listed."""
    sizes: dict[str, int | None] = {}
    try:
        with os.scandir(directory) as entries:
            directories = [entry for entry in entries if entry.is_dir()]
        for entry in directories:
            # One that only root may list (`lost+found`) holds nothing of the model.
            with contextlib.suppress(PermissionError):
                sizes |= {f"{entry.name}/{inner}": size for inner, size in _files(Path(entry.path)).items()}
        sizes |= _files(directory)
    except OSError as error:
        raise UnknownModel(f"{directory} cannot be read: {error}", param="model") from error
    return sizes


def _files(directory: Path) -> dict[str, int | None]:
    # A broken link (a cache that lost its blob) has no size and is no file.
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

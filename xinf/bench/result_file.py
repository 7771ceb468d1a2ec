"""Files of results: indented JSON whose `schema` names the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from xinf.core.errors import InvalidRequest, NotFound

T = TypeVar("T")


class HasSchema(Protocol):
    """Anything that says which layout it has."""

    @property
    def schema(self) -> str: ...


class _Schema(msgspec.Struct):
    schema: str


def write_result(document: HasSchema, path: Path) -> None:
    """Write the file. Raises: NotFound if it cannot be written."""
    encoded = msgspec.json.format(msgspec.json.encode(document), indent=1)
    try:
        path.write_bytes(encoded + b"\n")
    except OSError as error:
        raise NotFound(f"cannot write {path}: {error.strerror}") from error


def read_result(path: Path, kind: type[T], *, schema: str, command: str) -> T:
    """Read a file that `command` wrote. Raises: NotFound, InvalidRequest."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data, type=_Schema).schema
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} is no result of `{command}`: {error}") from error
    if found != schema:
        raise InvalidRequest(f"{path} is of schema {found!r}, this xinf reads {schema!r}")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} says {schema} but is not: {error}") from error

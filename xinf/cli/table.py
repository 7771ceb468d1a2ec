"""What commands print: plain tables for people, JSON for scripts."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

_GAP = "  "


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need to be; nothing is cut, so that lines can be searched and piped."""
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print(_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(content: object) -> None:
    """Print indented JSON; records with all their fields, those at their defaults too."""
    encoded = msgspec.json.encode(plain(content))
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def plain(content: object) -> Any:
    """Turn records into dictionaries with every field."""
    if isinstance(content, msgspec.Struct):
        return {name: plain(getattr(content, name)) for name in content.__struct_fields__}
    if isinstance(content, enum.Enum):
        return content.value
    if isinstance(content, dict):
        return {str(plain(key)): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | set | frozenset):
        return [plain(item) for item in content]
    return content

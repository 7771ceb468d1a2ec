"""Reads the framed tables of vendors' tools by their headers, whatever the width of a column.

    | NPU   Name    | Health       | Power(W)    Temp(C)      |      the header: as many lines as a record has,
    | Chip          | Bus-Id       | AICore(%)   HBM-Usage(MB)|      made of known column names and of nothing else
    +===============+==============+==========================+
    | 0     910B3   | OK           | 91.3        53           |      a record: each cell has the values of the columns
    | 0             | 0000:d9:00.0 | 0           526/ 65536   |      of the header's cell at its place

Frames are drawn with `|`, the outer ones of some tools with `*`. A column is a name and the pattern of its values. A
name that is not known, a value that does not fit its pattern and a record that is not whole are refused: a table that
is half understood is not understood. So is one whose last record has no rule below it: all tools draw one, and what was
cut off there had no time to. A table that was cut behind the rule between two records cannot be told from a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import msgspec

from xinf.device.tool import FormatError

_RULE = re.compile(r"[|+=\- ]*")
_DRAWN = re.compile(r"[|+ ]*[=\-][|+=\- ]*")  # a rule that is drawn, not a line that is blank


class FramedTable(msgspec.Struct, frozen=True, kw_only=True):
    """What a table says: the lines above its header, and a value by column name for each record."""

    title: str
    records: tuple[Mapping[str, str], ...]


def parse_framed_table(
    tool: str,
    text: str,
    columns: Mapping[str, str],
    *,
    height: int,
    needed: Collection[str] = (),
    until: str | None = None,
) -> FramedTable:
    """Read a table whose records take `height` lines, up to the first line that contains `until`.

    `columns`: a pattern without groups by column name; of them those `needed` must be there. Raises: FormatError.
    """
    lines = [_straighten(line.strip()) for line in text.splitlines()]
    start, header = _find_header(tool, lines, columns, height)
    present = [name for cells in header for names in cells for name in names]
    lacking = [name for name in needed if name not in present]
    if lacking:
        raise FormatError(f"{tool} printed a table without the column {lacking[0]!r}: {', '.join(present)}")
    body, is_closed = _find_body(lines[start + height :], until)
    if not body or len(body) % height:
        raise FormatError(f"the table of {tool} ends within a record: {(body or lines)[-1]!r}")
    if not is_closed:
        raise FormatError(f"the table of {tool} is cut off: nothing closes it below {body[-1]!r}")
    patterns = [[_cell_pattern(names, columns) for names in cells] for cells in header]
    records = [_read_record(tool, body[at : at + height], header, patterns) for at in range(0, len(body), height)]
    title = " ".join(" ".join(_cells(line)) for line in lines[:start] if line.startswith("|"))
    return FramedTable(title=title, records=tuple(records))


def _find_body(lines: list[str], until: str | None) -> tuple[list[str], bool]:
    """Find the lines of the records, and whether something is drawn below the last of them."""
    body: list[str] = []
    is_closed = False
    for line in lines:
        if until is not None and until in line:
            return body, True
        if _DRAWN.fullmatch(line):
            is_closed = True
        elif line.startswith("|") and not _RULE.fullmatch(line):
            body.append(line)
            is_closed = False
    return body, is_closed


def _straighten(line: str) -> str:
    return f"|{line[1:-1]}|" if len(line) > 1 and line[0] == line[-1] == "*" else line


def _find_header(
    tool: str, lines: list[str], columns: Mapping[str, str], height: int
) -> tuple[int, list[list[list[str]]]]:
    """Find the first line that names columns only; gives its number and the names by line and cell."""
    names = sorted(columns, key=len, reverse=True)  # "NPU ID" before "NPU"
    name = re.compile(rf"({'|'.join(map(re.escape, names))})(?!\S)")
    for number, line in enumerate(lines):
        if line.startswith("|") and _names_of(line, name):
            header = [_names_of(below, name) for below in lines[number : number + height]]
            known = [cells for cells in header if cells is not None]
            if len(known) < height:
                near = lines[max(0, number - 1) : number + height]
                strange = [line for line in near if not _RULE.fullmatch(line) and _names_of(line, name) is None]
                raise FormatError(f"{tool} printed a table with an unknown header: {strange[-1:] or line!r}")
            if len({len(cells) for cells in known}) != 1:
                raise FormatError(f"{tool} printed a table whose header lines differ in cells: {line!r}")
            return number, known
    seen = next((line for line in lines if line and not _RULE.fullmatch(line)), "nothing")
    raise FormatError(f"{tool} printed no table with a known header: {seen[:200]!r}")


def _names_of(line: str, name: re.Pattern[str]) -> list[list[str]] | None:
    """Split a header line into the column names of its cells; None if there is anything else in it."""
    if not line.startswith("|") or _RULE.fullmatch(line):
        return None
    cells = _cells(line)
    if any(name.sub("", cell).strip() for cell in cells):
        return None
    return [name.findall(cell) for cell in cells]


def _read_record(
    tool: str, lines: list[str], header: list[list[list[str]]], patterns: list[list[re.Pattern[str]]]
) -> Mapping[str, str]:
    record: dict[str, str] = {}
    for line, names, cell_patterns in zip(lines, header, patterns, strict=True):
        cells = _cells(line)
        matches = [pattern.fullmatch(cell) for pattern, cell in zip(cell_patterns, cells, strict=False)]
        if len(cells) != len(names) or not all(matches):
            raise FormatError(f"{tool} printed a row that does not fit its header: {line!r}")
        for cell_names, match in zip(names, matches, strict=True):
            assert match is not None
            record.update(zip(cell_names, match.groups(), strict=True))
    return record


def _cell_pattern(names: list[str], columns: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile(r"\s+".join(f"({columns[name]})" for name in names))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]

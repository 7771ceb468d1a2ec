"""Framed tables by their headers; the tables of the vendors' tools are in their own tests."""

from __future__ import annotations

import pytest

from xinf.device.framed_table import parse_framed_table
from xinf.device.tool import FormatError

COLUMNS = {"Card": r"\d+", "Card Name": r"\S+", "Bus": r"[0-9a-f:]+", "Use": r"\d+ */ *\d+"}
TABLE = """\
+-------------------+
| TOOL 1.2  Drv 3.4 |
+-------------------+
| Card  Card Name | |
| Bus             | Use |
|=================+=====|
| 0     first     |     |
| 1b:00           | 1/2 |
+-----------------+-----+
| 1     second    |     |
| 2b:00           | 3 / 40 |
+-----------------+-----+
| Processes: of something else |
"""


def test_records_are_read_by_their_header() -> None:
    table = parse_framed_table("tool", TABLE, COLUMNS, height=2, until="Processes")
    assert table.title == "TOOL 1.2  Drv 3.4"
    assert table.records == (
        {"Card": "0", "Card Name": "first", "Bus": "1b:00", "Use": "1/2"},
        {"Card": "1", "Card Name": "second", "Bus": "2b:00", "Use": "3 / 40"},
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("Card Name", "Card Colour", "unknown header: ['| Card  Card Colour | |']"),
        ("| Bus  ", "| Bus Lanes", "unknown header: ['| Bus Lanes"),
        ("Use |", "Used |", "unknown header"),
        ("Card", "Board", "unknown header"),
        ("|", "/", "no table with a known header: '/ TOOL 1.2"),
        ("| Bus             | Use |", "| Bus | Use | Use |", "differ in cells"),
        ("| 1b:00 ", "| one", "does not fit its header: '| one"),
        ("| 1/2 |", "| 1/2 | 3 |", "does not fit its header"),
        ("| 2b:00           | 3 / 40 |\n", "", "ends within a record"),
    ],
)
def test_what_is_not_known_is_refused(before: str, after: str, words: str) -> None:
    assert before in TABLE
    with pytest.raises(FormatError, match="tool") as caught:
        parse_framed_table("tool", TABLE.replace(before, after), COLUMNS, height=2, until="Processes")
    assert words in str(caught.value)


def test_table_without_records_is_refused() -> None:
    head = TABLE[: TABLE.index("| 0 ")]
    with pytest.raises(FormatError, match="ends within a record"):
        parse_framed_table("tool", head, COLUMNS, height=2)


def test_needed_column_must_be_there() -> None:
    assert parse_framed_table("tool", TABLE, COLUMNS, height=2, needed=("Card", "Use"), until="Processes").records
    with pytest.raises(FormatError, match="tool printed a table without the column 'Heat': Card, Card Name, Bus, Use"):
        parse_framed_table("tool", TABLE, COLUMNS | {"Heat": "x"}, height=2, needed=("Card", "Heat"), until="Processes")


def test_outer_frames_may_be_stars() -> None:
    starred = "\n".join(f"*{line[1:-1]}*" if line.startswith("|") else line for line in TABLE.splitlines())
    read = [parse_framed_table("tool", text, COLUMNS, height=2, until="Processes") for text in (TABLE, starred)]
    assert read[0] == read[1]

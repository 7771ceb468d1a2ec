"""What happens to the answer of a vendor's tool between two of its releases: the cases every vendor's tests go through.

    @pytest.mark.parametrize("damage", damages("Card", "Memory-Usage"))
    def test_damaged_table_is_refused(damage, device_fixture):
        with pytest.raises(FormatError, match="cnmon"):
            parse_table(damage(device_fixture("cnmon-5.10.22-mlu370.txt")))

    @pytest.mark.parametrize("respace", RESPACINGS)
    def test_columns_may_move(respace, device_fixture): parse(respace(text)) == parse(text)

    @pytest.mark.parametrize("failure", FAILURES)
    def test_failing_tool_is_named(failure, fake_tool): fake_tool.add("cnmon", answers, failure=failure)

They prove that a parser refuses by name what it does not know; they cannot prove that a layout we have not seen is
refused rather than misread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import StrEnum

import pytest
from _pytest.mark.structures import ParameterSet

Damage = Callable[[str], str]

_STRANGER = """\
+----------------------------+
| OTHER-SMI 1.0              |
| Gadget  Colour   Size      |
| 0       green    12 / 34   |
+----------------------------+
"""


class Failure(StrEnum):
    """How a tool fails as a whole; see FakeTools.add."""

    STATUS = "rc=1"  # says why on standard error and ends with status 1
    HUNG = "hung"  # never ends by itself: give the reader a short timeout
    EMPTY = "empty"  # prints nothing and is content


FAILURES = [pytest.param(failure, id=failure.value) for failure in Failure]


def damages(*header_words: str) -> list[ParameterSet]:
    """List damages as arguments of `parametrize`, each of which a parser must refuse with a FormatError.

    `header_words` are words (columns, keys) without any one of which the answer is not understood: nothing at all, the
    answer cut off in the middle of the first of them, another program's table, and each of them under another name.
    """
    cases: list[tuple[str, Damage]] = [
        ("empty", lambda _: ""),
        ("blank", lambda _: "\n   \n\n"),
        ("stranger", lambda _: _STRANGER),
        ("cut in the header", lambda text: _cut_in(text, header_words[0])),
    ]
    cases += [(f"no {word!r}", _renamer(word)) for word in header_words]
    return [pytest.param(damage, id=name) for name, damage in cases]


def truncate(text: str) -> str:
    """Cut the answer off in the middle of its last line that holds a letter or a digit.

    Part of damages() it is not: in a `key : value` answer the loss of the last key cannot be seen.
    """
    lines = text.rstrip().splitlines()
    while lines and not re.search(r"\w", lines[-1]):
        lines.pop()
    assert lines, "there is nothing to cut"
    last = lines[-1].rstrip(" |")
    return "\n".join([*lines[:-1], last[: len(last) // 2].rstrip(" |")])


def truncate_json(text: str) -> str:
    """Cut a JSON answer off in its middle."""
    return text[: len(text) // 2]


def widen(text: str) -> str:
    """Give every gap between columns three more spaces and every frame two; indents stay, since they may nest keys."""
    return "\n".join(_respace(line, gap=lambda spaces: spaces + "   ", frame="  |  ") for line in text.splitlines())


def narrow(text: str) -> str:
    """Make every gap between columns two spaces wide and take the space off the frames."""
    return "\n".join(_respace(line, gap=lambda _: "  ", frame="|") for line in text.splitlines())


def reorder_json(text: str) -> str:
    """Write a JSON answer with other spacing and with the keys of every object in reverse."""
    return json.dumps(_reverse_keys(json.loads(text)), indent=3, separators=(" ,", " : "))


RESPACINGS = [pytest.param(widen, id="widened"), pytest.param(narrow, id="narrowed")]


def _cut_in(text: str, word: str) -> str:
    return text[: text.index(word) + len(word) // 2]


def _renamer(word: str) -> Damage:
    assert re.search("[A-Za-z0-9]", word), "a word of signs only cannot be renamed"
    other = re.sub("[A-Za-z0-9]", "q", word)  # signs stay, so that JSON stays JSON

    def rename(text: str) -> str:
        assert word in text, f"the fixture has no {word!r}"
        return text.replace(word, other)

    return rename


def _respace(line: str, *, gap: Callable[[str], str], frame: str) -> str:
    indent = line[: len(line) - len(line.lstrip(" "))]
    body = re.sub(r" {2,}", lambda match: gap(match[0]), line.strip())
    head, tail = body.startswith("|"), body.endswith("|") and len(body) > 1
    inner = body[1 if head else 0 : -1 if tail else None]
    inner = re.sub(r" *\| *", lambda _: frame, inner).strip()
    pad = frame[: frame.index("|")]
    return indent + ("|" + pad if head else "") + inner + (pad + "|" if tail else "")


def _reverse_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: _reverse_keys(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [_reverse_keys(entry) for entry in value]
    return value

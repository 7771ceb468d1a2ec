"""Finding the JSON in what a tool printed."""

from __future__ import annotations

import pytest

from xinf.device.json_answer import read_json
from xinf.device.tool import FormatError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1]}\n', {"a": [1]}),
        ('\n\n[{"a": 1},\n{"b": 2}]\n\n', [{"a": 1}, {"b": 2}]),
        ('[WARNING] no group "render"\n{"a": 1}', {"a": 1}),
        ("{driver} sleeps\n[1] waits\n[\n]\n", []),
        ('WARNING: {0}\n{\n  "a": {\n"b": 1}\n}\n', {"a": {"b": 1}}),
    ],
)
def test_value_that_ends_the_text_is_found(text: str, value: object) -> None:
    assert read_json(text, "x-smi") == value


@pytest.mark.parametrize(
    "text", ["", "\n", "no JSON", '{"a": 1} and more', '{"a": 1}\n{"b": ', ' {"a": 1}', "x{}", "[" * 100_000]
)
def test_anything_else_is_refused_by_the_tools_name(text: str) -> None:
    with pytest.raises(FormatError, match="x-smi: not JSON"):
        read_json(text, "x-smi")

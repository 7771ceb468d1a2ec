"""The damages and the fake tools themselves: a mutation that changes nothing would prove nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, Damage, Failure, damages, narrow, reorder_json, truncate, widen
from xinf.device.tool import ToolError, run_tool

TABLE = """\
+----------------+----------------------+
| Card  Name     | Memory-Usage         |
| 0     MLU X8   |   3 MiB/ 20638 MiB   |
+----------------+----------------------+
"""


@pytest.mark.parametrize("damage", damages("Card", "Memory-Usage"))
def test_every_damage_changes_the_answer(damage: Damage) -> None:
    assert damage(TABLE) != TABLE
    assert not ("Card" in damage(TABLE) and "Memory-Usage" in damage(TABLE))


def test_respacing_moves_columns_and_keeps_words() -> None:
    assert "| 0     MLU X8   |" in TABLE
    assert "|  0        MLU X8  |  3 MiB/ 20638 MiB  |" in widen(TABLE)
    assert "|0  MLU X8|3 MiB/ 20638 MiB|" in narrow(TABLE)
    assert widen(TABLE).split() == TABLE.split()


def test_indents_are_kept() -> None:
    assert widen("    Dev Name   : S60") == "    Dev Name      : S60"
    assert narrow("    Dev Name   : S60") == "    Dev Name  : S60"


def test_truncation_cuts_the_last_row() -> None:
    cut = truncate(TABLE)
    assert "Memory-Usage" in cut
    assert "20638" not in cut
    assert not cut.endswith("|")


def test_reordering_reverses_keys() -> None:
    assert reorder_json('{"a": 1, "b": {"c": 2, "d": [3]}}').replace(" ", "").replace("\n", "") == (
        '{"b":{"d":[3],"c":2},"a":1}'
    )


def test_tool_answers_by_its_arguments(fake_tool: FakeTools) -> None:
    path = fake_tool.add("cnmon", {"info -m": "memory\n", "": "table\n"}, stderr="noise", files={"info -j": ("x", "y")})
    assert run_tool([str(path), "info", "-m"]) == "memory\n"
    assert run_tool(["cnmon"]) == "table\n"
    assert run_tool(["cnmon", "info", "-j"], output="x") == "y"
    assert fake_tool.calls("cnmon") == ["info -m", "", "info -j"]
    with pytest.raises(ToolError, match="what is info -z"):
        run_tool(["cnmon", "info", "-z"])


@pytest.mark.parametrize("failure", FAILURES)
def test_tool_fails_as_asked(failure: Failure, fake_tool: FakeTools) -> None:
    fake_tool.add("cnmon", {"*": "table\n"}, failure=failure)
    if failure is Failure.EMPTY:
        assert run_tool(["cnmon"]) == ""
        return
    words = "status 1: cnmon: cannot open" if failure is Failure.STATUS else "did not end within 0.2 s"
    with pytest.raises(ToolError, match=words):
        run_tool(["cnmon"], timeout_s=0.2)


def test_hung_tool_is_ended_with_its_children(fake_tool: FakeTools, tmp_path: Path) -> None:
    path = fake_tool.add("slow", {"*": ""}, failure=Failure.HUNG)
    path.write_text(f"#!/bin/sh\nsleep 120 & echo $! > {tmp_path}/pid; wait\n")
    with pytest.raises(ToolError, match="did not end"):
        run_tool(["slow"], timeout_s=1)
    child = (tmp_path / "pid").read_text().strip()
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", child], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert state in ("", "Z")  # gone, or waiting to be collected by init

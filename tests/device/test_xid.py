"""The table of Xids: its shape, the numbers that matter most, and that the documentation shows all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.device.xid import ROWS, XIDS, Verdict, XidRow, find_xid


def test_rows_are_in_order_and_whole() -> None:
    firsts = [row.codes[0] for row in ROWS]
    codes = [code for row in ROWS for code in row.codes]
    assert firsts == sorted(firsts)
    assert all(row.codes == tuple(sorted(row.codes)) for row in ROWS)
    assert len(codes) == len(set(codes)) == len(XIDS)
    assert all(row.meaning and row.remedy for row in ROWS)


@pytest.mark.parametrize("code", [46, 48, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 143, 151, 155, 156, 158])
def test_broken_hardware_takes_no_new_work(code: int) -> None:
    assert find_xid(code).verdict is Verdict.UNUSABLE


@pytest.mark.parametrize("code", [13, 31, 43, 45, 68, 94, 104, 135])
def test_faults_of_an_application_are_not_the_devices(code: int) -> None:
    assert find_xid(code).verdict is Verdict.APPLICATION


def test_number_that_nobody_knows_is_told_as_such() -> None:
    assert find_xid(99999).verdict is Verdict.NOTICE
    assert "not known" in find_xid(99999).meaning


def numbers(row: XidRow) -> str:
    """`39-41, 70`: runs of three and more are written as such."""
    runs: list[list[int]] = []
    for code in row.codes:
        if runs and code == runs[-1][-1] + 1:
            runs[-1].append(code)
        else:
            runs.append([code])
    written = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(written)


def test_documentation_shows_every_row(checkout: Path) -> None:
    text = (checkout / "docs/reference/devices.md").read_text()
    lines = [f"| {numbers(row)} | {row.verdict} | {row.meaning} | {row.remedy} |" for row in ROWS]
    assert [line for line in lines if line not in text] == []

"""The table of Xids: its shape, the numbers that matter most, and that the documentation shows all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.device.xid import XIDS, Verdict, find_xid


def test_rows_are_in_order_and_whole() -> None:
    codes = [xid.code for xid in XIDS]
    assert codes == sorted(set(codes))
    assert all(xid.meaning and xid.remedy for xid in XIDS)


@pytest.mark.parametrize("code", [48, 64, 74, 79, 95, 119, 120, 140])
def test_broken_hardware_takes_no_new_work(code: int) -> None:
    assert find_xid(code).verdict is Verdict.UNUSABLE


@pytest.mark.parametrize("code", [13, 31, 43, 45, 68, 94])
def test_faults_of_an_application_are_not_the_devices(code: int) -> None:
    assert find_xid(code).verdict is Verdict.APPLICATION


def test_number_that_nobody_knows_is_told_as_such() -> None:
    assert find_xid(99999).verdict is Verdict.NOTICE
    assert "not known" in find_xid(99999).meaning


def test_documentation_shows_every_row(checkout: Path) -> None:
    text = (checkout / "docs/reference/devices.md").read_text()
    missing = [xid.code for xid in XIDS if f"| {xid.code} | {xid.verdict} | {xid.meaning} |" not in text]
    assert missing == []

"""A child's one line to its supervisor."""

from __future__ import annotations

import os

import pytest

from xinf.core.errors import StoreHeld
from xinf.serve.report import VARIABLE, Report, read_report


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> int:
    reading, writing = os.pipe()
    monkeypatch.setenv(VARIABLE, str(writing))
    return reading


async def test_ready_arrives_once(pipe: int) -> None:
    report = Report()
    assert report.is_heard
    report.ready()
    assert not report.is_heard
    report.fail(StoreHeld("too late"))
    assert await read_report(pipe)


async def test_error_arrives_as_itself(pipe: int) -> None:
    Report().fail(StoreHeld("held by process 7", remedy="stop it", pid=7))
    with pytest.raises(StoreHeld, match="held by process 7") as caught:
        await read_report(pipe)
    assert caught.value.fields["pid"] == 7


async def test_death_without_a_word_is_not_ready(pipe: int) -> None:
    report = Report()
    assert report._fd is not None
    os.close(report._fd)
    assert not await read_report(pipe)


def test_variable_is_not_handed_on(pipe: int) -> None:
    report = Report()
    assert VARIABLE not in os.environ
    report.ready()
    os.close(pipe)

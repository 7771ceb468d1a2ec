"""How long a child that dies is waited for before its next start, and what a failed first start says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from xinf.core.errors import Unavailable
from xinf.serve.child import BACKOFF_FIRST_S, BACKOFF_MAX_S, STEADY_S, Child, ChildSpec, next_backoff_s


def test_backoff_doubles_up_to_its_limit() -> None:
    waits = [0.0]
    for _ in range(12):
        waits.append(next_backoff_s(waits[-1], lived_s=0.0))
    assert waits[1] == BACKOFF_FIRST_S
    assert waits[2] == 2 * BACKOFF_FIRST_S
    assert waits[-1] == BACKOFF_MAX_S


def test_backoff_starts_again_after_a_steady_life() -> None:
    assert next_backoff_s(BACKOFF_MAX_S, lived_s=STEADY_S) == BACKOFF_FIRST_S


async def test_first_start_that_ends_without_a_word_is_an_error() -> None:
    spec = ChildSpec(
        name="clock", module="this_module_does_not_exist", environ=os.environ, stop_timeout_s=5, has_report=True
    )
    child = Child(spec)
    with pytest.raises(Unavailable, match="clock ended with status 1 before it was ready"):
        await child.start(30)
    await child.stop(asyncio.Event())


async def test_first_start_that_says_nothing_is_given_up() -> None:
    spec = ChildSpec(
        name="server",
        module="http.server",
        arguments=("0", "--bind", "127.0.0.1"),
        environ=os.environ,
        stop_timeout_s=5,
        has_report=True,
    )
    child = Child(spec)
    with pytest.raises(Unavailable, match="not ready within"):
        await child.start(0.5)
    await child.stop(asyncio.Event())
    assert child.pid is None


async def test_modules_of_the_working_directory_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "runpy", "xinf"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    child = Child(ChildSpec(name="clock", module="queue", environ=os.environ, stop_timeout_s=5, has_report=True))
    with pytest.raises(Unavailable, match="clock ended with status 0 before it was ready"):
        await child.start(30)
    await child.stop(asyncio.Event())

"""The store's own commands, on a live store and on a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

from tests.cli.conftest import Control


def test_status_of_a_live_store(control: Control, xinf: Callable[..., Result], xinf_json: Callable[..., Any]) -> None:
    assert xinf_json("meta", "status")["backend"] == "lmdb"
    assert "revision  0" in xinf("meta", "status").stdout


def test_live_store_is_checked_and_copied(control: Control, xinf: Callable[..., Result], short_dir: Path) -> None:
    xinf("key", "create")
    assert xinf("meta", "check").stdout == "the store is sound\n"
    done = xinf("meta", "backup", str(short_dir / "copy"))
    assert "wrote revision 1" in done.stdout
    assert (short_dir / "copy" / "data.mdb").is_file()
    again = xinf("meta", "backup", str(short_dir / "copy"))
    assert again.exit_code == 1
    assert "not empty" in again.stderr


def test_file_is_checked_when_nothing_runs(xinf: Callable[..., Result]) -> None:
    xinf("key", "create")
    assert xinf("meta", "check").stdout == "the store is sound\n"


def test_damaged_file_is_status_1_with_the_problem(xinf: Callable[..., Result], short_dir: Path) -> None:
    xinf("key", "create")
    with (short_dir / "data" / "meta" / "data.mdb").open("r+b") as file:
        file.write(b"\xff" * 8192)
    done = xinf("meta", "check")
    assert done.exit_code == 1
    assert "1 problem" in done.stdout


def test_no_store_is_an_error(xinf: Callable[..., Result]) -> None:
    done = xinf("meta", "check")
    assert done.exit_code == 1
    assert "there is no store" in done.stderr

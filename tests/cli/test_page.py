"""Help pages as they are read: at the widths of terminals, nothing cut, nothing wrapped twice."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import pytest
import typer
from typer.testing import CliRunner

from tests.cli.test_app import COMMANDS
from xinf.cli.app import app
from xinf.cli.page import Page, flow, lay_out

WIDTHS = (80, 100, 120)
GROUPS = (("key",), ("meta",), ("engine",), ("config",), ("bench",))
PAGES = ((), *GROUPS, *COMMANDS)


@functools.cache
def read_page(command: tuple[str, ...], width: int) -> list[str]:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(width)})
    assert done.exit_code == 0
    return done.stdout.splitlines()


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """`page("launch")`: the lines of its help, in a terminal of one of the widths."""
    return lambda *command: read_page(command, request.param)


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of prose lines between empty ones: what is in no panel."""
    run: list[str] = []
    for line in [*lines, ""]:
        if line.strip() and line.strip()[0] not in "╭│╰":
            run.append(line.strip())
        elif run:
            yield run
            run = []


@pytest.mark.parametrize("command", PAGES, ids=lambda command: " ".join(command) or "xinf")
def test_no_page_cuts_a_word(command: tuple[str, ...], page: Callable[..., list[str]]) -> None:
    assert [line for line in page(*command) if "…" in line] == []


@pytest.mark.parametrize("command", PAGES, ids=lambda command: " ".join(command) or "xinf")
def test_every_line_of_prose_is_as_full_as_it_can_be(command: tuple[str, ...], page: Callable[..., list[str]]) -> None:
    """A line that ends early was wrapped in the source and then again by the terminal."""
    lines = page(*command)
    width = len(lines[0])
    for run in paragraphs(lines):
        for line, following in itertools.pairwise(run):
            assert len(line) + 1 + len(following.split()[0]) > width - 2, (line, following)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_example_can_be_copied_as_one_line(command: tuple[str, ...], page: Callable[..., list[str]]) -> None:
    (example,) = [run for run in paragraphs(page(*command)) if run[0].startswith("Example: ")]
    assert len(example) == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_names_what_it_takes(command: tuple[str, ...]) -> None:
    found = typer.main.get_command(app)
    for name in command:
        found = found.commands[name]  # type: ignore[attr-defined]
    assert isinstance(found, Page)
    with found.make_context("xinf", [], resilient_parsing=True) as context:
        options = [each for each in found.get_params(context) if each.param_type_name == "option"]
    assert [each.name for each in options if bool(each.metavar) is bool(getattr(each, "is_flag", False))] == []


def test_usage_has_no_braces(page: Callable[..., list[str]]) -> None:
    assert any(line.strip().endswith(" cordon [OPTIONS] NODE") for line in page("cordon"))


def test_lines_of_the_source_become_paragraphs() -> None:
    text = """One
    two.

    Three
    four:
      - five
      - six
    """
    assert flow(text) == "One two.\n\nThree four:\n  - five\n  - six"
    assert flow(None) is None


def test_a_group_inside_a_group_is_laid_out_too() -> None:
    inner, outer = typer.Typer(), typer.Typer()

    @inner.command()
    def one(loud: bool = typer.Option(False, "--loud", help="Say it.")) -> None:
        """Say
        it."""

    @inner.command()
    def two() -> None:
        """Say it twice."""

    outer.add_typer(inner, name="inner")
    outer.callback()(lambda: None)
    lay_out(outer)
    said = CliRunner().invoke(outer, ["inner", "one", "--help"]).stdout
    assert "Say it." in said
    assert "<bool>" not in said
    assert "<bool>" not in CliRunner().invoke(outer, ["inner", "--help"]).stdout

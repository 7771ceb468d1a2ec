"""`xinf version`, and `xinf --version` as other programs have it."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

import xinf
from xinf.cli.options import Json
from xinf.cli.table import print_json


def _tell(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


def root(
    is_asked: Annotated[  # noqa: ARG001  # its callback has seen to it
        bool, typer.Option("--version", help="Print the version.", callback=_tell, is_eager=True)
    ] = False,
) -> None:
    # No docstring: it would stand in the place of the app's help.
    return


def version(json: Json = False) -> None:
    """Print the version."""
    if json:
        print_json({"xinf": xinf.__version__, "python": platform.python_version(), "machine": platform.machine()})
    else:
        print(f"xinf {xinf.__version__} (Python {platform.python_version()}, {platform.machine()})")

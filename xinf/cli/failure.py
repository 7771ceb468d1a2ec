"""How commands fail: one sentence and what to do, in red on standard error, exit status 1.

Status 2 is for a command line that cannot be read. Standard output stays clean for scripts. A traceback is for those
who set XINF_DEBUG=1, colours for those who have not set NO_COLOR.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from xinf.cli.page import Pages
from xinf.core.errors import EngineStartFailed, XinfError

INTERRUPTED = 130


class Commands(Pages):
    """The outermost group: every error of a command passes here once."""

    def invoke(self, ctx: Any) -> Any:
        if os.environ.get("NO_COLOR"):
            ctx.color = False  # of rich's pages rich itself sees to it
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a full disk is a sentence
            return result
        except XinfError as error:
            if os.environ.get("XINF_DEBUG"):
                raise
            print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                typer.echo(err=True)  # the terminal shows ^C; the shell's prompt begins a line of its own
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # `xinf logs | head`: the reader has enough.
            _discard_output()
            raise typer.Exit(0) from None
        except OSError as error:
            if os.environ.get("XINF_DEBUG"):
                raise
            _discard_output()
            what = "" if error.filename is None else f"{error.filename}: "
            print_error(XinfError(f"{what}{error.strerror or error}"))
            raise typer.Exit(1) from None


def _discard_output() -> None:
    """What is still buffered must not fail once more at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass  # it is no file, as in a test


def print_error(error: XinfError) -> None:
    """Print an error for a person."""
    if isinstance(error, EngineStartFailed):
        _print_log_tail(error)
    typer.secho(f"error: {error.message}", fg=typer.colors.RED, err=True)
    if error.remedy:
        typer.secho(f"  {error.remedy}", fg=typer.colors.RED, err=True)


def _print_log_tail(error: EngineStartFailed) -> None:
    tail = str(error.fields.get("log_tail") or "")
    if not tail:
        return
    typer.secho("the last lines of its log:", dim=True, err=True)
    for line in tail.splitlines():
        typer.secho(f"  | {line}", dim=True, err=True)
    if error.fields.get("log_path"):
        typer.secho(f"  (all of it: xinf logs {error.fields.get('replica')})", dim=True, err=True)

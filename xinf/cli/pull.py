"""`xinf pull`: fetch a model to this host before an engine needs it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, Json, Settings
from xinf.cli.session import open_session
from xinf.cli.table import print_json
from xinf.core.errors import InvalidRequest
from xinf.core.units import format_bytes

_REDRAW_S = 0.2
_LOG_EVERY_S = 10.0


def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Org/Name, hf://Org/Name, modelscope://Org/Name; @REVISION at its end."),
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", metavar="REVISION", help="Branch, tag or commit.", show_default="the hub's default branch"
        ),
    ] = None,
    json: Json = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Fetch a model; one that was interrupted goes on where it ended."""
    from xinf.registry import SCRIPTED, download_model, looks_like_path

    if looks_like_path(model) and not Path(model).expanduser().exists():
        raise InvalidRequest(
            f"{model} is of this host: there is nothing to fetch, and nothing there either",
            remedy="name a model of a hub: Org/Name",
            param="model",
        )
    if looks_like_path(model) or model == SCRIPTED:
        raise InvalidRequest(
            f"{model} is of this host: there is nothing to fetch", remedy="launch it as it is", param="model"
        )
    chosen = open_session(config, None, settings=settings).config
    meter = _Meter()
    try:
        done = download_model(model, revision=revision, config=chosen.registry, on_progress=meter.show)
    finally:
        meter.end()
    if json:
        print_json({"model": model, "directory": str(done.directory), "revision": done.revision,
                    "n_files": done.n_files, "n_bytes": done.n_bytes})  # fmt: skip
        return
    print(done.directory)
    typer.secho(f"{done.n_files} files, {format_bytes(done.n_bytes)}, revision {done.revision}", dim=True, err=True)


class _Meter:
    """One line on a terminal that is redrawn, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begun_s = time.monotonic()
        self._shown_s = self._begun_s
        self._at_start_bytes: int | None = None

    def show(self, progress: object) -> None:
        from xinf.registry import Progress

        assert isinstance(progress, Progress)
        now_s = time.monotonic()
        if self._at_start_bytes is None:
            self._at_start_bytes = progress.done_bytes
        if now_s - self._shown_s < (_REDRAW_S if self._is_terminal else _LOG_EVERY_S):
            return
        self._shown_s = now_s
        share = f"{100 * progress.done_bytes / progress.total_bytes:.0f} %" if progress.total_bytes else ""
        rate = (progress.done_bytes - self._at_start_bytes) / max(now_s - self._begun_s, 1e-3)
        done, total = format_bytes(progress.done_bytes), format_bytes(progress.total_bytes)
        line = f"{share} {done} of {total}, {format_bytes(int(rate))}/s"
        sys.stderr.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")

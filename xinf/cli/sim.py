"""`xinf sim`: a simulated engine on its own, over HTTP."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from xinf.cli.options import EngineArgs, MaxModelLen
from xinf.cli.wish import parse_engine_args
from xinf.core.records import EngineSpec


def sim(
    http: Annotated[  # noqa: ARG001
        bool, typer.Option("--http", help="Over plain HTTP, the default and the only way.", show_default=False)
    ] = True,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, metavar="PORT", help="Port; 0 for any free one.")
    ] = 8000,
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="Name it serves, or a model directory for its chat template."),
    ] = "sim",
    max_model_len: MaxModelLen = None,
    engine_args: EngineArgs = None,
) -> None:
    """Run a simulated engine in the foreground, without gateway or scheduler: for clients, tests and measurements.

    It is the engine that `--engine sim` runs, with the same arguments, and answers what other routers ask an engine
    before they use it. A development tool: whoever reaches the address may use it.
    """
    import msgspec

    spec = EngineSpec(
        model=model, engine="sim", max_model_len=max_model_len, engine_args=parse_engine_args(engine_args or ())
    )
    # In our place, not as a child: signals reach it without a detour, and its exit status is ours.
    arguments = [host, str(port), msgspec.json.encode(spec).decode()]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "xinf.engine.sim_http", *arguments])

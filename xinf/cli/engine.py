"""`xinf engine install | ls`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Json
from xinf.cli.session import open_session
from xinf.cli.table import print_json, print_table
from xinf.core.errors import InvalidRequest

app = typer.Typer(help="Engine environments: Python environments of their own, one per engine.", no_args_is_help=True)

EnginesDir = Annotated[Path | None, typer.Option("--engines-dir", metavar="DIR", help="Where the environments are.")]


@app.command(epilog="Example: [b]xinf engine install vllm[/b]")
def install(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="Which engine.")] = "vllm",
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="cuda, cpu, or auto: what this host has.")
    ] = "auto",
    engines_dir: EnginesDir = None,
    json: Json = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Install the engine that fits this host, or bring it up to date; a second time takes a moment."""
    from xinf.agent import install_environment

    if engine == "sim":
        raise InvalidRequest("sim is part of xinf: there is nothing to install", param="engine")
    directory = _directory(config, data_dir, engines_dir)
    made = install_environment(
        engine,
        device=device,
        engines_dir=directory,
        progress=lambda sentence: print(sentence, file=sys.stderr, flush=True),
    )
    if json:
        print_json(made)
    else:
        print(f"{made.name}: {engine} {made.version or ''} for {', '.join(made.device_kinds)} in {directory}")


@app.command("ls", epilog="Example: [b]xinf engine ls[/b]")
def list_engines(
    engines_dir: EnginesDir = None, json: Json = False, data_dir: DataDir = None, config: ConfigFile = None
) -> None:
    """List the environments that a worker on this host would find."""
    from xinf.agent import find_environments

    found = find_environments(_directory(config, data_dir, engines_dir))
    if json:
        print_json(found)
        return
    rows = [
        (one.name, ", ".join(one.engines), one.version or "-", ", ".join(one.device_kinds) or "any", one.python)
        for one in found
    ]
    print_table(("NAME", "ENGINES", "VERSION", "DEVICES", "PYTHON"), rows)


def _directory(config: Path | None, data_dir: Path | None, engines_dir: Path | None) -> Path:
    from xinf.agent import engines_dir as configured

    flags = {"agent.engines_dir": str(engines_dir) if engines_dir else None}
    return configured(open_session(config, data_dir, flags=flags).config.agent)

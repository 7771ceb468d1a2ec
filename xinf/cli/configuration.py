"""`xinf config show | check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Settings
from xinf.cli.session import open_session
from xinf.cli.table import plain, print_json

app = typer.Typer(help="The configuration: defaults, file, environment, flags.", no_args_is_help=True)


@app.command(epilog="Example: [b]xinf config show[/b]")
def show(json: Json = False, data_dir: DataDir = None, config: ConfigFile = None, settings: Settings = None) -> None:
    """Print the configuration that holds here, as TOML; sizes are bytes, durations seconds."""
    found = plain(open_session(config, data_dir, settings=settings).config)
    if json:
        print_json(found)
        return
    sections = {key: value for key, value in found.items() if isinstance(value, dict)}
    for key, value in found.items():
        if key not in sections:
            print(f"{key} = {_toml(value)}")
    for name, section in sections.items():
        print(f"\n[{name}]")
        for key, value in section.items():
            print(f"{key} = {_toml(value)}")


@app.command(epilog="Example: [b]xinf config check /etc/xinf.toml[/b]")
def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A configuration file.")] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Check a configuration file, and the environment with it."""
    chosen = file or config
    open_session(chosen, data_dir)
    print(f"{chosen or 'the environment'} is valid")


def _toml(value: object) -> str:
    # JSON's strings, numbers and booleans are TOML's too.
    return msgspec.json.encode(value).decode()

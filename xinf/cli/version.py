"""`xinf version`."""

from __future__ import annotations

import platform

import xinf
from xinf.cli.options import Json
from xinf.cli.table import print_json


def version(json: Json = False) -> None:
    """Print the version."""
    if json:
        print_json({"xinf": xinf.__version__, "python": platform.python_version(), "machine": platform.machine()})
    else:
        print(f"xinf {xinf.__version__} (Python {platform.python_version()}, {platform.machine()})")

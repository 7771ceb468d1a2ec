"""The `xinf` command: parses what was typed, calls the package that does it, prints what came of it.

Owns options, help, tables and the wording of errors; decides nothing. One file per command or group of commands.

Invariant: importing this package loads neither torch, vllm, grpc, granian, lmdb nor numpy; commands import what they
need when they run, so that `xinf --help` and completion stay quick.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; does not return."""
    from xinf.cli.app import app

    app(prog_name="xinf")

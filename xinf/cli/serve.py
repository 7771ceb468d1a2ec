"""`xinf serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Front, Settings
from xinf.cli.session import open_session, run


def serve(
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on (default: 127.0.0.1).")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", metavar="PORT", help="Port (default: 8080).")] = None,
    front: Front = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Gateway processes (default: by cores).")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Serve without API keys where others can reach it.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address for workers on other hosts, host:port.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Run the gateway and the control process of an installation, in the foreground.

    Ctrl-C lets open requests end and stops both. Engines go on.
    """
    from xinf.core import log
    from xinf.serve import serve as run_supervisor

    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.front": front,
        "gateway.workers": workers,
        "gateway.insecure": insecure,
        "control.listen": listen,
        "log_level": log_level,
    }
    session = open_session(config, data_dir, settings=settings, flags=flags)
    log.configure("serve", level=session.config.log_level)
    run(run_supervisor(session.config, lambda url: print(f"ready: {url}", flush=True)))

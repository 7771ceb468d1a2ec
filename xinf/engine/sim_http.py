"""`python -m xinf.engine.sim_http HOST PORT ENGINE_SPEC_JSON`: a simulated engine on plain HTTP; `xinf sim` starts it.

The same adapter as behind a shim, without gRPC: for clients, and for gateways that talk HTTP to their engines, so that
they and xinf can be measured against one and the same engine. A development tool: no keys, no TLS, one model.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from xinf.core import log
from xinf.core.errors import EngineStartFailed, XinfError
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec
from xinf.core.shim import ShimSpec
from xinf.engine.sim_adapter import SimAdapter
from xinf.engine.sim_connection import Connection, Face
from xinf.engine.sim_probes import make_probes

EXIT_STOPPED = 0
EXIT_START_FAILED = 1
EXIT_BAD_USAGE = 2
EXIT_ENGINE_LOST = 3

# Connections that may wait to be accepted: load generators open a thousand at once.
_BACKLOG = 4096


def main(argv: list[str]) -> int:
    """Serve until INT or TERM. Returns the exit status."""
    import uvloop

    try:
        host, port, engine = argv[0], int(argv[1]), msgspec.json.decode(argv[2], type=EngineSpec)
    except (IndexError, ValueError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"usage: python -m xinf.engine.sim_http HOST PORT ENGINE_SPEC_JSON  ({error})\n")
        return EXIT_BAD_USAGE
    log.configure("sim")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(engine, host=host, port=port))
    except XinfError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"  {error.remedy}\n" if error.remedy else ""))
        return EXIT_START_FAILED


async def serve(engine: EngineSpec, *, host: str, port: int) -> int:
    """Serve one engine on `host` and `port`, 0 for any free one. Returns the exit status. Raises: EngineStartFailed."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not stop.done():
            stop.set_result(status)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, EXIT_STOPPED)
    adapter = SimAdapter(_spec(engine))
    adapter.build(lambda _: None)
    description = await adapter.open()
    await adapter.warm_up()
    face = Face(adapter, make_probes(adapter, description), lambda: end(EXIT_ENGINE_LOST))
    server = await _listen(loop, face, host, port)
    gc.collect()
    gc.freeze()  # what exists now stays: collections need not look at it
    address = server.sockets[0].getsockname()
    sys.stdout.write(f"ready: http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}\n")
    sys.stdout.flush()
    status = await stop
    server.close()
    # One turn of the loop, for the answers that say why the engine is lost.
    await asyncio.sleep(0)
    face.close()
    await adapter.close()
    return status


async def _listen(loop: asyncio.AbstractEventLoop, face: Face, host: str, port: int) -> asyncio.Server:
    try:
        server: Any = await loop.create_server(lambda: Connection(face), host, port, backlog=_BACKLOG)
    except OSError as error:
        raise EngineStartFailed(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            remedy="choose another --port, or see which process listens there",
            cause="bad_arguments",
        ) from error
    return server  # type: ignore[no-any-return]


def _spec(engine: EngineSpec) -> ShimSpec:
    """What a shim would be told; the adapter looks at the engine alone."""
    here = str(Path.cwd())
    return ShimSpec(
        replica=ReplicaId("sim"), start_id="sim", engine=engine, devices=("cpu",), listen="", directory=here
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

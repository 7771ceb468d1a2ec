"""What does a request cost on a Link over grpc.aio, and over HTTP/2 on the event loop (xinf/link), at either end?

`python -m benchmarks.bench_link_transport [--repeats 5] [--seconds 0.5] [--transports h2 h2-native] [--closed]`

Processes: two engines that answer at once (our codec; a grpc.aio server, and for `*-native` our server's end behind a
Door), a gateway for each transport that does nothing but pass 0.5 KB on (our codec), and the load: closed loops of 1,
64 and 256, and arrivals at a fixed rate. All gateways are up, one is under load at a time, in rotated order. Read
ratios, not absolute times. `h2-data` lets the next message go with anything the engine sends, however little waits;
`h2-unpaced` sends in every turn of the loop, `h2-ping` when a PING behind the last message came back: what the Link's
own pacing (`h2`) is compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from benchmarks.pin import GATEWAY_CPU, LOAD_CPU, pinned
from xinf._fast.frame import decode_engine_frame, decode_gateway_frame
from xinf._fast.framewriter import EngineFrameWriter, GatewayFrameWriter, encode_head, encode_headers
from xinf.bench import cpu_s
from xinf.link import ClientStream, Door, ServerStream
from xinf.link import h2frames as h2

METHOD = "/xinf.engine.v1.EngineService/Link"
HEADERS = [(b"content-type", b"application/json")]
BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 430)
ANSWER = b"y" * 300
FRAME_BYTES = 4 << 20
STATISTICS = b"statistics"
TRANSPORTS = ("grpc.aio", "h2", "h2-data", "h2-unpaced", "h2-ping", "h2-native", "h2-unpaced-native")
NATIVE = "-native"
# Closed loops of so many, and arrivals per second, which need more connections than are ever busy.
CLOSED, OPEN = (1, 64, 256), (1000, 4000, 10_000)
N_OPEN_CONNECTIONS = 300


def engine_of(transport: str) -> str:
    """The process that serves it, also its socket."""
    return "engine" + NATIVE * transport.endswith(NATIVE)


# ---- engine --------------------------------------------------------------------------------------------------------


async def engine(directory: Path) -> None:
    """Answer every request at once, in one frame for each frame that came."""
    block = encode_headers(HEADERS)

    async def link(_: object, context: Any) -> None:
        frames, wake = EngineFrameWriter(), asyncio.Event()

        async def write() -> None:
            while True:
                await wake.wait()
                wake.clear()
                await context.write(frames.take())

        writer = asyncio.create_task(write())
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                for submit in decode_gateway_frame(data).submits:
                    frames.start(submit[0], 200, block)
                    frames.chunk(submit[0], ANSWER)
                    frames.end(submit[0], 10, 0, 5, "", "", False, 0.0)
                wake.set()
        finally:
            writer.cancel()

    handler = grpc.stream_stream_rpc_method_handler(link)
    server = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("xinf.engine.v1.EngineService", {"Link": handler}),)
    )
    server.add_insecure_port(f"unix:{directory}/engine")
    await server.start()
    await server.wait_for_termination()


class Native:
    """The same over our server's end."""

    def __init__(self, stream: ServerStream) -> None:
        self._stream = stream
        self._frames = EngineFrameWriter()
        self._block = encode_headers(HEADERS)

    def on_message(self, data: bytes) -> None:
        for submit in decode_gateway_frame(data).submits:
            self._frames.start(submit[0], 200, self._block)
            self._frames.chunk(submit[0], ANSWER)
            self._frames.end(submit[0], 10, 0, 5, "", "", False, 0.0)
        self._stream.wake()

    def take(self) -> bytes:
        return self._frames.take()

    def on_closed(self) -> None:
        self._stream.finish("ok", "")

    def on_lost(self, reason: str) -> None: ...


async def native_engine(directory: Path) -> None:
    door = Door(path=METHOD, make_listener=Native, behind=directory / "engine", max_message_bytes=40 << 20)
    door.bind(f"unix:{directory}/engine{NATIVE}")
    await door.open()
    await asyncio.Event().wait()


# ---- gateway -------------------------------------------------------------------------------------------------------


class Requests:
    """What both transports share: requests in, frames out, answers back."""

    def __init__(self) -> None:
        self.frames = GatewayFrameWriter()
        self.n_requests = 0
        self.n_frames = 0
        self.wake: Callable[[], None]
        self.goes_alone = True  # not as in the Link: anything the engine sends lets the next message go
        self._head = encode_head("POST", "/v1/chat/completions", HEADERS)
        self._answers: dict[int, Callable[[bytes], None]] = {}

    def submit(self, body: bytes, answer: Callable[[bytes], None]) -> None:
        self.n_requests += 1
        self._answers[self.n_requests] = answer
        self.frames.submit(self.n_requests, self._head, body, b"c" * 32, 0, 30_000, "", "r")
        self.wake()

    def is_worthwhile(self) -> bool:
        return self.goes_alone or 2 * len(self.frames) >= len(self._answers)

    def take(self) -> bytes:
        frame = self.frames.take(FRAME_BYTES)
        self.n_frames += bool(frame)
        return frame

    def on_message(self, data: bytes) -> None:
        frame = decode_engine_frame(data)
        chunks = dict(frame.chunks)
        for end in frame.ends:
            self._answers.pop(end[0])(chunks[end[0]])

    def on_lost(self, reason: str) -> None:
        sys.exit(f"the stream is lost: {reason}")


async def connect_grpc(target: str, requests: Requests) -> list[asyncio.Task[None]]:
    """One write in flight, as the Link does it over grpc.aio."""
    call: Any = grpc.aio.insecure_channel(target).stream_stream(METHOD)()
    wake = asyncio.Event()
    requests.wake = wake.set

    async def write() -> None:
        while True:
            if not len(requests.frames):
                wake.clear()
                await wake.wait()
            await call.write(requests.take())

    async def read() -> None:
        while (data := await call.read()) is not grpc.aio.EOF:
            requests.on_message(data)

    return [asyncio.create_task(write()), asyncio.create_task(read())]


class UnpacedStream(ClientStream):
    """Opens the gate at once."""

    def _take(self) -> None:
        super()._take()
        self._gate_opens_s = 0.0
        self._schedule()


class PingStream(ClientStream):
    """Opens the gate when the engine's gRPC has acknowledged a PING behind the message, and not before."""

    def _send(self, message: bytes) -> None:
        super()._send(message)
        self._gate_opens_s += 60.0
        self._transport.write(h2.header(8, h2.PING, 0, 0) + bytes(8))

    def on_data(self, data: bytes, at: int, end: int) -> None:
        has_heard, is_woken, self._is_woken = self._has_heard, self._is_woken, False
        super().on_data(data, at, end)
        self._has_heard, self._is_woken = has_heard, is_woken or self._is_woken

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        super().on_frame(kind, flags, stream_id, payload)
        if kind == h2.PING and flags & h2.ACK:
            self._has_heard = True
            self._schedule()


async def gateway(directory: Path, transport: str) -> None:
    """Take bodies from connections, one at a time each, and pass the answers back."""
    requests = Requests()
    if transport == "grpc.aio":
        _keep = await connect_grpc(f"unix:{directory}/engine", requests)
    else:
        kinds = {"h2": ClientStream, "h2-data": ClientStream, "h2-unpaced": UnpacedStream, "h2-ping": PingStream}
        name = transport.removesuffix(NATIVE)
        kind = kinds[name]
        requests.goes_alone = name != "h2"
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_unix_connection(
            lambda: kind(METHOD, "localhost", requests, FRAME_BYTES), f"{directory}/{engine_of(transport)}"
        )
        requests.wake = stream.wake

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport = transport
            self._received = b""

        def data_received(self, data: bytes) -> None:
            if data == STATISTICS:
                self._transport.write(json.dumps([requests.n_requests, requests.n_frames]).encode())
                return
            self._received += data
            if len(self._received) == len(BODY):
                body, self._received = self._received, b""
                requests.submit(body, self._transport.write)

    server = await asyncio.get_running_loop().create_unix_server(Connection, f"{directory}/{transport}", backlog=1024)
    await server.serve_forever()


# ---- load ----------------------------------------------------------------------------------------------------------


class Load:
    """Blocking sockets and select: its own timing is finer than an event loop's milliseconds."""

    def __init__(self, path: str, n_connections: int) -> None:
        self._sockets = []
        for _ in range(n_connections):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            self._sockets.append(connection)
        self._missing: dict[socket.socket, int] = {}
        self._sent_s: dict[socket.socket, float] = {}
        self.latencies_s: list[float] = []

    def closed(self, seconds: float) -> None:
        """Keep every connection busy."""
        end_s = time.perf_counter() + seconds
        for connection in self._sockets:
            self._send(connection, time.perf_counter())
        while self._missing:
            for connection in self._receive(1.0):
                if time.perf_counter() < end_s:
                    self._send(connection, time.perf_counter())

    def open(self, seconds: float, rate: float) -> None:
        """Send at random times, `rate` a second on average; latency counts from when it should have been sent."""
        free = deque(self._sockets)
        due_s = time.perf_counter()
        end_s = due_s + seconds
        while self._missing or due_s < end_s:
            now_s = time.perf_counter()
            while free and due_s < min(now_s, end_s):
                self._send(free.popleft(), due_s)
                due_s += random.expovariate(rate)
            free += self._receive(max(0.0, due_s - time.perf_counter()) if due_s < end_s else 1.0)

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()

    def _send(self, connection: socket.socket, due_s: float) -> None:
        self._missing[connection] = len(ANSWER)
        self._sent_s[connection] = due_s
        connection.sendall(BODY)

    def _receive(self, timeout_s: float) -> list[socket.socket]:
        """Read what has come. Returns the connections that have their answers."""
        done = []
        for connection in select.select(list(self._missing), [], [], timeout_s)[0]:
            self._missing[connection] -= len(connection.recv(1024))
            if not self._missing[connection]:
                del self._missing[connection]
                self.latencies_s.append(time.perf_counter() - self._sent_s[connection])
                done.append(connection)
        return done


def statistics_of(path: str) -> tuple[int, int]:
    """Requests and frames so far."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(STATISTICS)
        n_requests, n_frames = json.loads(connection.recv(1024))
    return n_requests, n_frames


def sample(path: str, gateway_pid: int, engine_pid: int, cell: tuple[str, int], seconds: float) -> dict[str, float]:
    """Figures of one run of one cell."""
    kind, amount = cell
    load = Load(path, amount if kind == "closed" else N_OPEN_CONNECTIONS)
    before = [cpu_s(pid) or 0.0 for pid in (gateway_pid, engine_pid)]
    counts = statistics_of(path)
    load.closed(seconds) if kind == "closed" else load.open(seconds, amount)
    counts = tuple(after - earlier for after, earlier in zip(statistics_of(path), counts, strict=True))
    gateway_s, engine_s = ((cpu_s(pid) or 0.0) - s for pid, s in zip((gateway_pid, engine_pid), before, strict=True))
    load.close()
    latencies_s = sorted(load.latencies_s)
    return {
        "gateway us": gateway_s / counts[0] * 1e6,
        "engine us": engine_s / counts[0] * 1e6,
        "batch": counts[0] / counts[1],
        "p50 us": latencies_s[len(latencies_s) // 2] * 1e6,
        "p99 us": latencies_s[len(latencies_s) * 99 // 100] * 1e6,
        "requests/s": counts[0] / seconds,
    }


def measure(directory: Path, repeats: int, seconds: float, transports: list[str], cells: list[tuple[str, int]]) -> None:
    """Start everything, run the cells, print medians with their spread."""
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, cpus: tuple[int, ...], *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.bench_link_transport", *arguments, str(directory)]
        processes[name] = subprocess.Popen(pinned(command, cpus))
        deadline_s = time.monotonic() + 30
        while not (directory / name).exists():
            if processes[name].poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} did not start")
            time.sleep(0.02)

    samples: dict[tuple[tuple[str, int], str], list[dict[str, float]]] = {}
    try:
        start("engine", LOAD_CPU, "--role", "engine")
        start(f"engine{NATIVE}", LOAD_CPU, "--role", f"engine{NATIVE}")
        for name in transports:
            start(name, GATEWAY_CPU, "--role", name)
        for repeat in range(repeats):
            for cell in cells:
                shift = repeat % len(transports)
                for name in transports[shift:] + transports[:shift]:
                    pids = processes[name].pid, processes[engine_of(name)].pid
                    samples.setdefault((cell, name), []).append(sample(f"{directory}/{name}", *pids, cell, seconds))
    finally:
        for process in reversed(processes.values()):  # the engine last: a gateway that loses it says so
            process.kill()
            process.wait()
    for (cell, name), found in sorted(samples.items(), key=lambda item: cells.index(item[0][0])):
        figures = []
        for key in found[0]:
            values = sorted(one[key] for one in found)
            figures.append(f"{key} {statistics.median(values):.1f} [{values[0]:.1f}-{values[-1]:.1f}]")
        print(f"{cell[0]} {cell[1]:<5} {name:<17} {'  '.join(figures)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=list(TRANSPORTS))
    parser.add_argument("--closed", action="store_true", help="closed loops only")
    parser.add_argument("--role", choices=("engine", f"engine{NATIVE}", *TRANSPORTS), help=argparse.SUPPRESS)
    parser.add_argument("directory", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "engine":
        uvloop.run(engine(options.directory))
    elif options.role == f"engine{NATIVE}":
        uvloop.run(native_engine(options.directory))
    elif options.role:
        uvloop.run(gateway(options.directory, options.role))
    else:
        with tempfile.TemporaryDirectory(prefix="xl", dir="/tmp") as directory:
            cells = [("closed", n) for n in CLOSED] + [("open", n) for n in OPEN] * (not options.closed)
            measure(Path(directory), options.repeats, options.seconds, options.transports, cells)


if __name__ == "__main__":
    main()

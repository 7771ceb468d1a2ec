"""Hostile clients, each kind a coroutine that goes on until it is cancelled. Rates and numbers are bounded.

slow senders     half a body, then nothing; anew after each 408         idle        connections that say nothing
slow readers     a stream of 4 MiB that is never read; anew after 3 s   flood       open and close
garbage          requests with bytes changed                            vanishers   reset in mid-stream
giants           a body of 64 MB announced, and sent until refused
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable

from tests.gateway.raw_http import chat, post, scripted_chat

CHAT = "/v1/chat/completions"
N_SLOW_SENDERS = 500
N_SLOW_READERS = 200
N_IDLE = 2000
FLOOD_PER_S = 200
GARBAGE_PER_S = 100
VANISH_PER_S = 50
GIANTS_PER_S = 5


Act = Callable[[int], Awaitable[None]]  # one client, once; the argument is the port
Kind = Callable[[int], Awaitable[None]]  # many of them, for ever


async def _connect(port: int, *, is_slow: bool = False) -> socket.socket:
    raw = socket.socket()
    raw.setblocking(False)
    if is_slow:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    try:
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    except OSError:
        raw.close()
        raise
    return raw


async def _read_all(raw: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(raw, 65536):
        pass


async def slow_sender(port: int) -> None:
    while True:
        with await _connect(port) as raw:
            await asyncio.get_running_loop().sock_sendall(raw, post(CHAT, b'{"model": ', length=5000))
            await _read_all(raw)


async def slow_reader(port: int) -> None:
    while True:
        with await _connect(port, is_slow=True) as raw:
            await asyncio.get_running_loop().sock_sendall(raw, post(CHAT, scripted_chat(f"drip {4 << 20}")))
            await asyncio.sleep(3.0)


async def idle(port: int) -> None:
    while True:
        with await _connect(port) as raw:
            await _read_all(raw)


async def flood(port: int) -> None:
    (await _connect(port)).close()


async def garbage(port: int) -> None:
    data = bytearray(post(CHAT, chat("m", max_tokens=2, stream=True), "connection: close"))
    for _ in range(random.randrange(1, 6)):
        data[random.randrange(len(data))] = random.randrange(256)
    with await _connect(port) as raw:
        await asyncio.get_running_loop().sock_sendall(raw, data)
        await _read_all(raw)


async def vanisher(port: int) -> None:
    with await _connect(port) as raw:
        await asyncio.get_running_loop().sock_sendall(raw, post(CHAT, chat("m", max_tokens=200, stream=True)))
        await asyncio.get_running_loop().sock_recv(raw, 100)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def giant(port: int) -> None:
    with await _connect(port) as raw:
        await asyncio.get_running_loop().sock_sendall(raw, post(CHAT, b"", length=64 << 20))
        for _ in range(64):
            await asyncio.get_running_loop().sock_sendall(raw, b" " * (1 << 20))


async def _survive(act: Act, port: int) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(10.0):
            await act(port)


async def _always(act: Act, port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            await act(port)
        await asyncio.sleep(0.1)


async def _at_rate(act: Act, port: int, per_s: float) -> None:
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            task = asyncio.ensure_future(_survive(act, port))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(1 / per_s)
    finally:
        for task in running:
            task.cancel()


def _many(act: Act, n: int) -> Kind:
    async def run(port: int) -> None:
        await asyncio.gather(*(_always(act, port) for _ in range(n)))

    return run


def _often(act: Act, per_s: float) -> Kind:
    return lambda port: _at_rate(act, port, per_s)


KINDS: dict[str, Kind] = {
    "slow-senders": _many(slow_sender, N_SLOW_SENDERS),
    "slow-readers": _many(slow_reader, N_SLOW_READERS),
    "idle": _many(idle, N_IDLE),
    "flood": _often(flood, FLOOD_PER_S),
    "garbage": _often(garbage, GARBAGE_PER_S),
    "vanishers": _often(vanisher, VANISH_PER_S),
    "giants": _often(giant, GIANTS_PER_S),
}


async def run_all(port: int, names: Iterable[str]) -> None:
    """Run these kinds at once until cancelled. Raises: KeyError for one that is not in KINDS."""
    await asyncio.gather(*(KINDS[name](port) for name in names))

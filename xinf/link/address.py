"""Listening sockets for `unix:PATH` and `HOST:PORT`.

A socket file that a dead process left behind is taken over, one of a live process is not; nor is a port shared. What is
set on a listening socket holds for its connections: TCP_NODELAY, and that the kernel gives up a peer that is gone
without a word after about a minute.
"""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


def bind(address: str) -> list[socket.socket]:
    """Listen on an address. Raises: OSError, ValueError for another kind of address."""
    if address.startswith("unix:"):
        return [_bind_unix(Path(address.removeprefix("unix:")))]
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not host:
        raise ValueError(f"the address is {address!r}, must be unix:PATH or HOST:PORT")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, where in dict.fromkeys(found):
            sockets.append(_bind_tcp(family, where))
    except OSError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bind_tcp(family: int, where: tuple[str | int, ...] | tuple[int, bytes]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is every address, as gRPC understands it.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if where[0] == "::" else 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            bound.setsockopt(socket.IPPROTO_TCP, option, value)
        bound.bind(where)
        bound.listen(socket.SOMAXCONN)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: Path) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX)
    try:
        try:
            bound.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            path.unlink()
            bound.bind(str(path))
        bound.listen(socket.SOMAXCONN)
    except OSError:
        bound.close()
        raise
    return bound


def _is_left_behind(path: Path) -> bool:
    """Whether it is a socket on which nobody listens."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED

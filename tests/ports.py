"""Ports for servers that tests start in processes of their own, which cannot bind port 0 and tell."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

_LOWEST = 10_000
_N_PROCESSES = 16  # of pytest on this machine that do not choose the same port


def free_port() -> int:
    """Choose a port of the loopback address that nobody holds and that nobody else is given.

    The kernel's own choice (port 0) is free for a moment only: until the server binds it, any connection of another
    test may be given it as its local port. So these lie below the range of local ports, and the processes of one run of
    pytest-xdist choose from different ones.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _N_PROCESSES
    candidates = range(_LOWEST + process, _first_local_port(), _N_PROCESSES)
    while True:
        port = random.SystemRandom().choice(candidates)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _first_local_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:
        return 32_768  # not Linux; those that are known begin higher

"""Where the gateway listens: its URL, whether the port is free and who has it, whether it answers."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from xinf.core.config import GatewayConfig
from xinf.core.errors import ConfigError

_LISTEN = "0A"  # of /proc/net/tcp
_ANSWER_TIMEOUT_S = 2.0


def gateway_url(config: GatewayConfig) -> str:
    """The base URL for a client on this host; an address that means "all of them" is reached by loopback."""
    scheme = "https" if config.tls_cert else "http"
    return f"{scheme}://{_bracketed(_reachable(config.host))}:{config.port}"


def pick_port(host: str) -> int:
    """Ask the kernel for a port that is free now. Raises: ConfigError."""
    with _bound(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def check_port_is_free(host: str, port: int) -> None:
    """Raises: ConfigError naming the process that listens there, if it can be found, and what to do."""
    _bound(host, port).close()


def find_listener(port: int) -> int | None:
    """The pid of a process that listens on a TCP port of this host; None if there is none or it is not ours to see."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for link in (process / "fd").iterdir():
                if str(link.readlink()) in inodes:
                    return int(process.name)
        except OSError:  # it ended, or belongs to somebody else
            continue
    return None


async def answers(config: GatewayConfig) -> bool:
    """Whether the gateway answers its health check now."""
    context = None
    if config.tls_cert:
        # Our own process on our own port: there is nobody to authenticate.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    host = _reachable(config.host)
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, config.port, ssl=context)
            try:
                writer.write(f"GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _reachable(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound without SO_REUSEPORT, so that a listener which allows sharing is seen too."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"gateway.host = {host!r} cannot be listened on: {error}", key="gateway.host") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run in TIME_WAIT
        made.bind(address)
    except OSError as error:
        made.close()
        raise _cannot_bind(host, port, error) from error
    return made


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        pid = find_listener(port)
        owner = f"process {pid} ({_command(pid)})" if pid is not None else "another process"
        return ConfigError(
            f"port {port} on {host} is in use by {owner}",
            remedy="stop it, or take another port with --port",
            key="gateway.port",
            port=port,
            pid=pid,
        )
    return ConfigError(
        f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}",
        remedy="change --host or --port",
        key="gateway.port",
        port=port,
    )


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return b" ".join(words).decode(errors="replace").strip()[:80] or "?"


def _listening_inodes(port: int) -> list[str]:
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found

"""What the gateway's address is for clients, and who has the port."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from xinf.core.config import GatewayConfig, load
from xinf.core.errors import ConfigError
from xinf.serve.address import answers, check_port_is_free, find_listener, gateway_url, pick_port


def gateway(**changes: object) -> GatewayConfig:
    return msgspec.structs.replace(load(environ={}).gateway, **changes)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        # Granian shares its port among processes; such a listener must be seen too.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("localhost", "http://localhost:8080"),
    ],
)
def test_url_is_one_that_a_client_here_can_use(host: str, url: str) -> None:
    assert gateway_url(gateway(host=host)) == url


def test_url_says_https_with_a_certificate() -> None:
    assert gateway_url(gateway(tls_cert="a", tls_key="b")) == "https://127.0.0.1:8080"


def test_listener_is_found_and_named(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert find_listener(port) == os.getpid()
    with pytest.raises(ConfigError, match=f"port {port} .* in use by process {os.getpid()}") as caught:
        check_port_is_free("127.0.0.1", port)
    assert caught.value.fields == {"key": "gateway.port", "port": port, "pid": os.getpid()}


def test_free_port_is_free() -> None:
    port = pick_port("127.0.0.1")
    check_port_is_free("127.0.0.1", port)
    assert find_listener(port) is None


def test_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        check_port_is_free("192.0.2.1", 8080)


async def test_nobody_there_does_not_answer() -> None:
    assert not await answers(gateway(port=pick_port("127.0.0.1")))

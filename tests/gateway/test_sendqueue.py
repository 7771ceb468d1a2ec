"""SendQueues against real connections over loopback."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.gateway.gateway_stack import wait_for
from xinf.gateway.rsgi import NEARLY_EMPTY_BYTES
from xinf.gateway.sendqueue import SendQueues


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["v4", "v6"])
def connection(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    family, host = request.param
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((host, 0))
        listener.listen()
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        with server:
            yield server, client


@pytest.fixture
def queues() -> Iterator[SendQueues]:
    made = SendQueues()
    yield made
    made.close()


def ends(server: socket.socket) -> tuple[str, str]:
    def text(address: tuple[str, int]) -> str:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{host}:{address[1]}"

    return text(server.getsockname()), text(server.getpeername())


def test_send_queue_tells_a_client_that_reads_from_one_that_does_not(
    connection: tuple[socket.socket, socket.socket], queues: SendQueues
) -> None:
    server, client = connection
    assert queues.unsent_bytes(*ends(server)) == 0
    server.setblocking(False)
    n_sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            n_sent += server.send(b"x" * 65536)
    full = queues.unsent_bytes(*ends(server))
    assert full is not None
    assert full > NEARLY_EMPTY_BYTES
    client.settimeout(10)
    n_read = 0
    while n_read < n_sent:
        n_read += len(client.recv(1 << 20))
    wait_for(lambda: queues.unsent_bytes(*ends(server)) == 0, what="the acknowledgement")


def test_send_queue_of_no_connection_is_none(queues: SendQueues) -> None:
    assert queues.unsent_bytes("127.0.0.1:1", "127.0.0.1:2") is None


def test_send_queue_refuses_what_is_no_address(queues: SendQueues) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        queues.unsent_bytes("localhost:1", "127.0.0.1:2")

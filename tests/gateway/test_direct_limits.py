"""Limits of the front `direct`: time for heads and bodies, idle connections, their number, TLS, draining."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gateway.direct_stack import TEXT, DirectStack, read_answer
from tests.gateway.raw_http import post, read_all, read_until
from xinf.core.config import load
from xinf.core.errors import ConfigError
from xinf.gateway.direct_server import Limits, make_tls

SHORT_S = 0.2


def test_slow_head_is_408() -> None:
    with DirectStack(head_timeout_s=SHORT_S) as stack:
        idle = stack.connect()
        raw = stack.connect()
        begun_s = time.monotonic()
        raw.sendall(b"POST /sync HTTP/1.1\r\nhost: x\r\n")
        # More bytes of it do not buy more time.
        raw.settimeout(0.02)
        answer = b""
        while not answer:
            try:
                answer = raw.recv(1000)
            except TimeoutError:
                raw.sendall(b"a: b\r\n")
                assert time.monotonic() < begun_s + 10
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert time.monotonic() - begun_s > SHORT_S / 2  # as exact as the sweep is frequent
        idle.sendall(post("/sync", b"a"))
        assert read_answer(idle)[1] == b"1:a"


@pytest.mark.parametrize("head", ["content-length: 10", "transfer-encoding: chunked"])
def test_slow_body_is_408(head: str) -> None:
    with DirectStack(body_timeout_s=SHORT_S) as stack:
        raw = stack.connect()
        raw.sendall(f"POST /sync HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode() + b"1\r\na\r\n")
        answer = read_all(raw)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer
        assert stack.core.calls == []


def test_idle_connection_is_closed_and_one_in_use_is_not() -> None:
    with DirectStack(idle_timeout_s=SHORT_S) as stack:
        used = stack.connect()
        used.sendall(post("/hold", b""))
        held = stack.hold()
        fresh, kept = stack.connect(), stack.connect()
        kept.sendall(post("/sync", b""))
        read_answer(kept)
        assert read_all(fresh) == b""
        assert read_all(kept) == b""
        stack.call(lambda: stack.core.echo(held))
        assert read_answer(used)[1] == b"0:"


def test_answer_that_is_not_taken_is_given_up() -> None:
    with DirectStack(stall_timeout_s=SHORT_S) as stack:
        raw = stack.connect(receive_bytes=4096)
        raw.sendall(post("/hold", b""))
        held = stack.hold()
        assert stack.call(lambda: held.client.answer(200, TEXT, b"x" * (16 << 20))) is False
        assert held.gone.wait(20)
        stack.wait_until(lambda: stack.server.n_connections == 0)


def test_closing_connection_whose_client_does_not_read_is_cut() -> None:
    with DirectStack(stall_timeout_s=SHORT_S, write_buffer_bytes=64 << 20) as stack:
        raw = stack.connect(receive_bytes=4096)
        raw.sendall(post("/hold", b"", "connection: close"))
        held = stack.hold()
        assert stack.call(lambda: held.client.answer(200, TEXT, b"x" * (16 << 20))) is True
        stack.wait_until(lambda: stack.server.n_connections == 0)
        assert held.n_gone == 0


def test_lingering_ends() -> None:
    with DirectStack(linger_s=SHORT_S) as stack:
        raw = stack.connect()
        raw.sendall(post("/deny", b"", length=1000))
        assert read_all(raw).startswith(b"HTTP/1.1 403 ")
        stack.wait_until(lambda: stack.server.n_connections == 0)  # though the client has not closed


def test_connections_over_the_cap_are_closed_and_counted() -> None:
    with DirectStack(max_connections=3) as stack:
        kept = [stack.connect() for _ in range(3)]
        stack.wait_until(lambda: stack.server.n_connections == 3)
        for _ in range(4):
            try:
                assert stack.connect().recv(10) == b""
            except ConnectionResetError:
                pass
        assert stack.core.n_turned_away == 4
        kept.pop().close()
        stack.wait_until(lambda: stack.server.n_connections == 2)
        kept.append(stack.connect())
        for raw in kept:
            raw.sendall(post("/sync", b"a"))
            assert read_answer(raw)[1] == b"1:a"


def test_sweep_is_often_enough_for_the_shortest_limit() -> None:
    assert Limits(max_connections=1, body_timeout_s=60.0).sweep_s == 0.5
    assert Limits(max_connections=1, body_timeout_s=0.2).sweep_s == pytest.approx(0.05)


def test_date_is_made_anew_each_second() -> None:
    with DirectStack() as stack:
        raw = stack.connect()
        dates = set()
        end_s = time.monotonic() + 10
        while len(dates) < 2 and time.monotonic() < end_s:
            raw.sendall(post("/sync", b""))
            dates.add(read_answer(raw)[0].partition(b"date: ")[2][:29])
        assert len(dates) == 2
        assert all(date.endswith(b" GMT") for date in dates)


# ---- draining --------------------------------------------------------------------------------------------------


def test_drain_closes_idle_ones_and_lets_open_requests_end() -> None:
    with DirectStack() as stack, ThreadPoolExecutor(1) as pool:
        idle, half, used, streamed = (stack.connect() for _ in range(4))
        half.sendall(b"POST /sync HTTP/1.1\r\nhost: x\r\n")
        used.sendall(post("/hold", b""))
        one = stack.hold()
        streamed.sendall(post("/hold", b""))
        two = stack.hold()
        stack.call(lambda: two.client.start(200, TEXT))
        stack.call(lambda: two.client.write(b"a"))
        drained = pool.submit(lambda: stack.run(stack.server.drain(30.0)))
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", stack.port), timeout=5)
        half.sendall(b"\r\n")
        assert b"connection: close" in read_all(half)
        stack.call(lambda: stack.core.echo(one))
        assert b"connection: close" in read_all(used)
        assert not drained.done()
        stack.call(lambda: two.client.finish(b"b"))
        assert read_all(streamed).endswith(b"1\r\nb\r\n0\r\n\r\n")
        drained.result(20)
        assert one.n_gone == two.n_gone == 0


def test_drain_cuts_what_takes_too_long() -> None:
    with DirectStack() as stack:
        raw = stack.connect()
        raw.sendall(post("/hold", b""))
        held = stack.hold()
        stack.run(stack.server.drain(0.0))
        assert read_all(raw) == b""
        assert held.n_gone == 1


# ---- TLS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    asked = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {key} -out {cert}"
    made = subprocess.run(
        [*asked.split(), "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    return cert, key


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    config = load(environ={}, overrides={"gateway.tls_cert": str(cert), "gateway.tls_key": str(key)})
    context = ssl.create_default_context(cafile=str(cert))
    with DirectStack(tls=make_tls(config.gateway), linger_s=SHORT_S) as stack:
        with context.wrap_socket(stack.connect(), server_hostname="127.0.0.1") as raw:
            for body in (b"a", b"x" * 200_000):
                raw.sendall(post("/sync", body))
                assert read_answer(raw)[1].startswith(b"%d:" % len(body))
            raw.sendall(post("/hold", b""))
            held = stack.hold()
            stack.call(lambda: held.client.start(200, TEXT))
            stack.call(lambda: held.client.write(b"a"))
            assert read_until(raw, b"1\r\na\r\n")
        assert held.gone.wait(20)
        with context.wrap_socket(stack.connect(), server_hostname="127.0.0.1") as raw:
            raw.sendall(post("/deny", b"", length=1000))
            assert read_all(raw).startswith(b"HTTP/1.1 403 ")
        plain = stack.connect()
        plain.sendall(post("/sync", b"a"))
        assert not read_all(plain).startswith(b"HTTP/1.1 200")


def test_tls_before_1_2_is_refused(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    config = load(environ={}, overrides={"gateway.tls_cert": str(cert), "gateway.tls_key": str(key)})
    tls = make_tls(config.gateway)
    assert tls is not None
    assert tls.minimum_version == ssl.TLSVersion.TLSv1_2


def test_unusable_certificate_is_a_config_error(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    config = load(environ={}, overrides={"gateway.tls_cert": missing, "gateway.tls_key": missing})
    with pytest.raises(ConfigError, match=r"none\.pem"):
        make_tls(config.gateway)

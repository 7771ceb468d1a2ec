"""The column CACHE of `xinf ps -r`: real metrics of real routers, from a stub in the gateway's place.

A whole installation is asked in test_explained.py.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import READY
from tests.cli.test_ps import fill
from xinf._pb import engine_service_pb2 as pb
from xinf.cli.caches import cache_text, followed_of, followed_text, views_of
from xinf.core.records import RoutingPolicy
from xinf.gateway.metrics import Snapshot, add, fold_following, fold_router, render
from xinf.router import ResidencyUpdate, Router, RouterSettings

SNAPSHOT = ResidencyUpdate(True, b"", b"", b"", "exact", False)


def counted(*, is_told: bool = False, policy: RoutingPolicy = RoutingPolicy.AUTO) -> Snapshot:
    """What one gateway process counts of two replicas; `is_told`: the engine of the first says what it holds."""
    router = Router(RouterSettings())
    for name in (READY.id, "other"):
        router.set_replica(name, model="m", policy=policy, block_tokens=16, is_ready=True)
    if is_told:
        router.on_hello(READY.id, "exact")
        router.on_residency(READY.id, SNAPSHOT)
    folded: Snapshot = {}
    fold_router(router.snapshot(), folded)
    return folded


def page_of(*processes: Snapshot) -> str:
    return render(add(processes))


def test_views_are_those_of_all_processes() -> None:
    page = page_of(counted(is_told=True), counted(is_told=True), counted(is_told=True), counted())
    assert views_of(page) == {READY.id: {"exact": 3, "approx": 1}, "other": {"approx": 4}}
    assert views_of(page_of(counted(policy=RoutingPolicy.LEAST_LOAD))) == {READY.id: {"off": 1}, "other": {"off": 1}}
    assert views_of("") == {}


@pytest.mark.parametrize(
    ("views", "text"),
    [
        (None, "-"),
        ({"exact": 4}, "exact"),
        ({"approx": 1, "exact": 3}, "exact 3, approx 1"),
        ({"off": 1, "approx": 1}, "approx 1, off 1"),
    ],
)
def test_text_counts_processes_only_when_they_differ(views: dict[str, int] | None, text: str) -> None:
    assert cache_text(views) == text


class Gateway:
    """Answers with a page of metrics, and remembers what it was asked."""

    def __init__(self) -> None:
        self.page = ""
        self.paths: list[str] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                gateway.paths.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(gateway.page.encode())

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def gateway(control: Control) -> Iterator[Gateway]:
    """A gateway that the control process knows."""
    made = Gateway()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    control.know_gateway(f"http://127.0.0.1:{made.server.server_port}")
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def replica_line(done: Result) -> str:
    assert done.exit_code == 0, done.output
    return next(line for line in done.stdout.splitlines() if line.startswith(READY.id))


def test_ps_shows_how_well_a_cache_is_known(
    control: Control, gateway: Gateway, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    fill(control, READY)
    gateway.page = page_of(counted(is_told=True), counted())
    assert " approx 1, exact 1 " in replica_line(xinf("ps", "-r"))
    assert xinf_json("ps")["caches"] == {READY.id: {"exact": 1, "approx": 1}}
    gateway.page = page_of(counted(is_told=True))
    assert " exact " in replica_line(xinf("ps", "-r"))
    assert gateway.paths == ["/metrics"] * 3


def test_ps_asks_no_gateway_for_what_it_does_not_show(
    control: Control, gateway: Gateway, xinf: Callable[..., Result]
) -> None:
    assert xinf("ps", "-r").exit_code == 0  # there are no replicas
    fill(control, READY)
    assert xinf("ps").exit_code == 0
    assert gateway.paths == []


def test_ps_shows_a_dash_where_no_gateway_tells(
    control: Control, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    fill(control, READY)
    assert replica_line(xinf("ps", "-r")).split()[4] == "-"
    assert xinf_json("ps")["caches"] == {}
    control.know_gateway("")
    assert replica_line(xinf("ps", "-r")).split()[4] == "-"


def test_ps_does_not_wait_for_a_gateway_that_hangs(control: Control, xinf: Callable[..., Result]) -> None:
    fill(control, READY)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        control.know_gateway(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert replica_line(xinf("ps", "-r")).split()[4] == "-"


def followed_page(**counts: float) -> str:
    folded = counted(is_told=True)
    fold_following(pb.Following(**counts), READY.id, folded)
    return page_of(folded, folded)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, "; events 0 ms old on average, 0 at most"),
        ({"lag_mean_s": 0.012, "lag_max_s": 0.04}, "; events 12 ms old on average, 40 at most"),
        ({"resets": 2, "unbound": 3}, "; events 0 ms old on average, 0 at most; lost 2 times; 3 prompts not told"),
    ],
)
def test_text_says_how_events_come(counts: dict[str, float], text: str) -> None:
    followed = followed_of(followed_page(**counts))
    assert list(followed) == [READY.id]
    assert followed_text(followed[READY.id]) == text
    assert followed_text(None) == ""


def test_describe_shows_how_well_a_cache_is_known(
    control: Control, gateway: Gateway, xinf: Callable[..., Result]
) -> None:
    fill(control, READY)
    gateway.page = followed_page(lag_mean_s=0.012, lag_max_s=0.04, resets=1)
    line = "  cache       exact; events 12 ms old on average, 40 at most; lost once"
    assert line in xinf("describe", READY.id).stdout.splitlines()
    gateway.page = ""
    assert "  cache" not in xinf("describe", READY.id).stdout

"""`xinf serve` as a tree of real processes: who holds what, who dies with whom, what is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading

import httpx
import psutil
import pytest

from tests.children import command_of, living_children
from tests.serve.processes import XINF, Place, wait_for

pytestmark = pytest.mark.crash


def answers(place: Place) -> bool:
    try:
        return httpx.get(f"{place.url}/healthz", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_serve_is_ready_answers_and_leaves_nothing(place: Place) -> None:
    serve = place.serve()
    assert f"ready: {place.url}\n" in place.log("serve")
    assert answers(place)
    assert "nothing is deployed" in place.ok("ps")
    assert place.runtime_dir.exists()
    serve.send_signal(signal.SIGINT)
    assert serve.wait(30) == 0
    assert place.processes() == []
    assert place.sockets() == []
    assert not place.runtime_dir.exists()


def test_second_serve_is_told_who_holds_the_data_directory(place: Place) -> None:
    serve = place.serve()
    holder = place.child(serve, "xinf.serve.control").pid
    second = place.run("serve")
    assert second.returncode == 1
    assert f"held by process {holder}" in second.stderr
    assert "Traceback" not in second.stderr
    assert second.stderr.count("error:") == 1
    # The first one has noticed nothing.
    assert answers(place)
    assert place.run("ps").returncode == 0


def test_port_in_use_names_the_process_and_leaves_nothing(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.port))
        taken.listen()
        refused = place.run("serve")
    assert refused.returncode == 1
    assert f"port {place.port}" in refused.stderr
    assert f"process {os.getpid()}" in refused.stderr
    assert "--port" in refused.stderr
    assert place.processes() == []
    assert place.sockets() == []


def test_address_that_others_reach_needs_a_key(place: Place) -> None:
    refused = place.run("serve", "--host", "0.0.0.0")
    assert refused.returncode == 1
    assert "xinf key create" in refused.stderr
    assert place.processes() == []
    place.ok("key", "create")  # no control process runs: straight into the store
    place.serve("--host", "0.0.0.0")
    assert httpx.get(f"{place.url}/v1/models", timeout=5, trust_env=False).status_code == 401


def test_store_is_not_shown_to_other_hosts_unasked(place: Place) -> None:
    refused = place.run("serve", "--listen", "0.0.0.0:0")
    assert refused.returncode == 1
    assert "control.listen" in refused.stderr


def test_address_of_the_store_must_have_a_port(place: Place) -> None:
    refused = place.run("serve", "--listen", "127.0.0.1")
    assert refused.returncode == 1
    assert "control.listen = '127.0.0.1' is not HOST:PORT" in refused.stderr


def test_port_zero_takes_a_free_one(place: Place) -> None:
    place.serve("--port", "0")
    url = place.log("serve").split("ready: ")[1].split()[0]
    assert not url.endswith(":0")
    assert httpx.get(f"{url}/healthz", timeout=5, trust_env=False).status_code == 200


def test_killed_control_process_is_back_and_keeps_the_store(place: Place) -> None:
    serve = place.serve()
    key = place.ok("key", "create", "--label", "kept").strip()
    first = place.child(serve, "xinf.serve.control")
    first.kill()
    wait_for(
        lambda: any("xinf.serve.control" in command_of(c) and c.pid != first.pid for c in living_children(serve.pid)),
        what="a new control process",
    )
    wait_for(lambda: place.run("ps").returncode == 0, what="an answer of the new control process")
    assert "kept" in place.ok("key", "ls")
    answer = httpx.get(f"{place.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=5, trust_env=False)
    assert answer.status_code == 200


def test_killed_gateway_is_back(place: Place) -> None:
    serve = place.serve()
    place.child(serve, "xinf.gateway").kill()
    wait_for(lambda: "gateway ended with signal 9" in place.log("serve"), what="a word about it")
    wait_for(lambda: answers(place), what="an answer of the new gateway")


def test_kill_of_the_supervisor_leaves_nothing(place: Place) -> None:
    serve = place.serve()
    tree = psutil.Process(serve.pid).children(recursive=True)
    assert len(tree) >= 3  # control process, gateway, one worker
    serve.kill()
    serve.wait(30)
    wait_for(lambda: not place.processes(), what="the end of its children")
    assert not answers(place)
    # And nothing of it is in the way of the next one.
    again = place.serve()
    assert again.poll() is None


def test_interrupt_reaches_the_supervisor_even_if_the_shell_ignores_it(place: Place) -> None:
    # A shell without job control starts background commands with INT ignored.
    with (place.dir / "serve.log").open("ab") as log:
        serve = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *XINF, "serve"],
            env=place.environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    place.await_line(serve, "serve", "ready: ")
    serve.send_signal(signal.SIGINT)
    assert serve.wait(30) == 0
    assert place.processes() == []


def test_no_request_fails_while_the_control_process_is_killed(place: Place) -> None:
    serve = place.serve()
    worker = place.start("worker")
    place.ok("launch", "--model", "demo", "--engine", "sim", "--engine-arg", "step_ms=1")
    wait_for(lambda: place.chat("demo").status_code == 200, what="a first answer")
    statuses: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            statuses.append(place.chat("demo").status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        wait_for(lambda: len(statuses) > 5, what="requests")
        control = place.child(serve, "xinf.serve.control")
        control.kill()
        wait_for(lambda: "control process is back" in place.log("serve"), what="the return of the control process")
        n_at_return = len(statuses)
        wait_for(lambda: len(statuses) > n_at_return + 20, what="more requests")
    finally:
        done.set()
        thread.join(30)
    assert set(statuses) == {200}
    wait_for(lambda: '"ready"' in place.ok("ps", "--json"), what="the replica in the store")
    assert worker.poll() is None
    place.ok("stop", "demo")
    assert not [name for name in place.sockets() if name.startswith("demo")]

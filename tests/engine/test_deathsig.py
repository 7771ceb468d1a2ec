"""The death signal, without vLLM: a parent that registers it, a child by each start method, kill -9 for the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_fixtures import CHECKOUT, is_alive, wait_until

pytestmark = pytest.mark.crash

# As in vLLM: the parent has loaded the plugin, a spawned child loads it itself, a forked one inherits it as loaded.
PARENT = """
import multiprocessing, os, sys, time
from xinf.engine.deathsig import register

def child(loads_plugin):
    if loads_plugin:
        register()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    method = sys.argv[1]
    if method != "none":
        register()
    start_method = "fork" if method == "none" else method
    process = multiprocessing.get_context(start_method).Process(target=child, args=(method == "spawn",))
    process.start()
    process.join()
"""


def start(directory: Path, method: str) -> tuple[subprocess.Popen[bytes], int]:
    script = directory / "parent.py"
    script.write_text(PARENT)
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    with process.stdout:
        return process, int(process.stdout.readline())


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_child_dies_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    process, child = start(tmp_path, method)
    assert is_alive(child)
    process.kill()
    process.wait(30)
    wait_until(lambda: not is_alive(child), "the end of the child", 30)


def test_child_lives_on_without_it(tmp_path: Path) -> None:
    """What the other test would look like if the plugin did nothing."""
    process, child = start(tmp_path, "none")
    process.kill()
    process.wait(30)
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_process_of_its_own_is_left_alone(tmp_path: Path) -> None:
    """The shim loads the plugin too; it must outlive whoever started it."""
    code = (
        "import os, sys, time; from xinf.engine.deathsig import register; register();"
        "os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"
    )
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}])"
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait(30)
        assert is_alive(pid)
        os.kill(pid, signal.SIGKILL)

"""A writer killed with -9 a hundred times at random points: every acknowledged write is there, the check is clean."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.backends import open_lmdb
from xinf.core.errors import StoreHeld
from xinf.meta import check_directory

pytestmark = pytest.mark.crash
HERE = Path(__file__).parent
N_KILLS = 100
DEADLINE_S = 60.0

# How a key may stand: the digest of its value, or "-" when it is absent.
Acknowledged = dict[str, str]


class Writers:
    """The process that forks writers of one store, see crash_child.py."""

    def __init__(self, directory: Path, checkout: Path) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(DEADLINE_S)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "crash_child.py"), str(directory), str(theirs.fileno())],
            env=dict(os.environ, PYTHONPATH=str(checkout)),
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self._last: Child | None = None

    def start(self, seed: int) -> Child:
        reader, writer = os.pipe()
        socket.send_fds(self._control, [seed.to_bytes(8)], [writer])
        os.close(writer)
        self._last = Child(self._control, reader)
        return self._last

    def close(self) -> None:
        if self._last and not self._last.is_gone:
            self._last.kill()
        self._control.close()
        self._process.wait(DEADLINE_S)


class Child:
    """A running writer and the pipe it reports on."""

    def __init__(self, control: socket.socket, reader: int) -> None:
        self._control = control
        self._reader = reader
        self.pid = int.from_bytes(control.recv(8))
        self.is_gone = False

    def read_until(self, n_bytes: int) -> bytes:
        """Read at least so much, so that the kill comes after a random number of acknowledgements."""
        deadline = time.monotonic() + DEADLINE_S
        data = b""
        while len(data) < n_bytes:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the writer said {data!r} and then nothing"
            chunk = os.read(self._reader, 65536)
            assert chunk, "the writer ended by itself"
            data += chunk
        return data

    def read_for(self, seconds: float) -> bytes:
        """Read what comes in that time: the kill falls into the opening or the first writes."""
        deadline = time.monotonic() + seconds
        data = b""
        while (left := deadline - time.monotonic()) > 0 and select.select([self._reader], [], [], left)[0]:
            data += os.read(self._reader, 65536)
        return data

    def kill(self) -> bytes:
        """Kill it and return what was still in the pipe."""
        os.kill(self.pid, signal.SIGKILL)
        assert int.from_bytes(self._control.recv(8)) == self.pid
        self.is_gone = True  # and its locks with it
        with os.fdopen(self._reader, "rb") as rest:
            return rest.read()


@pytest.fixture
def writers(short_dir: Path, checkout: Path) -> Iterator[Writers]:
    made = Writers(short_dir / "m", checkout)
    yield made
    made.close()


def replay(log: bytes, known: Acknowledged, unsure: dict[str, set[str]]) -> int:
    """Take one child's log: what each key must be, and what it may be where none came; return the last revision."""
    last = 0
    for line in log.decode().split("\n")[:-1]:  # the last line may be cut
        word, *rest = line.split(" ")
        if word == "?":
            unsure.setdefault(rest[0], set()).add(rest[1])
        elif word == "!":
            known[rest[0]] = rest[1]
            unsure.pop(rest[0], None)
            last = max(last, int(rest[2]))
    return last


async def standing(directory: Path) -> tuple[Acknowledged, int]:
    store = open_lmdb(directory)
    assert list(await store.check()) == []
    listing = await store.list("")
    await store.close()
    return {kv.key: hashlib.sha256(kv.value).hexdigest() for kv in listing.items}, listing.revision


def test_hundred_kills_lose_nothing_acknowledged(short_dir: Path, writers: Writers) -> None:
    seed = int(os.environ.get("XINF_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"XINF_TEST_SEED={seed}")
    rng = random.Random(seed)
    directory = short_dir / "m"
    known: Acknowledged = {}
    revision = 0
    n_unsure = 0
    for kill in range(N_KILLS):
        child = writers.start(seed + kill)
        n_bytes = rng.choice((0, 1, 6, 200, 2000, 20_000))
        log = child.read_until(n_bytes) if n_bytes else child.read_for(rng.uniform(0.0, 0.02))
        log += child.kill()
        unsure: dict[str, set[str]] = {}
        last = replay(log, known, unsure)
        found, revision_found = asyncio.run(standing(directory))
        assert revision_found >= max(last, revision), f"kill {kill}: revision {last} was acknowledged"
        revision = revision_found
        for key in known.keys() | found.keys() | unsure.keys():
            allowed = {known.get(key, "-")} | unsure.get(key, set())
            assert found.get(key, "-") in allowed, f"kill {kill}: {key}"
        n_unsure += len(unsure)
        known = dict(found)
    assert revision > N_KILLS
    assert n_unsure > 0, "no kill came between question and answer: the points were not random"
    assert list(check_directory(directory)) == []


def test_second_opener_is_told_who_holds_it(short_dir: Path, writers: Writers) -> None:
    directory = short_dir / "m"
    child = writers.start(1)
    try:
        child.read_until(5)
        for attempt in (lambda: open_lmdb(directory), lambda: check_directory(directory)):
            with pytest.raises(StoreHeld) as caught:
                attempt()
            assert caught.value.fields["pid"] == child.pid
            assert str(child.pid) in str(caught.value)
            assert "since" in str(caught.value)
    finally:
        child.kill()
    store = open_lmdb(directory)  # the lock died with its holder
    asyncio.run(store.close())

"""A writer killed with -9 a hundred times at random points: every acknowledged write is there, the check is clean."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import select
import signal
import subprocess
import sys
import time
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


class Child:
    """The running writer and the pipe it reports on."""

    def __init__(self, directory: Path, checkout: Path, seed: int) -> None:
        self._reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _START, str(directory), str(writer), str(seed), *sys.path],
            env=dict(os.environ, PYTHONPATH=str(checkout)),
            pass_fds=(writer,),
        )
        os.close(writer)

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
        """Read what comes in that time: the kill falls into the start, the opening, the first writes."""
        deadline = time.monotonic() + seconds
        data = b""
        while (left := deadline - time.monotonic()) > 0 and select.select([self._reader], [], [], left)[0]:
            data += os.read(self._reader, 65536)
        return data

    def kill(self) -> bytes:
        """Kill it and return what was still in the pipe."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=DEADLINE_S)
        with os.fdopen(self._reader, "rb") as rest:
            return rest.read()


# -S and the parent's sys.path: the site module costs more than the store.
_START = f"import sys; sys.path[1:] = sys.argv[4:]; sys.argv[1:] = sys.argv[1:4]; \
exec(compile(open({str(HERE / 'crash_child.py')!r}).read(), 'crash_child.py', 'exec'))"


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


def test_hundred_kills_lose_nothing_acknowledged(short_dir: Path, checkout: Path) -> None:
    seed = int(os.environ.get("XINF_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"XINF_TEST_SEED={seed}")
    rng = random.Random(seed)
    directory = short_dir / "m"
    known: Acknowledged = {}
    revision = 0
    n_unsure = 0
    for kill in range(N_KILLS):
        child = Child(directory, checkout, seed + kill)
        n_bytes = rng.choice((0, 1, 6, 200, 2000, 20_000))
        log = child.read_until(n_bytes) if n_bytes else child.read_for(rng.uniform(0.0, 0.2))
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


def test_second_opener_is_told_who_holds_it(short_dir: Path, checkout: Path) -> None:
    directory = short_dir / "m"
    child = Child(directory, checkout, 1)
    try:
        child.read_until(5)
        for attempt in (lambda: open_lmdb(directory), lambda: check_directory(directory)):
            with pytest.raises(StoreHeld) as caught:
                attempt()
            assert caught.value.fields["pid"] == child.process.pid
            assert str(child.process.pid) in str(caught.value)
            assert "since" in str(caught.value)
    finally:
        child.kill()
    store = open_lmdb(directory)  # the lock died with its holder
    asyncio.run(store.close())

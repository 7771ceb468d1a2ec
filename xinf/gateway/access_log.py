"""The access log: one line for a share of the requests, written by a thread, never waited for.

    event loop ──put──▶ ring (bounded) ──writer thread──▶ format ▸ write, a few lines at a time

A log target may block (a full pipe) or fail (its reader gone, a full disk); then lines are lost and counted, and the
event loop does not notice: the thread writes past `logging`, whose locks a blocked write would hold.

Invariants: `put` takes no lock that is held while writing; every entry is written or counted in `dropped`, also by
`close`; an entry names a request and never holds text of its prompt or answer.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from xinf.core.log import format_line

RING_ENTRIES = 4096
# The thread gathers for this long, so that a busy loop wakes it 20 times a second and not once per request.
GATHER_S = 0.05
# Lines formatted and written at once: below a pipe's 4 KiB, so that lines of several processes do not tear each
# other, and the thread holds the interpreter for some 0.1 ms only.
BATCH = 16
# How long `close` waits for a target that takes nothing.
CLOSE_S = 1.0


class Entry(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a line says of one request. `None`: not known, left out."""

    request_id: str
    path: str  # of the route, without the query
    model: str  # the deployment
    replica: str
    status: int
    duration_s: float
    retries: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None  # a code, see core/errors.py
    at_s: float = msgspec.field(default_factory=time.time)  # since the epoch

    def line(self) -> str:
        """Write the entry as a log line of the gateway, without its end."""
        values: dict[str, object] = {
            "id": self.request_id,
            "path": self.path,
            "model": self.model,
            "replica": self.replica,
            "status": self.status,
            "ms": self.duration_s * 1000,
            "retries": self.retries,
        }
        rest = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "error": self.error}
        values |= {key: value for key, value in rest.items() if value is not None}
        return format_line(self.at_s, "INFO", "gateway", "request", values)


def write_whole(fd: int, data: bytes) -> None:
    """Write everything, however long it takes. Raises: OSError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever shares the file has made it non-blocking
            select.select([], [fd], [])


write_stderr = partial(write_whole, 2)


class AccessLog:
    """Samples requests and writes what is put. `put` and `wants` are called from one thread, the event loop's.

    `sample`: the share of requests to log, 0 to 1; at 0 there is no thread. `write`: takes whole lines, may block,
    raises OSError for what it could not write.
    """

    def __init__(
        self, sample: float, write: Callable[[bytes], None] = write_stderr, *, ring_entries: int = RING_ENTRIES
    ) -> None:
        self._sample = sample
        self._write = write
        self._ring: deque[Entry] = deque()
        self._ring_entries = ring_entries
        self._has_entries = threading.Event()
        self._is_closing = threading.Event()
        self._n_refused = 0  # counted by the loop
        self._n_failed = 0  # counted by the thread
        self._n_writing = 0  # taken by the thread and not written yet
        self._n_abandoned = 0  # left behind by `close`
        self._thread: threading.Thread | None = None
        if sample > 0:
            # A daemon: a thread that is blocked in its write must not keep the process.
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    @property
    def dropped(self) -> int:
        """Entries that were put and could not be written."""
        return self._n_refused + self._n_failed + self._n_abandoned

    def wants(self) -> bool:
        """Draw whether this request is one of the share; only then an entry need be made."""
        return self._sample > 0 and random.random() < self._sample

    def put(self, entry: Entry) -> None:
        """Hand an entry to the thread, or drop it when too many wait. Never blocks."""
        if len(self._ring) >= self._ring_entries or self._is_closing.is_set() or self._thread is None:
            self._n_refused += 1
            return
        self._ring.append(entry)
        if not self._has_entries.is_set():
            self._has_entries.set()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what waits and end the thread; what a blocked target has not taken by then is dropped."""
        if self._thread is None or self._is_closing.is_set():
            return
        self._is_closing.set()
        self._has_entries.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            # Should the write come back after all, the thread finds the ring empty and ends.
            waiting, self._ring = self._ring, deque()
            self._n_abandoned = len(waiting) + self._n_writing

    def _run(self) -> None:
        while True:
            self._has_entries.wait()
            self._is_closing.wait(GATHER_S)
            # Cleared before the ring is emptied, and before the last look at `close`: what comes later sets it again.
            self._has_entries.clear()
            is_last = self._is_closing.is_set()
            while self._ring:
                self._write_batch()
            if is_last:
                return

    def _write_batch(self) -> None:
        # Only this thread takes entries, so those that were seen are there.
        ring = self._ring
        taken = [ring.popleft() for _ in range(min(BATCH, len(ring)))]
        self._n_writing = len(taken)
        lines = "".join([entry.line() + "\n" for entry in taken])
        try:
            self._write(lines.encode("utf-8", "backslashreplace"))
        except OSError:
            self._n_failed += len(taken)
        self._n_writing = 0

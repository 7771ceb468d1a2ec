"""The one thread that writes: takes whatever is queued, commits it as one LMDB transaction, then acknowledges all.

    submit ─▶ queue ─▶ take all ─▶ apply in order ─▶ commit (syncs) ─▶ acknowledge each, wake the watchers
                          ▲              │
                          └─ map full: grow and apply the same requests again; at the largest size one by one, with
                             history dropped for room, deletions with a reserve; what still does not fit is StoreFull

Invariants:

- a request is acknowledged after the commit that holds it returned, and LMDB's commit returns after its sync;
- a request that was refused or failed has left nothing in the file;
- after a failed sync nobody knows what is on the disk (the kernel drops the dirty pages and forgets): the store then
  refuses every further write and says so, until it is opened again.

A commit costs one sync whatever the number of requests, so throughput grows with load by itself; nothing ever waits
for a timer to make a batch larger.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import lmdb

from xinf.core.clock import Clock
from xinf.core.errors import LeaseExpired, Overloaded, StoreCorrupt, StoreError, StoreFull, XinfError
from xinf.core.units import format_bytes
from xinf.meta.changes import Changes
from xinf.meta.lease_table import LeaseTable
from xinf.meta.map_file import MapFile, store_error

log = logging.getLogger("xinf.meta")

MAX_BATCH_REQUESTS = 512
MAX_BATCH_BYTES = 16 << 20
MAX_QUEUED_BYTES = 64 << 20
OVERHEAD_BYTES = 512  # of a request, for the two bounds above
TICK_S = 1.0  # how late a lease may end
READER_CHECK_TICKS = 30
DROP_EVENTS_PER_COMMIT = 20_000


class Request:
    """Something to apply, and the future of who waits for it.

    `apply` runs in the writer, maybe more than once, each time on a fresh transaction; `applied` runs once, after the
    commit and before the acknowledgement. `only_shrinks`: it frees more than it writes and may use the reserve.
    """

    __slots__ = ("applied", "apply", "future", "n_bytes", "only_shrinks")

    def __init__(
        self,
        apply: Callable[[Changes], object],
        *,
        n_bytes: int = OVERHEAD_BYTES,
        only_shrinks: bool = False,
        applied: Callable[[], None] | None = None,
    ) -> None:
        self.apply = apply
        self.n_bytes = n_bytes
        self.only_shrinks = only_shrinks
        self.applied = applied
        self.future: Future[object] = Future()


class Writer:
    """Owns the thread and the queue; see above."""

    def __init__(
        self,
        file: MapFile,
        leases: LeaseTable,
        clock: Clock,
        *,
        history_revisions: int,
        history_age_s: float,
        committed: Callable[[], None],
    ) -> None:
        self._file = file
        self._leases = leases
        self._clock = clock
        self._history_revisions = history_revisions
        self._history_age_s = history_age_s
        self._committed = committed
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._queued_bytes = 0
        self._n_ticks = 0
        self._is_closed = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="xinf-meta-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: Request) -> Future[object]:
        """Queue a request. Raises: Overloaded when too much waits, StoreError when the store takes no writes."""
        with self._lock:
            if self._is_closed:
                raise StoreError("the store is closed")
            if self._failure is not None:
                raise _refused(self._failure)
            if self._queued_bytes + request.n_bytes > MAX_QUEUED_BYTES:
                raise Overloaded(
                    f"{format_bytes(self._queued_bytes)} of writes wait for the disk; the limit is"
                    f" {format_bytes(MAX_QUEUED_BYTES)}",
                    remedy="try again in a second",
                    retry_after_s=1.0,
                )
            self._queued_bytes += request.n_bytes
            self._queue.put(request)
        return request.future

    def close(self) -> None:
        """Commit what is queued and end the thread. Blocks; a second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._take()
            if self._failure is not None:
                _fail(batch, _refused(self._failure))
                continue
            try:
                self._clear_readers()
                self._commit(batch)
            except Exception as error:  # the edge of the thread: whoever waits must hear of it
                log.exception("the writer failed")
                self._refuse(batch, f"the writer failed: {error}")

    def _take(self) -> tuple[list[Request], bool]:
        """Wait for requests or the next tick; return all that is queued, within bounds, after what the clock asks."""
        batch: list[Request] = []
        n_bytes = 0
        is_open = True
        try:
            item = self._queue.get(timeout=self._wait_s())
            while True:
                if item is None:
                    is_open = False
                    break
                n_bytes += item.n_bytes
                if item.future.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                    batch.append(item)
                if len(batch) >= MAX_BATCH_REQUESTS or n_bytes >= MAX_BATCH_BYTES:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            self._queued_bytes -= n_bytes
        return self._ended_leases() + batch, is_open

    def _clear_readers(self) -> None:
        self._n_ticks += 1
        if self._n_ticks % READER_CHECK_TICKS == 0 and (n_readers := self._file.clear_stale_readers()):
            log.warning("cleared readers of processes that are gone", extra={"kv": {"readers": n_readers}})

    def _wait_s(self) -> float:
        due_s = self._leases.next_due_s()
        return TICK_S if due_s is None else min(TICK_S, max(0.0, due_s - self._clock.monotonic_s()))

    def _ended_leases(self) -> list[Request]:
        requests = []
        for lease in self._leases.take_due(self._clock.monotonic_s()):
            log.info("lease expired", extra={"kv": {"lease": lease}})
            requests.append(
                Request(
                    lambda changes, lease=lease: changes.end_lease(lease),  # type: ignore[misc]
                    only_shrinks=True,
                    applied=lambda lease=lease: self._leases.remove(lease),  # type: ignore[misc]
                )
            )
        return requests

    def _commit(self, batch: list[Request]) -> None:
        """Apply and commit, growing the file as needed; every request's future is settled when this returns."""
        while True:
            try:
                outcomes = self._attempt(batch)
            except lmdb.MapFullError:
                if self._file.grow():
                    continue
                if len(batch) > 1:
                    self._commit_each(batch)
                elif self._drop_history():
                    continue
                else:
                    self._commit_in_reserve(batch)
                return
            except StoreCorrupt as error:
                if len(batch) > 1:
                    self._commit_each(batch)
                else:
                    _fail(batch, error)
                return
            except (lmdb.Error, OSError) as error:
                self._fail_commit(batch, store_error(error, self._file.path))
                return
            self._settle(batch, outcomes)
            return

    def _commit_each(self, batch: list[Request]) -> None:
        for request in batch:
            self._commit([request])

    def _attempt(self, batch: list[Request]) -> list[object]:
        """One LMDB transaction; leaving the block commits and syncs, or aborts on an exception."""
        outcomes: list[object] = []
        now_s = self._clock.now_s()
        with self._file.write() as txn:
            changes = Changes(txn, self._file.tables, now_s)
            for request in batch:
                try:
                    outcomes.append(request.apply(changes))
                except LeaseExpired as error:  # refused before its first write
                    outcomes.append(error)
            changes.compact(
                keep_from=changes.revision - self._history_revisions + 1, keep_since_s=now_s - self._history_age_s
            )
            changes.finish()
        return outcomes

    def _settle(self, batch: list[Request], outcomes: Sequence[object]) -> None:
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, XinfError):
                request.future.set_exception(outcome)
                continue
            if request.applied is not None:
                request.applied()
            request.future.set_result(outcome)
        if batch:
            self._committed()

    def _drop_history(self) -> bool:
        """Make room by forgetting the older half of the history; False when there is none, or no room even for that."""
        try:
            with self._file.reserve():
                n_revisions = self._drop_half()
        except lmdb.MapFullError:
            return False
        if n_revisions:
            log.warning("the store is full: dropped history", extra={"kv": {"revisions": n_revisions}})
        return n_revisions > 0

    def _drop_half(self) -> int:
        with self._file.write() as txn:
            changes = Changes(txn, self._file.tables, self._clock.now_s())
            n_revisions = changes.revision + 1 - changes.oldest
            if n_revisions == 0:
                return 0
            keep_from = changes.oldest + (n_revisions + 1) // 2
            changes.compact(keep_from=keep_from, keep_since_s=float("-inf"), max_events=DROP_EVENTS_PER_COMMIT)
            changes.finish()
            n_kept = changes.revision + 1 - changes.oldest
        with self._file.write() as txn:  # LMDB reuses pages two commits after they were freed
            Changes(txn, self._file.tables, self._clock.now_s()).touch()
        return n_revisions - n_kept

    def _commit_in_reserve(self, batch: list[Request]) -> None:
        full = StoreFull(
            f"{self._file.path} has reached {format_bytes(self._file.max_bytes)}; nothing was lost",
            remedy="raise store.max_bytes, or delete records",
            max_bytes=self._file.max_bytes,
        )
        if not all(request.only_shrinks for request in batch):
            _fail(batch, full)
            return
        try:
            with self._file.reserve():
                outcomes = self._attempt(batch)
        except lmdb.MapFullError:
            _fail(batch, full)
        except (lmdb.Error, OSError) as error:
            self._fail_commit(batch, store_error(error, self._file.path))
        else:
            self._settle(batch, outcomes)

    def _fail_commit(self, batch: list[Request], error: StoreError) -> None:
        if isinstance(error, StoreFull):  # the disk: LMDB has rolled back, the next commit may work
            _fail(batch, error)
            return
        self._refuse(batch, f"a commit failed: {error.message}")

    def _refuse(self, batch: list[Request], failure: str) -> None:
        """Take no more writes, neither these nor those queued nor those to come; reading goes on."""
        log.error("the store takes no more writes", extra={"kv": {"failure": failure}})
        with self._lock:
            self._failure = failure
        _fail(batch, _refused(failure))


def _refused(failure: str) -> StoreError:
    return StoreError(
        f"the store takes no more writes: {failure}", remedy="check the disk, then restart the control process"
    )


def _fail(batch: list[Request], error: StoreError) -> None:
    for request in batch:
        if not request.future.done():
            request.future.set_exception(error)

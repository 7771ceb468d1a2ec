"""Reading the history a page at a time: what makes a watcher cheap to hold and impossible to drown.

A watcher has a position and no queue. It reads when it is ready to deliver, so a slow one costs nothing but, in the
end, its place: when compaction passes its position it is told Compacted and lists again.

Cost of a page: O(log n) to find the position, then the rows scanned, of all prefixes: MAX_PAGE_ROWS at most, whole
revisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xinf.core.errors import Compacted
from xinf.core.ids import Revision
from xinf.meta.changes import Counters
from xinf.meta.contract import Event
from xinf.meta.layout import decode_event, decode_history_key, encode_history_key, event_of

if TYPE_CHECKING:
    from lmdb import Transaction, _Database

MAX_PAGE_ROWS = 2000
MAX_PAGE_BYTES = 1 << 20  # and the rest of the last revision: MAX_TXN_BYTES more at most


class Page(NamedTuple):
    """The prefix's events of all revisions from the position through `through`; `is_last`: nothing is behind it."""

    events: tuple[Event, ...]
    through: Revision
    is_last: bool


def read_page(txn: Transaction[bytes], tables: dict[bytes, _Database], prefix: bytes, position: Revision) -> Page:
    """Read from `position` on. Raises: Compacted when it is older than the history."""
    counters = Counters(txn, tables[b"state"])
    if position < counters.oldest:
        raise compacted(position, counters.oldest)
    if position > counters.revision:
        return Page((), Revision(position - 1), is_last=True)
    events: list[Event] = []
    n_rows = n_bytes = 0
    reached = position - 1
    with txn.cursor(db=tables[b"history"]) as cursor:
        cursor.set_range(encode_history_key(position, 0))
        while key := cursor.key():
            revision, _ = decode_history_key(key)
            if revision != reached and (n_rows >= MAX_PAGE_ROWS or n_bytes >= MAX_PAGE_BYTES):
                return Page(tuple(events), Revision(reached), is_last=False)
            reached = revision
            n_rows += 1
            data = cursor.value()
            stored = decode_event(data)
            if stored.key.startswith(prefix):
                n_bytes += len(data)
                events.append(event_of(revision, stored))
            cursor.next()
    return Page(tuple(events), counters.revision, is_last=True)


def compacted(position: int, oldest: int) -> Compacted:
    return Compacted(
        f"history before revision {oldest} is gone, the watch wants {position}",
        remedy="list again and watch from there",
        oldest_revision=oldest,
    )

"""Where a message of the engine's event stream belongs: sequence numbers judged, without a socket.

A publisher numbers its messages from 0 and sends each once, in order; some may not arrive. What did not arrive can be
replayed from the publisher's buffer, and then a message may come twice, live and replayed. A publisher that has been
started anew counts from 0 again.

    next       the first message that has not been passed on
    last_live  the last that came live; a live message at or before it is another publisher's, if it is not a copy

Messages are told apart by sequence and content, of the last RECENT only. A new publisher whose first message to arrive
has exactly the number that is expected cannot be told from the old one.
"""

from __future__ import annotations

import enum

RECENT = 256  # messages whose digest is kept


class Place(enum.Enum):
    """Where a message belongs."""

    NEXT = "next"
    SEEN = "seen"  # passed on already
    AHEAD = "ahead"  # others are missing before it
    STARTED_OVER = "started over"  # of another publisher than those before


class EventOrder:
    """The order of one stream."""

    def __init__(self) -> None:
        self.next = 0
        self._last_live: int | None = None
        self._digests: dict[int, int] = {}  # by sequence, in the order of passing on

    def judge_live(self, sequence: int, payload: bytes) -> Place:
        """Say where a live message belongs. O(1)."""
        is_copy = self._digests.get(sequence) == hash(payload)
        is_back = self._last_live is not None and sequence <= self._last_live
        if (is_back or self._is_other(sequence, payload)) and not is_copy:
            return Place.STARTED_OVER
        self._last_live = sequence if self._last_live is None else max(sequence, self._last_live)
        return self._judge(sequence)

    def judge_replayed(self, sequence: int, payload: bytes) -> Place:
        """Say where a replayed message belongs. O(1)."""
        return Place.STARTED_OVER if self._is_other(sequence, payload) else self._judge(sequence)

    def pass_on(self, sequence: int, payload: bytes) -> None:
        """Note that a message has been passed on; those before it are not expected any more. O(1)."""
        self.next = sequence + 1
        self._digests[sequence] = hash(payload)
        if len(self._digests) > RECENT:
            del self._digests[next(iter(self._digests))]

    def start_over(self) -> None:
        """Forget the publisher: a new one counts from 0."""
        self.next = 0
        self._last_live = None
        self._digests.clear()

    def _is_other(self, sequence: int, payload: bytes) -> bool:
        """Whether another message has been passed on under this number."""
        return sequence in self._digests and self._digests[sequence] != hash(payload)

    def _judge(self, sequence: int) -> Place:
        if sequence == self.next:
            return Place.NEXT
        return Place.SEEN if sequence < self.next else Place.AHEAD

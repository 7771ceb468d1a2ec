"""Server-sent events out of bytes that may be cut anywhere.

Source: the HTML standard's event stream format. Lines end with LF, CRLF or CR; a blank line ends an event; several
`data` lines are one payload with LF between; comments and other fields mean nothing here.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20


class EventStream:
    """Cuts one stream into payloads."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Give the payloads of the events that `data` completes. Raises: ValueError for an event without end."""
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # A CR at the very end may be half of a CRLF: it waits for what comes.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        payloads = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event and len(event) > 6:
                payloads.append(event[6:])
            elif (payload := _payload(event)) is not None:
                payloads.append(payload)
        return payloads

    @property
    def has_rest(self) -> bool:
        """Whether the stream stopped inside an event."""
        return bool(self._rest.strip())


def _payload(event: bytes) -> bytes | None:
    """Read an event's lines; None if it has no data, or none in it: such an event is not dispatched."""
    found: list[bytes] = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
        elif name not in (b"", b"event", b"id", b"retry"):
            raise ValueError(f"a line of the stream is no field of an event: {line[:80]!r}")
    return b"\n".join(found) or None

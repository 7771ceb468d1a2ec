"""Writes all KV events of an engine to a file: `ENGINE_PYTHON recorder.py ENDPOINT FILE`, until it gets a signal.

A subscriber of its own, beside the shim: it sees the same messages. A record: length (uint32, little-endian), payload.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import zmq


def main() -> None:
    endpoint, path = sys.argv[1:]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.set_hwm(0)
    socket.connect(endpoint)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    with Path(path).open("wb", buffering=0) as tape, contextlib.suppress(KeyboardInterrupt):
        while True:
            payload = socket.recv_multipart()[-1]
            tape.write(struct.pack("<I", len(payload)) + payload)


if __name__ == "__main__":
    main()

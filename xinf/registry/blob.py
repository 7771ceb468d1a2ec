"""Fetch one large file so that no byte comes twice: it goes on where the last try ended, in this process or another.

    NAME.partial   grows; locked while somebody writes; kept when they are interrupted
    NAME           appears whole, once its checksum is right

The source of bytes is a function that is asked for a range, so that this knows nothing of hubs.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from xinf.core.errors import Conflict, Unavailable

_CHUNK_BYTES = 1 << 20
# Tries in a row that bring nothing, and the wait before the second, doubled each time.
_FRUITLESS_TRIES = 5
_BACKOFF_S = 0.5
_MAX_SKIP_BYTES = 4 << 20
# A server that sends a byte now and then never runs into the timeout of a read.
_PATIENCE_S = 30.0
_SLOWEST_BYTES_PER_S = 16 << 10


class Answer(msgspec.Struct):
    """What a server sent: from the start of the range if it `is_partial`, else from the start of the file."""

    is_partial: bool
    chunks: Iterator[bytes]


Ask = Callable[[str | None], AbstractContextManager[Answer]]


def take(answer: Answer, length: int, *, skip: int = 0, clock: Callable[[], float] = time.monotonic) -> bytes:
    """Read up to `length` bytes of an answer after `skip`, and no more: the rest stays with the server.

    Raises: Unavailable if the server ignores ranges and would send a whole file first, or if it only trickles.
    """
    if skip > _MAX_SKIP_BYTES:
        raise Unavailable("the hub ignores ranges of bytes", remedy="use another mirror, or fetch the model first")
    found = bytearray()
    late_s = clock() + _PATIENCE_S + (skip + length) / _SLOWEST_BYTES_PER_S
    for chunk in answer.chunks:
        found += chunk
        if clock() > late_s:
            raise Unavailable(f"the hub sent {len(found)} bytes and is too slow", remedy="use another mirror")
        if len(found) >= skip + length:
            break
    return bytes(found[skip : skip + length])


def fetch(
    ask: Ask,
    destination: Path,
    *,
    size: int,
    sha256: str | None,
    on_bytes: Callable[[int], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring a file of `size` bytes to `destination`; what is there already is not asked for again.

    `ask`: takes the value of a Range header, None for the whole file. `on_bytes`: told how many more bytes are here,
    those of earlier tries too; a negative number takes some back.
    `sha256`: None where the hub does not say; then the length alone is compared.
    Raises: what `ask` raises, after five tries in a row that brought nothing; Unavailable for a wrong checksum;
    Conflict if another process fetches the same; OSError.
    """
    if destination.exists():
        on_bytes(size)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".partial")
    with _locked(partial) as file:
        if destination.exists():
            on_bytes(size)
            return
        digest = _hash_of(file)
        on_bytes(file.tell())
        fruitless = 0
        while (done := file.tell()) < size:
            try:
                digest = _append(ask, file, digest, size, on_bytes)
            except Unavailable:
                fruitless = fruitless + 1 if file.tell() <= done else 0
                if fruitless >= _FRUITLESS_TRIES:
                    raise
                if fruitless:
                    pause(_BACKOFF_S * 2 ** (fruitless - 1))
        file.flush()
        if file.tell() != size or (sha256 is not None and digest.hexdigest() != sha256):
            on_bytes(-file.tell())
            partial.unlink(missing_ok=True)
            raise Unavailable(
                f"{destination.name} came with another checksum than the hub says",
                remedy="try again; use another mirror",
            )
        partial.replace(destination)


def _append(
    ask: Ask, file: IO[bytes], digest: hashlib._Hash, size: int, on_bytes: Callable[[int], None]
) -> hashlib._Hash:
    """Append what one answer brings; return the digest of all that is there."""
    done = file.tell()
    with ask(f"bytes={done}-" if done else None) as answer:
        if done and not answer.is_partial:
            # A server without ranges sends all of it again.
            file.seek(0)
            file.truncate()
            digest = hashlib.sha256()
            on_bytes(-done)
        for chunk in answer.chunks:
            file.write(chunk)
            digest.update(chunk)
            on_bytes(len(chunk))
            if file.tell() > size:
                break
    if file.tell() <= done and file.tell() < size:
        raise Unavailable("the hub ended its answer early", remedy="try again later")
    return digest


def _hash_of(file: IO[bytes]) -> hashlib._Hash:
    """The digest of what is there; leaves the file at its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another process is fetching {path.name.removesuffix('.partial')}", remedy="wait until it is done"
            ) from None
        yield file

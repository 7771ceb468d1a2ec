"""Fetch one large file so that no byte comes twice: it goes on where the last try ended, in this process or another.

    NAME.partial   grows; locked while somebody writes; kept when they are interrupted
    NAME           appears whole, once its checksum is right and the disk has all of it

A power cut leaves the one or the other: content is with the disk before it gets its name. The name itself is not waited
for; if it is lost there is a whole NAME.partial, which is taken up.

The source of bytes is a function that is asked for a range, so that this knows nothing of hubs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from xinf.core.errors import Conflict, Unavailable

_CHUNK_BYTES = 1 << 20
PARTIAL = ".partial"
# Tries in a row that bring nothing, and the wait after the first, doubled each time until one has brought a lot.
_FRUITLESS_TRIES = 5
_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_RICH_BYTES = 1 << 20
# And how many in a row that bring something, but not a lot: with the waits between them that is some fifty minutes.
_POOR_TRIES = 100
# The most that a hub may ask to be left alone for. Hugging Face counts requests in windows of five minutes.
MAX_RETRY_AFTER_S = 300.0
# Written to the disk at the latest after so much, so that the end of a large file waits seconds and not minutes, and
# what is told to be here is.
_SYNC_BYTES = 256 << 20
# What a file system without locks says (NFS without its lock daemon).
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_SUCH_RANGE = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")
_MAX_SKIP_BYTES = 4 << 20
# A server that sends a byte now and then never runs into the timeout of a read.
_PATIENCE_S = 30.0
_SLOWEST_BYTES_PER_S = 16 << 10
_TRICKLE_BYTES_PER_S = 1 << 10  # of a whole file, which may share a slow line with others


class Answer(msgspec.Struct):
    """What a server sent: from the start of the range if it `is_partial`, else from the start of the file."""

    is_partial: bool
    chunks: Iterator[bytes]
    sha256: str | None = None  # of the whole file, if the answer says it
    tag: str | None = None  # that changes with the content, whatever it is made of


class Checksum(msgspec.Struct, frozen=True):
    """What a file's content must add up to: its SHA-256, or the name that git gives to such a content."""

    hexdigest: str
    is_git: bool = False


def is_partial(status: int, content_range: str | None, ranges: str | None) -> bool:
    """Whether an answer begins where `ranges` does. Raises: Unavailable if it begins elsewhere."""
    if status != 206:
        return False
    begun = None if content_range is None else _CONTENT_RANGE.match(content_range)
    if begun is not None and ranges is not None and not ranges.startswith(f"bytes={begun[1]}-"):
        raise Unavailable(
            f"the hub was asked for {ranges} and sent {str(content_range)[:60]}", remedy="use another mirror"
        )
    return True


Ask = Callable[[str | None], AbstractContextManager[Answer]]


def take(answer: Answer, length: int, *, skip: int = 0, clock: Callable[[], float] = time.monotonic) -> bytes:
    """Read up to `length` bytes of an answer after `skip`, and no more: the rest stays with the server.

    Raises: Unavailable if the server ignores ranges and would send a whole file first, or if it only trickles.
    """
    if skip > _MAX_SKIP_BYTES:
        raise Unavailable("the hub ignores ranges of bytes", remedy="use another mirror, or fetch the model first")
    found = bytearray()
    late_s = clock() + _PATIENCE_S
    for chunk in answer.chunks:
        found += chunk
        # By what came, not by what may come: of an index that is read whole, whatever its size, that would be hours.
        if clock() > late_s + len(found) / _SLOWEST_BYTES_PER_S:
            raise Unavailable(f"the hub sent {len(found)} bytes and is too slow", remedy="use another mirror")
        if len(found) >= skip + length:
            break
    return bytes(found[skip : skip + length])


def fetch(
    ask: Ask,
    destination: Path,
    *,
    size: int,
    checksum: Checksum | None,
    on_bytes: Callable[[int], None],
    on_write: Callable[[int], None] = lambda _: None,
    name: str | None = None,
    piece_bytes: int | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Bring a file of `size` bytes to `destination`; what is there already is not asked for again.

    `ask`: takes the value of a Range header, None for the whole file. `on_bytes`: told how many more bytes are here,
    those of earlier tries too; a negative number takes some back. `on_write`: told how many are to be written next.
    `checksum`: None where the hub does not say; then that of the answer counts, else the length alone.
    `name`: as people know it; None: as `destination` is called. `piece_bytes`: the most to ask for at once.
    Raises: what `ask` raises, after five tries in a row that brought nothing or only trickled, or a hundred that
    brought little; Unavailable for a wrong checksum; Conflict, with the `path` that is locked, if another process
    fetches the same; OSError.
    """
    if _is_there(destination, size):
        on_bytes(size)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + PARTIAL)
    called = name or destination.name
    with _locked(partial, called) as file:
        if _is_there(destination, size):
            partial.unlink(missing_ok=True)  # another process has brought it this moment
            on_bytes(size)
            return
        body = _Body(file, size, checksum, on_bytes, on_write)
        body.take_up()
        _complete(ask, body, called, piece_bytes, pause=pause, clock=clock)
        if not body.is_right() and body.n_left:
            # What an earlier try left was of something else, or came damaged out of a power cut.
            body.begin_again()
            _complete(ask, body, called, piece_bytes, pause=pause, clock=clock)
        if not body.is_right():
            on_bytes(-file.tell())
            partial.unlink(missing_ok=True)
            raise Unavailable(
                f"{called} came with another checksum than the hub says",
                remedy="try again; use another mirror",
            )
        body.sync()
        if os.fstat(file.fileno()).st_size != size:
            raise Unavailable(f"another host writes {called} as well", remedy="try again when it is done")
        try:
            partial.replace(destination)
        except FileNotFoundError:
            # Another host that shares no locks with this one was faster: it has written the same into the same file.
            if not _is_there(destination, size):
                raise


def _complete(
    ask: Ask,
    body: _Body,
    called: str,
    piece_bytes: int | None,
    *,
    pause: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Ask until all is here. Raises: as `fetch`."""
    n_fruitless, n_poor = 0, 0
    while (done := body.file.tell()) < body.size:
        try:
            _append(ask, body, piece_bytes, clock)
        except Unavailable as error:
            if error.fields.get("status") == _NO_SUCH_RANGE:
                if body.n_left:
                    body.begin_again()  # what was left is longer than what there is now
                    continue
                raise _shorter(called, done, body.size) from error
            n_came = body.file.tell() - done
            n_fruitless = n_fruitless + 1 if n_came <= 0 or body.is_trickle else 0
            n_poor = n_poor + 1 if n_came < _RICH_BYTES else 0
            if n_fruitless >= _FRUITLESS_TRIES or n_poor >= _POOR_TRIES:
                raise
            # A server that breaks off after a few bytes each time must not be asked in a loop.
            backoff_s = min(_BACKOFF_S * 2 ** max(0, n_poor - 1), _MAX_BACKOFF_S)
            asked_s = error.fields.get("retry_after_s")
            pause(max(backoff_s, min(float(asked_s), MAX_RETRY_AFTER_S)) if asked_s else backoff_s)


def _shorter(called: str, n_bytes: int, size: int) -> Unavailable:
    return Unavailable(
        f"the hub has {n_bytes} bytes of {called}, and lists {size}", remedy="try again later; use another mirror"
    )


class _Body:
    """What there is of a file, with its digest so far."""

    def __init__(
        self,
        file: IO[bytes],
        size: int,
        checksum: Checksum | None,
        on_bytes: Callable[[int], None],
        on_write: Callable[[int], None],
    ) -> None:
        self.file = file
        self.size = size
        self.on_bytes = on_bytes
        self._on_write = on_write
        self.is_trickle = False  # the last answer was given up: at its pace a model would take weeks
        self.n_left = 0  # bytes of these that an earlier try left
        self._n_unsynced = 0
        self._checksum = checksum
        self._digest = self._start()

    def take_up(self) -> None:
        """Read what an earlier try left."""
        self.file.seek(0)
        while chunk := self.file.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            self.on_bytes(len(chunk))  # tens of gigabytes take minutes: whoever waits is told, and may end it
        self.n_left = self.file.tell()
        if self.n_left > self.size:
            self.begin_again()

    def begin_again(self) -> None:
        self.on_bytes(-self.file.tell())
        self.file.seek(0)
        self.file.truncate()
        self._digest = self._start()
        self.n_left = 0

    def add(self, chunk: bytes) -> None:
        self._on_write(len(chunk))
        self.file.write(chunk)
        self._digest.update(chunk)
        self._n_unsynced += len(chunk)
        if self._n_unsynced >= _SYNC_BYTES:
            self.sync()
        self.on_bytes(len(chunk))

    def sync(self) -> None:
        """Wait until the disk has what came. Raises: OSError, also for what a network's disk refuses only now."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._n_unsynced = 0

    def learn(self, sha256: str | None) -> None:
        """Take over what the server says of the content, if the hub has said nothing."""
        if self._checksum is None and sha256 is not None:
            self._checksum = Checksum(sha256)

    def is_right(self) -> bool:
        is_same = self._checksum is None or self._digest.hexdigest() == self._checksum.hexdigest
        return self.file.tell() == self.size and is_same

    def _start(self) -> hashlib._Hash:
        if self._checksum is None or not self._checksum.is_git:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def _append(ask: Ask, body: _Body, piece_bytes: int | None, clock: Callable[[], float]) -> None:
    """Append what one answer brings. Raises: Unavailable also if it ends early, or only trickles."""
    done, body.is_trickle = body.file.tell(), False
    end = body.size if piece_bytes is None else min(body.size, done + piece_bytes)
    ranges = f"bytes={done}-" if piece_bytes is None else f"bytes={done}-{end - 1}"
    with ask(None if ranges == "bytes=0-" else ranges) as answer:
        body.learn(answer.sha256)
        if done and not answer.is_partial:
            body.begin_again()  # a server without ranges sends all of it again
        looked_s, n_then = clock(), body.file.tell()
        for chunk in answer.chunks:
            body.add(chunk)
            if (now_s := clock()) - looked_s > _PATIENCE_S:
                if body.file.tell() - n_then < (now_s - looked_s) * _TRICKLE_BYTES_PER_S:
                    body.is_trickle = True
                    raise Unavailable("the hub sends almost nothing", remedy="use another mirror")
                looked_s, n_then = now_s, body.file.tell()
            if body.file.tell() > body.size:
                break
    if body.file.tell() < end:
        raise Unavailable("the hub ended its answer early", remedy="try again later")


def _is_there(destination: Path, size: int) -> bool:
    try:
        found = destination.stat().st_size
    except FileNotFoundError:
        return False
    if found != size:
        destination.unlink()  # files appear whole: somebody has damaged it
    return found == size


@contextmanager
def _locked(path: Path, name: str) -> Iterator[IO[bytes]]:
    while True:
        # Not for appending: where two hosts share a disk and no locks, both write the same bytes to the same place.
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
            if not try_lock(file):
                raise Conflict(f"another process is fetching {name}", remedy="wait until it is done", path=str(path))
            if _is_same(file, path):
                yield file
                return


def try_lock(file: IO[bytes]) -> bool:
    """Lock a file that is open for writing; False if another process has it. Where there are no locks it is had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_same(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has its name: whoever held the lock before may have moved or removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

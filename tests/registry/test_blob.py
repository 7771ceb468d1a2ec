"""One large file, fetched by ranges."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from xinf.core.errors import Conflict, Unavailable
from xinf.registry.blob import Answer, Checksum, fetch, is_partial, take

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Gives `step` bytes for each request, then breaks; `fruitless` requests give nothing at all first."""

    def __init__(self, step: int, *, fruitless: int = 0) -> None:
        self.step = step
        self.fruitless = fruitless
        self.asked: list[str | None] = []

    @contextmanager
    def ask(self, ranges: str | None) -> Iterator[Answer]:
        self.asked.append(ranges)
        begin = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        if self.fruitless:
            self.fruitless -= 1
            raise Unavailable("no answer")
        yield Answer(is_partial=ranges is not None, chunks=self._chunks(begin))

    def _chunks(self, begin: int) -> Iterator[bytes]:
        yield CONTENT[begin : begin + self.step]
        if begin + self.step < len(CONTENT):
            raise Unavailable("broken")


def run(server: Server, path: Path, pauses: list[float] | None = None) -> int:
    done = 0

    def add(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes

    waits = [] if pauses is None else pauses
    fetch(server.ask, path, size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=add, pause=waits.append)
    return done


def test_every_break_is_resumed_after_waits_that_grow_while_little_comes(tmp_path: Path) -> None:
    server, pauses = Server(3000), []
    assert run(server, tmp_path / "b", pauses) == len(CONTENT)
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert pauses == [0.5, 1.0, 2.0]


def test_answer_that_ends_early_without_an_error_is_waited_for_as_well(tmp_path: Path) -> None:
    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        begin = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        yield Answer(is_partial=ranges is not None, chunks=iter([CONTENT[begin : begin + 6000]]))

    pauses: list[float] = []
    fetch(
        ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None, pause=pauses.append
    )
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert pauses == [0.5]


def test_tries_that_bring_a_lot_are_not_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.registry.blob._RICH_BYTES", 3000)
    pauses: list[float] = []
    run(Server(3000), tmp_path / "b", pauses)
    assert pauses == [0.5, 0.5, 0.5]


def test_tries_that_bring_nothing_wait_longer_and_end(tmp_path: Path) -> None:
    pauses: list[float] = []
    assert run(Server(6000, fruitless=3), tmp_path / "a", pauses) == len(CONTENT)
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    with pytest.raises(Unavailable, match="no answer"):
        run(Server(6000, fruitless=5), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_waits_are_bounded(tmp_path: Path) -> None:
    pauses: list[float] = []
    run(Server(500), tmp_path / "b", pauses)
    assert max(pauses) == 30.0
    assert len(pauses) == 20


def test_hub_that_breaks_off_after_a_few_bytes_each_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.registry.blob._POOR_TRIES", 10)
    server = Server(100)
    with pytest.raises(Unavailable, match="broken"):
        run(server, tmp_path / "b")
    assert len(server.asked) == 10
    assert (tmp_path / "b.partial").stat().st_size == 1000, "kept for the next time"


def test_very_large_file_is_asked_for_in_pieces(tmp_path: Path) -> None:
    asked: list[str | None] = []

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        asked.append(ranges)
        assert ranges is not None, "the hub answers no request for all of it"
        first, last = (int(number) for number in ranges.removeprefix("bytes=").split("-"))
        yield Answer(is_partial=True, chunks=iter([CONTENT[first : last + 1]]))

    (tmp_path / "b.partial").write_bytes(CONTENT[:1000])
    pauses: list[float] = []
    fetch(
        ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None, piece_bytes=4000,
        pause=pauses.append,
    )  # fmt: skip
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert asked == ["bytes=1000-4999", "bytes=5000-8999", f"bytes=9000-{len(CONTENT) - 1}"]
    assert pauses == []


def test_name_that_git_gives_to_a_content_is_a_checksum(tmp_path: Path) -> None:
    # `printf hello | git hash-object --stdin`
    name = Checksum("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", is_git=True)

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        yield Answer(is_partial=False, chunks=iter([b"hello"]))

    fetch(ask, tmp_path / "right", size=5, checksum=name, on_bytes=lambda _: None)
    assert (tmp_path / "right").read_bytes() == b"hello"
    with pytest.raises(Unavailable, match="checksum"):
        fetch(ask, tmp_path / "wrong", size=5, checksum=Checksum("0" * 40, is_git=True), on_bytes=lambda _: None)


def test_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(CONTENT[:50])
    run(Server(100_000), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_what_is_there_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "b.partial").write_bytes(CONTENT[:4000])
    server = Server(100_000)
    assert run(server, tmp_path / "b") == len(CONTENT)
    assert server.asked == ["bytes=4000-"]
    assert run(server, tmp_path / "b") == len(CONTENT)
    assert len(server.asked) == 1


def test_what_an_earlier_try_left_is_told_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.registry.blob._CHUNK_BYTES", 1000)
    (tmp_path / "b.partial").write_bytes(CONTENT[:3500])
    told: list[int] = []

    def stop(n_bytes: int) -> None:
        told.append(n_bytes)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(
            Server(100_000).ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=stop,
            pause=lambda _: None,
        )  # fmt: skip
    assert told == [1000, 1000]
    assert (tmp_path / "b.partial").read_bytes() == CONTENT[:3500]


def test_server_that_only_trickles_is_given_up(tmp_path: Path) -> None:
    now_s, asked = 0.0, []

    def drip(begin: int) -> Iterator[bytes]:
        nonlocal now_s
        for place in range(begin, len(CONTENT)):
            now_s += 5.0
            yield CONTENT[place : place + 1]

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        asked.append(ranges)
        begin = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        yield Answer(is_partial=ranges is not None, chunks=drip(begin))

    with pytest.raises(Unavailable, match="almost nothing"):
        fetch(
            ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None,
            pause=lambda _: None, clock=lambda: now_s,
        )  # fmt: skip
    assert asked == [None, *(f"bytes={7 * n}-" for n in range(1, 5))]
    assert (tmp_path / "b.partial").stat().st_size == 35


def test_slow_line_is_no_trickle(tmp_path: Path) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 20.0  # for 100,000 bytes
        return now_s

    fetch(
        Server(100_000).ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None,
        clock=clock,
    )  # fmt: skip
    assert (tmp_path / "b").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"other" * 100, CONTENT + b"more", bytes(len(CONTENT))])
def test_leftover_of_something_else_or_of_a_power_cut_is_fetched_anew_at_once(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.partial").write_bytes(left)
    server = Server(100_000)
    assert run(server, tmp_path / "b") == len(CONTENT)
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert server.asked[-1] is None


def test_wrong_content_is_thrown_away_and_not_asked_for_for_ever(tmp_path: Path) -> None:
    asked: list[str | None] = []

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        asked.append(ranges)
        yield Answer(is_partial=False, chunks=iter([bytes(len(CONTENT))]))

    (tmp_path / "b.partial").write_bytes(CONTENT[:100])
    with pytest.raises(Unavailable, match="checksum"):
        fetch(ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None)
    assert asked == ["bytes=100-"], "the answer was of the whole file, and nothing of the leftover is in it"
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.registry.blob._SYNC_BYTES", 3000)
    done: list[tuple[str, int]] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_size))
        sync(descriptor)

    def named(path: Path, target: Path) -> Path:
        done.append(("name", path.stat().st_size))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    run(Server(3000), tmp_path / "b")
    # In between too, so that the end of a large file does not wait for all of it.
    assert done == [*(("sync", n) for n in (3000, 6000, 9000, len(CONTENT))), ("name", len(CONTENT))]


def test_disk_that_refuses_at_the_end_leaves_no_right_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of the network does, which takes all that is written and says only then that it is full."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(Server(100_000), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_checksum_that_only_the_answer_knows_is_compared_too(tmp_path: Path) -> None:
    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        yield Answer(is_partial=False, chunks=iter([CONTENT[::-1]]), sha256=SHA256)

    with pytest.raises(Unavailable, match="checksum"):
        fetch(ask, tmp_path / "b", size=len(CONTENT), checksum=None, on_bytes=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_hub_that_wants_to_be_left_alone_is_for_as_long_as_it_says(tmp_path: Path) -> None:
    waits = iter([7.0, 10_000.0])

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        if (wait_s := next(waits, None)) is not None:
            raise Unavailable("answered 429", status=429, retry_after_s=wait_s)
        yield Answer(is_partial=False, chunks=iter([CONTENT]))

    pauses: list[float] = []
    fetch(
        ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None, pause=pauses.append
    )
    assert pauses == [7.0, 300.0]


class Shorter:
    """A hub whose file is shorter than its listing says."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str | None] = []

    @contextmanager
    def ask(self, ranges: str | None) -> Iterator[Answer]:
        self.asked.append(ranges)
        begin = int(ranges.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        if begin and begin >= len(self.content):
            raise Unavailable("answered 416", status=416)
        yield Answer(is_partial=ranges is not None, chunks=iter([self.content[begin:]]))


def test_file_shorter_than_listed_is_said_to_be(tmp_path: Path) -> None:
    hub = Shorter(CONTENT[:4000])
    with pytest.raises(Unavailable, match=f"has 4000 bytes of b, and lists {len(CONTENT)}"):
        fetch(hub.ask, tmp_path / "b", size=len(CONTENT), checksum=None, on_bytes=lambda _: None, pause=lambda _: None)
    assert hub.asked == [None, "bytes=4000-"]


def test_leftover_that_is_longer_than_the_file_begins_again(tmp_path: Path) -> None:
    (tmp_path / "b.partial").write_bytes(b"x" * (len(CONTENT) - 1))
    hub = Shorter(CONTENT)
    hub.content = CONTENT[:100]
    with pytest.raises(Unavailable, match="has 100 bytes"):
        fetch(hub.ask, tmp_path / "b", size=len(CONTENT), checksum=None, on_bytes=lambda _: None, pause=lambda _: None)
    assert hub.asked == [f"bytes={len(CONTENT) - 1}-", None, "bytes=100-"]


@pytest.mark.parametrize(("status", "content_range", "ranges", "is_part"), [
    (200, None, "bytes=5-", False),
    (200, "bytes 5-9/10", "bytes=5-", False),
    (206, "bytes 5-9/10", "bytes=5-", True),
    (206, None, "bytes=5-", True),
    (206, "bytes 0-9/10", None, True),
])  # fmt: skip
def test_part_is_what_says_so(status: int, content_range: str | None, ranges: str | None, is_part: bool) -> None:
    assert is_partial(status, content_range, ranges) is is_part


@pytest.mark.parametrize("content_range", ["bytes 0-9/10", "bytes 50-59/60"])
def test_part_of_something_else_is_not_taken(content_range: str) -> None:
    with pytest.raises(Unavailable, match="was asked for bytes=5-"):
        is_partial(206, content_range, "bytes=5-")


def test_disk_without_locks_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: IO[bytes], how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert run(Server(3000), tmp_path / "b") == len(CONTENT)


@pytest.mark.parametrize("is_done", [True, False])
def test_two_hosts_that_share_no_locks_bring_one_file(
    is_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other comes in between, writes the same bytes into the same file, and gives it its name."""
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    partial, other = tmp_path / "b.partial", Server(100_000)

    @contextmanager
    def ask(ranges: str | None) -> Iterator[Answer]:
        def chunks() -> Iterator[bytes]:
            yield CONTENT[:5000]
            if is_done:
                run(other, tmp_path / "b")
            else:
                partial.write_bytes(CONTENT[:7000])  # it is still at it
            yield CONTENT[5000:]

        yield Answer(is_partial=False, chunks=chunks())

    fetch(ask, tmp_path / "b", size=len(CONTENT), checksum=Checksum(SHA256), on_bytes=lambda _: None)
    assert (tmp_path / "b").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_only_one_process_fetches_a_file(tmp_path: Path) -> None:
    with (tmp_path / "b.partial").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process") as caught:
            run(Server(100), tmp_path / "b")
        assert caught.value.fields["path"] == str(tmp_path / "b.partial")
        with pytest.raises(Conflict, match=r"is fetching model\.safetensors"):
            fetch(
                Server(100).ask, tmp_path / "b", size=1, checksum=None, on_bytes=lambda _: None,
                name="model.safetensors",
            )  # fmt: skip


@pytest.mark.parametrize("becomes", ["b", None])
def test_lock_on_what_another_process_moved_or_threw_away_is_not_taken(
    becomes: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the lock when this one opened the file, and was done with it before this one asked."""
    partial, lock = tmp_path / "b.partial", fcntl.flock
    partial.write_bytes(CONTENT)

    def late(file: IO[bytes], how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        if becomes is None:
            partial.unlink()
        else:
            partial.rename(tmp_path / becomes)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    server = Server(100_000)
    assert run(server, tmp_path / "b") == len(CONTENT)
    assert server.asked == ([None] if becomes is None else [])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_take_reads_no_more_than_it_needs() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"0123456789"
        yield b"abcdefghij"
        raise AssertionError("too far")

    assert take(Answer(is_partial=False, chunks=chunks()), 4, skip=8) == b"89ab"
    with pytest.raises(Unavailable, match="ignores ranges"):
        take(Answer(is_partial=False, chunks=chunks()), 4, skip=1 << 30)


def test_take_gives_up_a_server_that_trickles() -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 9.0
        return now_s

    with pytest.raises(Unavailable, match="too slow"):
        take(Answer(is_partial=True, chunks=iter([b"x"] * 1000)), 1000, clock=clock)
    now_s = 0.0
    with pytest.raises(Unavailable, match="hub sent 4 bytes"):  # however much it may send
        take(Answer(is_partial=True, chunks=iter([b"x"] * 1000)), 256 << 20, clock=clock)

"""Worker numbers and the admin socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from xinf.core.paths import Paths
from xinf.gateway.worker import AdminSocket, WorkerNumber, ask


@pytest.fixture
def paths(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    return Paths(short_dir / "data")


def test_claim_takes_the_first_free_number(paths: Paths) -> None:
    first, second = WorkerNumber.claim(paths), WorkerNumber.claim(paths)
    assert (first.number, second.number) == (0, 1)
    first.release()
    third = WorkerNumber.claim(paths)
    assert third.number == 0
    second.release()
    third.release()


async def test_ask_siblings_leaves_out_who_is_not_there(paths: Paths) -> None:
    paths.make_runtime_dir()
    sockets = [AdminSocket(paths, n, {"metrics": lambda n=n: {"n": n}}) for n in range(2)]
    for admin in sockets:
        await admin.start()
    paths.gateway_admin_socket(7).touch()
    assert sorted(answer["n"] for answer in await sockets[0].ask_siblings("metrics")) == [0, 1]
    for admin in sockets:
        await admin.stop()
    assert not paths.gateway_admin_socket(0).exists()


async def test_admin_socket_survives_nonsense(paths: Paths) -> None:
    paths.make_runtime_dir()
    admin = AdminSocket(paths, 0, {"metrics": dict})
    await admin.start()
    for line in (b"\n", b"[]\n", b'{"ask": 3}\n', b"\xff\xff\n", b"x" * 200_000 + b"\n", b""):
        reader, writer = await asyncio.open_unix_connection(str(paths.gateway_admin_socket(0)))
        writer.write(line)
        writer.write_eof()
        assert not (await reader.read()).startswith(b"{}")
        writer.close()
    assert "cannot be asked" in (await ask(paths, 0, "surprise"))["error"]
    assert await ask(paths, 0, "metrics") == {}
    await admin.stop()

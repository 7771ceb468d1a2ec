"""The client while its server is killed, restarted, stopped, slow or absent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.meta.backends import open_lmdb
from xinf._pb import meta_service_pb2 as pb
from xinf._pb import meta_service_pb2_grpc as pb_grpc
from xinf.core.errors import Compacted, InvalidRequest, LeaseExpired, StoreError, Unavailable
from xinf.core.ids import LeaseId, Revision
from xinf.meta import Compare, Event, LmdbStore, MetaClient, MetaServer, Put

HERE = Path(__file__).parent
DEADLINE_S = 30.0


class Owner:
    """The process that owns the store; killed with -9 and started again."""

    def __init__(self, directory: Path, checkout: Path, history_revisions: int = 100_000) -> None:
        self.target = f"unix:{directory}/control.sock"
        self._command = [
            sys.executable,
            str(HERE / "server_child.py"),
            str(directory / "m"),
            self.target,
            str(history_revisions),
        ]
        self._env = dict(os.environ, PYTHONPATH=str(checkout))
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert await asyncio.to_thread(self._process.stdout.readline) == "ready\n"

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            if number == signal.SIGKILL:
                self._process.communicate()
                self._process = None


@pytest.fixture
def owner(short_dir: Path, checkout: Path) -> Iterator[Owner]:
    owner = Owner(short_dir, checkout)
    yield owner
    owner.kill()


@pytest.fixture
async def store(short_dir: Path) -> AsyncIterator[LmdbStore]:
    store = open_lmdb(short_dir / "m")
    yield store
    await store.close()


@pytest.fixture
async def server(store: LmdbStore, short_dir: Path) -> AsyncIterator[MetaServer]:
    server = MetaServer(store, gateway_url="http://127.0.0.1:8080")
    await server.start([f"unix:{short_dir}/control.sock"])
    yield server
    await server.stop(0)


@pytest.fixture
async def client(server: MetaServer, short_dir: Path) -> AsyncIterator[MetaClient]:
    client = MetaClient(f"unix:{short_dir}/control.sock")
    yield client
    await client.close()


async def follow(client: MetaClient, events: list[Event], until_key: str) -> None:
    watch = client.watch("", Revision(1))
    async with contextlib.aclosing(watch):  # type: ignore[type-var]
        async for batch in watch:
            events += batch.events
            if any(event.key == until_key for event in batch.events):
                return


@pytest.mark.crash
async def test_watch_across_killed_servers_neither_loses_nor_repeats(owner: Owner) -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}")
    await owner.start()
    client, writer = MetaClient(owner.target), MetaClient(owner.target)
    seen: list[list[Event]] = [[], [], []]
    watchers = [asyncio.create_task(follow(client, events, "end")) for events in seen]
    n_acknowledged = 0
    outcomes: set[object] = set()

    async def write() -> None:
        nonlocal n_acknowledged
        while n_acknowledged < 400:
            try:
                await writer.txn([], [Put(f"k{rng.randrange(9)}", b"%d" % n_acknowledged)])
                n_acknowledged += 1
            except Unavailable as error:
                outcomes.add(error.fields["outcome"])

    async with asyncio.timeout(120):
        writing = asyncio.create_task(write())
        for kill in range(1, 5):
            while n_acknowledged < kill * 80 and not writing.done():
                await asyncio.sleep(0.001)
            owner.kill()
            await owner.start()
        await writing
        last = (await client.txn([], [Put("end", b"")])).revision
        await asyncio.gather(*watchers)
    assert n_acknowledged == 400
    assert outcomes <= {"unknown"}  # transactions that were on their way when the owner was killed
    for events in seen:
        assert [event.revision for event in events] == list(range(1, last + 1))
    await client.close()
    await writer.close()


@pytest.mark.crash
async def test_calls_made_while_the_owner_is_away_are_answered_when_it_is_back(owner: Owner) -> None:
    client = MetaClient(owner.target)
    calls = [
        asyncio.create_task(call)
        for call in (client.list(""), client.txn([], [Put("a", b"1")]), client.grant(60), client.status())
    ]
    await asyncio.sleep(0)
    await owner.start()
    _, result, lease, status = await asyncio.gather(*calls)
    assert result.succeeded
    assert await client.keep_alive(lease) == 60
    assert status.gateway_url == "http://127.0.0.1:8080"
    owner.kill()
    again = [asyncio.create_task(call) for call in (client.get("a"), client.keep_alive(lease), client.check())]
    await asyncio.sleep(0)
    await owner.start()
    kv, ttl_s, problems = await asyncio.gather(*again)
    assert kv is not None
    assert (kv.value, ttl_s, problems) == (b"1", 60, [])
    await client.close()


async def test_absent_owner_is_unavailable_with_a_remedy(short_dir: Path) -> None:
    client = MetaClient(f"unix:{short_dir}/nobody.sock", timeout_s=0.2)
    for call in (client.get("a"), client.txn([], [Put("a", b"")])):
        with pytest.raises(Unavailable, match="xinf serve") as caught:
            await call
        assert caught.value.fields["outcome"] == "not_applied"
    await client.close()


@pytest.mark.crash
async def test_transaction_that_got_no_answer_is_of_unknown_outcome_and_not_repeated(owner: Owner) -> None:
    await owner.start()
    client = MetaClient(owner.target, timeout_s=0.5)
    await client.txn([], [Put("n", b"0")])
    owner.kill(signal.SIGSTOP)
    with pytest.raises(Unavailable, match="unknown") as caught:
        await client.txn([], [Put("n", b"1")])
    assert caught.value.fields["outcome"] == "unknown"
    with pytest.raises(Unavailable) as read:
        await client.get("n")
    assert "unknown" not in str(read.value)
    owner.kill(signal.SIGCONT)
    patient = MetaClient(owner.target)
    await patient.txn([], [Put("end", b"")])
    listing = {kv.key: kv for kv in (await patient.list("")).items}
    assert listing["n"].version <= 2
    await patient.close()
    await client.close()


@pytest.mark.crash
async def test_watch_whose_place_was_compacted_away_says_so(short_dir: Path, checkout: Path) -> None:
    owner = Owner(short_dir, checkout, history_revisions=5)
    try:
        await owner.start()
        client = MetaClient(owner.target)
        for i in range(20):
            await client.txn([], [Put("k", b"%d" % i)])
        with pytest.raises(Compacted) as caught:
            await anext(aiter(client.watch("", Revision(1))))
        assert caught.value.fields["oldest_revision"] == 16
        await client.close()
    finally:
        owner.kill()


async def test_stop_ends_watches_at_once_and_a_new_server_takes_them_up(
    client: MetaClient, server: MetaServer, store: LmdbStore, short_dir: Path
) -> None:
    events: list[Event] = []
    watching = asyncio.create_task(follow(client, events, "end"))
    await store.txn([], [Put("a", b"")])
    while not events:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(DEADLINE_S):
        await server.stop(1e6)  # would wait for an open watch
    assert not (short_dir / "control.sock").exists()
    await store.txn([], [Put("b", b"")])
    second = MetaServer(store)
    await second.start([f"unix:{short_dir}/control.sock"])
    await store.txn([], [Put("end", b"")])
    async with asyncio.timeout(DEADLINE_S):
        await watching
    assert [event.key for event in events] == ["a", "b", "end"]
    await second.stop(0)


async def test_client_that_does_not_read_holds_up_nobody(store: LmdbStore, server: MetaServer, short_dir: Path) -> None:
    """50 MB of events for a watcher that reads none: the handler waits, the store goes on."""
    async with grpc.aio.insecure_channel(f"unix:{short_dir}/control.sock") as channel:
        call = pb_grpc.MetaServiceStub(channel).Watch(pb.WatchRequest(prefix="", from_revision=1))
        n_batches = 0
        original = store.watch

        async def counted(prefix: str, from_revision: Revision) -> AsyncIterator[object]:
            nonlocal n_batches
            async for batch in original(prefix, from_revision):
                n_batches += 1
                yield batch

        store.watch = counted  # type: ignore[method-assign, assignment]
        for i in range(100):
            await store.txn([], [Put(f"k{i % 10}", os.urandom(500_000))])
        assert n_batches < 50, "the server went on writing to a client that does not read"
        call.cancel()


async def test_abandoned_watch_is_given_up_by_the_server(
    client: MetaClient, server: MetaServer, store: LmdbStore
) -> None:
    watch = client.watch("", Revision(1))
    waiting = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S):
        while not store._wakeups._by_loop:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        while store._wakeups._by_loop:
            await asyncio.sleep(0.001)


async def test_errors_keep_their_class_and_fields(client: MetaClient) -> None:
    with pytest.raises(LeaseExpired) as expired:
        await client.txn([], [Put("a", b"", LeaseId(77))])
    assert expired.value.fields["lease"] == 77
    assert expired.value.remedy == "grant a new one"
    with pytest.raises(InvalidRequest, match="key"):
        await client.get("a b")


async def test_largest_listing_passes_and_a_larger_one_is_refused(client: MetaClient, store: LmdbStore) -> None:
    for i in range(40):
        await store.txn([], [Put(f"k{i}", b"v" * (1 << 20))])
    assert len((await client.list("")).items) == 40
    for i in range(40, 50):
        await store.txn([], [Put(f"k{i}", b"v" * (1 << 20))])
    with pytest.raises(InvalidRequest, match="48 MiB"):
        await client.list("")
    assert len((await client.list("k1")).items) == 11


async def test_backup_through_the_client(client: MetaClient, store: LmdbStore, short_dir: Path) -> None:
    await client.txn([Compare("a", None)], [Put("a", b"1")])
    done = await client.backup(short_dir / "copy")
    assert done.revision == 1
    with pytest.raises(InvalidRequest, match="not empty"):
        await client.backup(short_dir / "copy")


async def test_server_answers_health_and_reflection(client: MetaClient, short_dir: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{short_dir}/control.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="xinf.meta.v1.MetaService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        names = {service.name async for answer in call for service in answer.list_services_response.service}
    assert "xinf.meta.v1.MetaService" in names


async def test_server_listens_on_tcp_too_and_says_which_port(store: LmdbStore) -> None:
    server = MetaServer(store)
    await server.start(["127.0.0.1:0"])
    client = MetaClient(f"127.0.0.1:{server.ports[0]}")
    assert (await client.status()).backend == "lmdb"
    with pytest.raises(StoreError, match="cannot listen"):
        await MetaServer(store).start([f"127.0.0.1:{server.ports[0]}"])
    await client.close()
    await server.stop(0)

"""The agent of one node: looks at its replicas one by one and does what `decide` says.

Three things wake it for a replica: its record changed, its process ended (pidfd), the time `decide` asked for is over.
Whatever it was, the handler looks at the record, the files and /proc as they are. A failure of one replica's
handling is logged with its id and tried again; it never ends the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path

import msgspec

from xinf.agent.custody import Custody, ReplicaDirectory, read_oom_kills
from xinf.agent.decide import (
    STARTING_PHASES,
    Action,
    Clean,
    Drain,
    Facts,
    Kill,
    KillGuard,
    LookAgain,
    Start,
    Stopping,
    Terminate,
    Wish,
    Write,
    begin,
    decide,
    fail,
    quiet_s,
)
from xinf.agent.directories import ReplicaDirectories
from xinf.agent.drain import drain
from xinf.agent.failure import Evidence
from xinf.agent.holding import EngineUse
from xinf.agent.memory import StartMemory, measure, read_start_memory
from xinf.agent.models import find_models
from xinf.agent.process import ExitWatch, group_members, is_alive, kill_followers, kill_group, send_signal
from xinf.agent.registration import Registration
from xinf.agent.starter import EngineProcess, Starter, start_failure
from xinf.agent.watcher import DeviceWatcher
from xinf.core.clock import Clock, SystemClock
from xinf.core.config import Config
from xinf.core.errors import Conflict, NotFound, Unavailable, XinfError
from xinf.core.ids import Revision
from xinf.core.records import REPLICAS, NodeRecord, Phase, ReplicaRecord
from xinf.core.shim import ShimSpec, ShimStatus, read_file
from xinf.device import ReadingStream, read_host, read_once
from xinf.meta import KeyQueue, Mirror, Records, Store, record_measured

logger = logging.getLogger(__name__)

_N_WORKERS = 4  # replicas handled at once; a handler waits for the store, and before a start for the driver
_LOG_LINES = 200  # looked through for a cause
_STOP_MARGIN_S = 30.0
_POLL_S = 0.05
_MODELS_S = 30.0  # between two looks at which models are on the disk
_RETRY_S = 1.0
_FIRST_LOOK_S = 3.0  # for drivers to say what is in use, before the node is told of


class _Held:
    """What the agent knows of one replica beyond its record and files; all of it can be lost."""

    def __init__(self, directory: ReplicaDirectory) -> None:
        self.directory = directory
        self.written: tuple[ReplicaRecord, Revision] | None = None  # our own last write, until the mirror shows it
        self.child: EngineProcess | None = None
        self.watch: ExitWatch | None = None
        self.watched_start: str | None = None
        self.stopping: Stopping | None = None
        self.killed_s: float | None = None
        self.draining: asyncio.Task[None] | None = None
        self.start: Custody | None = None  # the last that was seen, for the other replicas' `may_start`
        self.phase: Phase | None = None
        self.memory = StartMemory()  # of its devices, before the start
        self.has_looked = False  # at that memory, for the start that comes next
        self.shares = False  # whether another that shares may be on its devices


class Agent:
    """Runs the replicas that the scheduler placed on one node.

    `node`: the record that this agent registers; its environments and devices are what replicas are started with.
    `root`: below it are the /proc and /sys that devices are read from.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        node: NodeRecord,
        *,
        clock: Clock | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._config = config
        self._root = root
        self._clock = clock or SystemClock()
        self._store = store
        self._records = Records(store)
        self._mirror = Mirror(store, REPLICAS, ReplicaRecord)
        self._queue = KeyQueue(clock=self._clock)
        self._registration = Registration(store, node, ttl_s=config.agent.lease_ttl)
        self._watcher = self._make_watcher() if config.agent.sample_interval else None
        self._directories = ReplicaDirectories(config.paths.replicas_dir)
        self._starter = Starter(config, self._clock, root)
        self._held: dict[str, _Held] = {}
        self._starting: dict[str, tuple[str, ...]] = {}  # devices of starts that are not written down yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._models_moved = asyncio.Event()  # files of a model may have come
        self._is_parking = False
        self._runner: asyncio.Task[None] | None = None
        self.is_ready = self._registration.is_registered

    async def run(self) -> None:
        """Serve until `stop` or cancellation. Engines outlive this call.

        Raises: Conflict when another agent runs this node.
        """
        self._runner = asyncio.current_task()
        lock = self._directories.lock()
        try:
            await self._start_mirror()
            self._adopt()
            await self._look_around()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._registration.run())
                tasks.create_task(self._resync())
                tasks.create_task(self._watch_devices())
                tasks.create_task(self._watch_models())
                for _ in range(_N_WORKERS):
                    tasks.create_task(self._work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for held in self._held.values():
                if held.watch is not None:
                    held.watch.close()
            await self._mirror.stop()
            os.close(lock)

    @property
    def has_engines(self) -> bool:
        """Whether an engine process of this node is in our hands."""
        return any(held.directory.read_custody() for held in self._held.values())

    async def stop(self, *, stop_engines: bool) -> None:
        """End `run`. With `stop_engines`, drain and end every engine of this node first, then leave the store."""
        if stop_engines:
            self._is_parking = True
            self._add_all()
            limit_s = self._config.agent.drain_timeout + _STOP_MARGIN_S
            try:
                async with asyncio.timeout(limit_s):
                    while self.has_engines:
                        await asyncio.sleep(_POLL_S)
            except TimeoutError:
                logger.error("engines are left after %g s: %s", limit_s, ", ".join(self._held))
            await self._registration.withdraw()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])

    async def _start_mirror(self) -> None:
        """Read the records; without them nothing can be told from an orphan, so this waits as long as it takes."""
        while True:
            try:
                await self._mirror.start()
            except Unavailable as error:
                logger.warning("node %s waits for the control process: %s", self._node.name, error)
                await asyncio.sleep(_RETRY_S)
            else:
                self._mirror.listen(self._on_record)
                return

    def _adopt(self) -> None:
        """Look at everything that may concern this node: its records, and what earlier agents started here.

        What runs is known before the first start is considered, so that no device gets a second engine.
        """
        for name, custody in self._directories.started():
            self._hold(name).start = custody
        self._add_all()

    def _hold(self, name: str) -> _Held:
        found = self._held.get(name)
        if found is None:
            found = self._held[name] = _Held(self._directories.of(name))
        return found

    def _add_all(self) -> None:
        for name, (record, _) in self._mirror.items.items():
            if record.node == self._node.name:
                self._queue.add(name)
        for name in self._held:
            self._queue.add(name)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._config.control.resync_interval)
            self._add_all()
            try:
                self._directories.prune({*self._mirror.items, *self._held})
            except OSError as error:
                logger.warning("old replica directories stay: %s", error)

    @property
    def _node(self) -> NodeRecord:
        return self._registration.record

    def _make_watcher(self) -> DeviceWatcher:
        return DeviceWatcher(
            self._registration,
            engines=self._engines_here,
            list_devices=lambda: read_host(root=self._root),
            interval_s=self._config.agent.sample_interval,
            store=self._store,
            chart=self._config.paths.devices_file,
            root=self._root,
        )

    async def _look_around(self) -> None:
        """See what is in use before the node is told of; a driver that hangs does not keep it away for long."""
        if self._watcher is not None:
            vendors = {device.vendor for device in self._node.devices}
            self._watcher.foresee(await read_once(vendors, deadline_s=_FIRST_LOOK_S, root=self._root))

    async def _watch_devices(self) -> None:
        if self._watcher is None:
            return
        async with ReadingStream(interval_s=self._config.agent.sample_interval, root=self._root) as readings:
            await self._watcher.run(aiter(readings))

    async def _watch_models(self) -> None:
        """Tell which models' files are here as they come and go: after a start, and every now and then."""
        while True:
            self._models_moved.clear()
            try:
                found = await asyncio.to_thread(find_models, self._config.paths.models_dir, os.environ)
                if found != self._node.models:
                    await self._registration.update(models=found)
            except Exception:  # what somebody else put into a cache ends no agent
                logger.exception("which models are on this disk is not known")
            try:
                async with asyncio.timeout(_MODELS_S):
                    await self._models_moved.wait()
            except TimeoutError:
                continue

    def _engines_here(self) -> Iterator[EngineUse]:
        for name, held in self._held.items():
            if held.start is not None and held.start.pid is not None:
                record = self._mirror.get(name)
                yield EngineUse(
                    replica=held.start.replica,
                    leader_pid=held.start.pid,
                    device_uuids=held.start.device_uuids,
                    is_orphan=record is None,
                    is_ready=held.phase is Phase.READY,
                    need_bytes=record.need.device_bytes if record is not None and record.need is not None else None,
                )

    def _on_record(self, name: str) -> None:
        found = self._mirror.items.get(name)
        held = self._held.get(name)
        if held is not None and (found is None or (held.written and found[1] >= held.written[1])):
            held.written = None
        if held is not None or (found is not None and found[0].node == self._node.name):
            self._queue.add(name)

    async def _work(self) -> None:
        while True:
            name = await self._queue.get()
            try:
                delay_s = await self._handle(name)
            except (Conflict, NotFound) as error:
                logger.debug("replica %s changed meanwhile: %s", name, error)
                self._queue.add_after(name, _POLL_S)
            except Unavailable as error:
                logger.warning("replica %s cannot be reported: %s", name, error)
                self._queue.retry(name)
            except Exception:
                logger.exception("replica %s could not be handled", name)
                self._queue.retry(name)
            else:
                self._queue.forget(name)
                if delay_s is not None:
                    self._queue.add_after(name, delay_s)
            finally:
                self._queue.done(name)

    async def _handle(self, name: str) -> float | None:
        """Look at one replica and act; return when to look again."""
        held = self._hold(name)
        found = self._current(name, held)
        wish = self._wish(found[0] if found else None)
        record = None if wish is Wish.CLEAN or found is None else found[0]
        now_s = self._clock.now_s()
        facts = self._look(name, held, record)
        delay_s: float | None = None
        actions = decide(record, wish, facts, self._config.agent, now_s)
        if held.has_looked and not any(isinstance(action, Start) for action in actions):
            self._end_look(name, held)  # it is not to start any more
        for action in actions:
            if isinstance(action, LookAgain):
                delay_s = action.delay_s
            else:
                await self._apply(name, held, action, facts, now_s)
        if wish is Wish.CLEAN and delay_s is None:
            self._held.pop(name, None)
        return delay_s

    def _current(self, name: str, held: _Held) -> tuple[ReplicaRecord, Revision] | None:
        """The newest record: the mirror's, or what was written a moment ago and has not come back yet."""
        return held.written or self._mirror.items.get(name)

    def _wish(self, record: ReplicaRecord | None) -> Wish:
        if record is None or record.node != self._node.name:
            return Wish.CLEAN
        if record.target == "stop":
            return Wish.STOP
        return Wish.PARK if self._is_parking else Wish.RUN

    def _look(self, name: str, held: _Held, record: ReplicaRecord | None) -> Facts:
        """Gather what is seen of a replica now."""
        seen_s = self._clock.monotonic_s()
        custody = held.directory.read_custody()
        held.start, held.phase = custody, record.phase if record is not None else None
        held.shares = record is not None and record.shares
        if custody is None:
            held.stopping, held.killed_s = None, None
            return Facts(seen_s=seen_s, may_start=self._may_start(name, record))
        process = custody.process
        is_running = process is not None and is_alive(process)
        status = held.directory.read_status(custody.start_id)
        self._watch(name, held, custody, is_running=is_running)
        if is_running and held.stopping is None and not _wants_evidence(status, custody, self._config, seen_s):
            n_members, evidence = 1, Evidence()
        else:
            n_members = len(group_members(process, held.directory.path)) if process is not None else 0
            evidence = self._evidence(held, custody)
        return Facts(
            seen_s=seen_s,
            custody=custody,
            is_running=is_running,
            n_members=n_members,
            status=status,
            evidence=evidence,
            stopping=held.stopping,
            killed_s=held.killed_s,
        )

    def _evidence(self, held: _Held, custody: Custody) -> Evidence:
        ended = held.directory.read_exit(custody.start_id)
        # A guard that cannot even begin (no such module) writes nothing; if it was our child, its own status says so.
        own_status = held.child.poll() if held.child is not None and held.child.pid == custody.pid else None
        now, before = read_oom_kills(), custody.oom_kills
        return Evidence(
            exit_status=ended.status if ended is not None else own_status,
            log_tail=held.directory.log_tail(_LOG_LINES),
            oom_kills=now - before if now is not None and before is not None else 0,
        )

    def _watch(self, name: str, held: _Held, custody: Custody, *, is_running: bool) -> None:
        """Be told when the process of this start ends."""
        if not is_running or held.watched_start == custody.start_id or custody.process is None:
            return
        if held.watch is not None:
            held.watch.close()
        held.watch = ExitWatch(custody.process, lambda: self._queue.add(name))
        held.watched_start = custody.start_id

    def _may_start(self, name: str, record: ReplicaRecord | None) -> bool:
        """Whether no other start holds this replica's accelerators, unless both share, nor loads onto the same card.

        An engine that looks at a card while another fills it takes a wrong measure: 170k tokens of cache where there
        was room for 676k were seen with two that started at once.
        """
        if record is None:
            return True
        mine = set(record.device_uuids)
        cards = {self._card(uuid) for uuid in mine}
        for other, uuids in self._starting.items():
            if other != name and cards & {self._card(uuid) for uuid in uuids}:
                return False
        for other, held in self._held.items():
            if other == name or held.start is None:
                continue
            if mine & set(held.start.device_uuids) and not (record.shares and held.shares):
                return False
            is_starting = held.phase in (Phase.PLACED, Phase.FAILED, *STARTING_PHASES)
            if is_starting and cards & {self._card(uuid) for uuid in held.start.device_uuids}:
                return False
        return True

    def _card(self, uuid: str) -> str:
        return next((device.parent or uuid for device in self._node.devices if device.uuid == uuid), uuid)

    async def _apply(self, name: str, held: _Held, action: Action, facts: Facts, now_s: float) -> None:
        process = facts.custody.process if facts.custody is not None else None
        match action:
            case Start():
                await self._start(name, held, now_s)
            case Write():
                await self._write(name, held, action.record)
            case Drain():
                held.stopping = Stopping(since_s=facts.seen_s)
                assert facts.custody is not None
                held.draining = self._spawn(self._drain(name, held, facts.custody.address, action.timeout_s))
            case Terminate():
                since_s = held.stopping.since_s if held.stopping is not None else facts.seen_s
                held.stopping = Stopping(since_s=since_s, is_drained=True, terminated_s=facts.seen_s)
                if process is not None:
                    send_signal(process, signal.SIGTERM)
            case Kill() | KillGuard():
                held.killed_s = facts.seen_s if held.killed_s is None else held.killed_s
                kill = kill_followers if isinstance(action, Kill) else kill_group
                if process is not None and (n := kill(process, held.directory.path)):
                    logger.warning("killed %d processes of %s: %s", n, name, action.reason)
            case Clean():
                self._clean(name, held, facts)

    async def _write(self, name: str, held: _Held, record: ReplicaRecord) -> None:
        """Replace the record unless it moved; Conflict lets the handler look again."""
        found = self._current(name, held)
        if found is None:
            raise NotFound(f"replica {name} has no record any more")
        revision = await self._records.replace(ReplicaRecord, record.id, record, found[1])
        held.written = (record, revision)
        if (latest := self._mirror.items.get(name)) and latest[1] >= revision:
            held.written = None
        if record.phase is not found[0].phase:
            _log_phase(record)
            self._models_moved.set()  # a start may have fetched some
            if record.phase is Phase.READY:
                self._spawn(self._measure(record, held))

    async def _start(self, name: str, held: _Held, now_s: float) -> None:
        """Start the engine of a replica; a start that is impossible is a failure of the replica, not of the agent.

        Its devices are looked at first, by a task of its own: a driver that hangs keeps no other replica waiting.
        """
        found = self._current(name, held)
        assert found is not None
        if not held.has_looked:
            if name not in self._starting:
                # Nobody else may begin on its devices while they are looked at.
                self._starting[name] = found[0].device_uuids
                self._spawn(self._look_at_memory(name, held, found[0]))
            return
        try:
            await self._start_on(name, held, now_s)
        finally:
            self._end_look(name, held)

    async def _look_at_memory(self, name: str, held: _Held, record: ReplicaRecord) -> None:
        """Read how much of a replica's devices is free, then have it handled again."""
        try:
            held.memory = await read_start_memory(record, self._node, self._root)
        except Exception:
            logger.exception("the memory of %s's devices is not known", name)
            held.memory = StartMemory()
        held.has_looked = True
        if self._held.get(name) is not held:
            self._end_look(name, held)
        self._queue.add(name)

    def _end_look(self, name: str, held: _Held) -> None:
        held.has_looked = False
        if self._starting.pop(name, None):
            self._wake_waiting(name)

    async def _start_on(self, name: str, held: _Held, now_s: float) -> None:
        found = self._current(name, held)
        if found is None or self._wish(found[0]) is not Wish.RUN:
            return  # it changed meanwhile, and is looked at again
        record = found[0]
        try:
            others = [other.start for key, other in self._held.items() if key != name and other.start is not None]
            custody, held.child = self._starter.start(record, held.directory, held.memory, self._node, others=others)
        except (OSError, XinfError) as error:
            held.directory.drop_custody()
            await self._write(name, held, fail(record, start_failure(error, now_s), self._config.agent, now_s))
            return
        held.stopping, held.killed_s = None, None
        self._watch(name, held, custody, is_running=True)
        held.start = custody
        await self._write(name, held, begin(record, custody, str(held.directory.log_path)))

    async def _measure(self, record: ReplicaRecord, held: _Held) -> None:
        """Keep what a load took, for the plans after it. Nothing depends on it: what fails is logged."""
        custody = held.directory.read_custody()
        spec = read_file(held.directory.spec_path, ShimSpec)
        if custody is None or custody.process is None or spec is None:
            return
        start = msgspec.structs.replace(held.memory, share=spec.memory_share)
        environ = {**os.environ, **record.spec.env}
        try:
            path = held.directory.path
            found = await measure(
                record, custody.process, path, node=self._node, start=start, environ=environ, root=self._root
            )
            if found is not None:
                await record_measured(self._store, found, n_kept=self._config.agent.measured_kept)
        except (XinfError, OSError) as error:
            logger.warning("what %s took is not kept: %s", record.id, error)

    async def _drain(self, name: str, held: _Held, address: str, timeout_s: float) -> None:
        unfinished = await drain(address, timeout_s)
        logger.info("drained %s", name, extra={"kv": {"replica": name, "unfinished": unfinished}})
        if held.stopping is not None:
            held.stopping = msgspec.structs.replace(held.stopping, is_drained=True)
        self._queue.add(name)

    def _clean(self, name: str, held: _Held, facts: Facts) -> None:
        """Forget a start whose processes are gone."""
        if facts.custody is not None and facts.custody.address.startswith("unix:"):
            Path(facts.custody.address.removeprefix("unix:")).unlink(missing_ok=True)
        held.directory.drop_custody()
        if held.child is not None:
            held.child.poll()  # reap
        held.child, held.stopping, held.killed_s, held.start = None, None, None, None
        self._wake_waiting(name)

    def _wake_waiting(self, name: str) -> None:
        """Devices may have become free."""
        for other, held in self._held.items():
            if other != name and held.start is None:
                self._queue.add(other)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _wants_evidence(status: ShimStatus | None, custody: Custody, config: Config, seen_s: float) -> bool:
    """Whether a start that still runs may be about to be declared failed."""
    is_ready = status is not None and status.phase not in (*STARTING_PHASES, Phase.FAILED)
    has_failed = status is not None and status.phase is Phase.FAILED
    return has_failed or (not is_ready and quiet_s(custody, status, seen_s) > config.agent.start_timeout)


def _log_phase(record: ReplicaRecord) -> None:
    values: dict[str, object] = {"replica": record.id, "phase": record.phase}
    if record.phase is Phase.FAILED and record.failure is not None:
        values |= {"cause": record.failure.cause, "restarts": record.restarts, "retry_at_s": record.retry_at_s}
        logger.warning("replica %s failed: %s", record.id, record.failure.message, extra={"kv": values})
        return
    if record.phase is Phase.READY and (began_s := record.phase_since_s.get(Phase.STARTING)):
        values["start_s"] = record.phase_since_s.get(Phase.READY, began_s) - began_s
    logger.info("replica %s is %s", record.id, record.phase, extra={"kv": values})

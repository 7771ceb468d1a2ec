"""A whole measurement: warm-up, every load, every repeat, one document."""

from __future__ import annotations

import asyncio
import datetime
import gc
import signal
import time
from collections.abc import Callable, Iterator

import msgspec

from xinf.bench.body import BodyWriter
from xinf.bench.caution import cautions
from xinf.bench.client import Client
from xinf.bench.collector import Collector
from xinf.bench.document import SCHEMA, Curves, Document, Result, Settings, make_points
from xinf.bench.driver import Driver, Limits
from xinf.bench.host import allow_files, describe_host
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.models import list_models
from xinf.bench.record import Failure, Record
from xinf.bench.report import curve, make_series, summarize
from xinf.bench.target import Endpoint, Target
from xinf.bench.workload import FileWorkload, Workload, make_workload
from xinf.core.errors import EngineError, Unauthenticated, Unavailable, UnknownModel, XinfError

_PROGRESS_INTERVAL_S = 0.5
_MAX_WARMUP_CONCURRENCY = 64
# Warm-up sessions are numbered from here, so that their prompts are none of the run's.
_WARMUP_SESSION = 1 << 40


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. `run` counts from 1 over all loads and repeats."""

    run: int
    n_runs: int
    load: Load
    is_warmup: bool
    elapsed_s: float
    n_done: int
    n_failed: int
    n_in_flight: int


class _Plan(msgspec.Struct, frozen=True):
    load: Load
    repeat: int
    seed: int


def run_bench(settings: Settings, target: Target, on_progress: Callable[[Progress], None]) -> Document:
    """Measure. Ctrl-C ends it early with what there is (`is_interrupted`).

    Raises: Unavailable, UnknownModel, Unauthenticated, EngineError when the warm-up gets no good answer.
    """
    import uvloop

    started = datetime.datetime.now(datetime.UTC)
    settings = msgspec.structs.replace(settings, max_connections=allow_files(settings.max_connections))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bench = Bench(settings, target, on_progress)
        results = runner.run(bench.run())
    return Document(
        schema=SCHEMA,
        created=started.isoformat(timespec="seconds"),
        host=describe_host(),
        settings=settings,
        is_interrupted=bench.is_interrupted,
        results=tuple(results),
        points=make_points(results),
    )


def plan_runs(settings: Settings) -> Iterator[_Plan]:
    """Interleave: every load once, then every load again. Each run has a seed of its own, so that none finds its
    prompts in a cache that another has filled.
    """
    number = 0
    for repeat in range(settings.n_repeats):
        for load in settings.loads:
            yield _Plan(load, repeat, settings.seed + number)
            number += 1


class Bench:
    """Runs the plan on the current loop."""

    def __init__(self, settings: Settings, target: Target, on_progress: Callable[[Progress], None]) -> None:
        self.is_interrupted = False
        self._settings = settings
        self._target = target
        self._on_progress = on_progress
        self._n_runs = settings.n_repeats * len(settings.loads)
        self._driver: Driver | None = None
        self._writer = BodyWriter(
            settings.endpoint,
            settings.model,
            is_stream=settings.is_stream,
            ignore_eos=settings.ignore_eos,
            extra_body=settings.extra_body,
        )

    async def run(self) -> list[Result]:
        """Do every run, until one is interrupted."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.interrupt)
        results: list[Result] = []
        try:
            for number, plan in enumerate(plan_runs(self._settings), 1):
                result = await self._run_one(plan, number)
                if result is not None:
                    results.append(result)
                if self.is_interrupted:
                    break
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return results

    def interrupt(self) -> None:
        """End with what there is; a second time, at once."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        self.is_interrupted = True
        if self._driver is not None:
            self._driver.interrupt()

    async def _run_one(self, plan: _Plan, number: int) -> Result | None:
        settings = self._settings
        workload = make_workload(settings.workload, plan.seed)
        client = Client(self._target, timeout_s=settings.timeout_s, max_connections=settings.max_connections)
        try:
            if settings.n_warmup:
                await self._warm_up(client, workload, plan, number)
                if self.is_interrupted:
                    return None
            if isinstance(plan.load, ClosedLoop):
                await self._connect(client, plan.load.concurrency)
                if self.is_interrupted:
                    return None
            opened, waits = client.n_opened, client.n_waits
            limits = Limits(n_requests=settings.n_requests, duration_s=settings.duration_s)
            started_s = time.time()
            # What exists by now stays: the collector need not look through it while it is measured.
            gc.collect()
            gc.freeze()
            try:
                driver = await self._drive(client, workload, plan, limits, number, first_session=0)
            finally:
                gc.unfreeze()
            collector = driver.collector
            summary = summarize(
                collector,
                plan.load,
                slo=settings.slo,
                percentiles=settings.percentiles,
                connections_opened=client.n_opened - opened,
                connection_waits=client.n_waits - waits,
            )
        finally:
            await client.close()
        n_prompts = len(workload) if isinstance(workload, FileWorkload) else None
        told = cautions(summary, collector.records, plan.load, settings.workload, n_file_prompts=n_prompts)
        return Result(
            load=plan.load,
            repeat=plan.repeat,
            seed=plan.seed,
            started_s=started_s,
            is_interrupted=driver.is_interrupted,
            summary=msgspec.structs.replace(summary, warnings=told),
            series=make_series(collector),
            curves=_curves(collector),
            records=tuple(collector.records) if settings.keeps_records else None,
        )

    async def _warm_up(self, client: Client, workload: Workload, plan: _Plan, number: int) -> None:
        """Send some requests that do not count. Raises: XinfError if none of them was answered well."""
        n = self._settings.n_warmup
        load = ClosedLoop(min(n, _MAX_WARMUP_CONCURRENCY, _concurrency(plan.load)))
        warm = msgspec.structs.replace(plan, load=load)
        driver = await self._drive(
            client, workload, warm, Limits(n_requests=n), number, first_session=_WARMUP_SESSION, is_warmup=True
        )
        records = driver.collector.records
        if not self.is_interrupted and all(record.failure is not None for record in records):
            raise self._explain(records[0])

    async def _connect(self, client: Client, n: int) -> None:
        try:
            await client.open_connections(n)
        except (OSError, TimeoutError) as error:
            raise self._unreachable(str(error) or type(error).__name__) from error

    async def _drive(
        self,
        client: Client,
        workload: Workload,
        plan: _Plan,
        limits: Limits,
        number: int,
        *,
        first_session: int,
        is_warmup: bool = False,
    ) -> Driver:
        settings = self._settings
        driver = self._driver = Driver(
            client,
            workload,
            self._writer,
            self._target.head("POST", settings.endpoint.path),
            endpoint=settings.endpoint,
            is_stream=settings.is_stream and settings.endpoint is not Endpoint.EMBEDDINGS,
            think_time_s=settings.workload.think_time_s,
            limits=limits,
        )
        telling = asyncio.create_task(self._tell(driver, plan.load, number, is_warmup=is_warmup))
        try:
            await driver.run(plan.load, plan.seed, first_session=first_session)
        finally:
            telling.cancel()
            self._driver = None
        return driver

    async def _tell(self, driver: Driver, load: Load, number: int, *, is_warmup: bool) -> None:
        since_s = time.monotonic()
        while True:
            collector = driver.collector
            self._on_progress(
                Progress(
                    run=number,
                    n_runs=self._n_runs,
                    load=load,
                    is_warmup=is_warmup,
                    elapsed_s=time.monotonic() - since_s,
                    n_done=len(collector.records),
                    n_failed=collector.n_failed,
                    n_in_flight=driver.n_in_flight,
                )
            )
            await asyncio.sleep(_PROGRESS_INTERVAL_S)

    def _explain(self, record: Record) -> XinfError:
        """Say why the first request of all failed, and what to do."""
        message = record.message or ""
        if record.failure is Failure.CONNECT:
            return self._unreachable(message)
        if record.status == 401:
            return Unauthenticated(f"{self._target.url} answered 401: {message}", remedy="give a key with --api-key")
        if record.status == 404:
            known = list_models(self._target)
            has = f"its models are {', '.join(known)}" if known else "it names no models"
            return UnknownModel(
                f"{self._target.url}{self._settings.endpoint.path} answered 404 for the model "
                f"{self._settings.model}: {message}",
                remedy=f"{has}; choose with --model and --endpoint",
            )
        what = f"answered {record.status}" if record.failure is Failure.STATUS else "gave no good answer"
        return EngineError(f"{self._target.url}{self._settings.endpoint.path} {what}: {message}")

    def _unreachable(self, message: str) -> Unavailable:
        if "CERTIFICATE_VERIFY_FAILED" in message:
            return Unavailable(
                f"the certificate of {self._target.url} is not trusted: {message}",
                remedy="name its authority in SSL_CERT_FILE, or do without the check by --insecure",
            )
        return Unavailable(
            f"nothing answers at {self._target.url}: {message}",
            remedy="start the server, or name another one with --url",
        )


def _concurrency(load: Load) -> int:
    if isinstance(load, OpenLoop):
        return load.max_concurrency or _MAX_WARMUP_CONCURRENCY
    return load.concurrency


def _curves(collector: Collector) -> Curves:
    good = [record for record in collector.records if record.failure is None]
    return Curves(
        ttft=curve(record.ttft_s for record in good),
        tpot=curve(record.tpot_s for record in good),
        itl=curve(collector.gaps.kept),
        e2e=curve(record.e2e_s for record in good),
    )

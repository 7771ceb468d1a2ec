"""Runs contestants through cells, interleaved: in each repeat every contestant once per cell, in rotated order.

All contestants of one engine profile are up at the same time and only one is under load, so that a repeat compares
them within seconds of each other. The memory cell starts a fresh gateway for each.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.cells import CHUNKS_PER_STREAM, MEMORY_STEPS, SLOW, SLOW_S, Cell, Kind, takes_part
from benchmarks.contestant import Contestant, Site, gateway_rss_bytes
from benchmarks.cpu import machine_busy_share
from benchmarks.engines import MODEL, HttpEngines, Profile, core_share, wait_until_idle
from benchmarks.loadgen import Load, LoadFailed, LoadResult, build, run
from benchmarks.pin import GATEWAY_CPU, LOAD_CPU
from benchmarks.sample import Run, Sample, Taker, commit, cpu_model, sample_of
from benchmarks.service import NotReady

WARM_UP_S = 0.3
WARM_UP_TOKENS = 2
IDLE_WATCH_S = 0.5
BACKGROUND_WATCH_S = 2.0
NOISY = 0.05  # of all cores, used by others
_START_ERRORS = (NotReady, subprocess.SubprocessError, OSError)
Say = Callable[[str], None]


class Plan(msgspec.Struct, frozen=True):
    """How much is run."""

    cells: tuple[Cell, ...]
    repeats: int
    is_quick: bool
    question: str

    def seconds(self, cell: Cell, contestant: str) -> float:
        full_s = max(cell.seconds, SLOW_S) if contestant in SLOW else cell.seconds
        return min(full_s, 0.5) if self.is_quick else full_s

    def memory_steps(self) -> tuple[tuple[int, int], ...]:
        return tuple((size, n // 50) for size, n in MEMORY_STEPS) if self.is_quick else MEMORY_STEPS


def measure(contestants: Sequence[Contestant], plan: Plan, say: Say) -> Run:
    """Run everything and give what came out; a contestant that fails is recorded with its reason and left out."""
    build()
    background_share = machine_busy_share(BACKGROUND_WATCH_S)
    if background_share > NOISY:
        say(f"others use {background_share:.0%} of this machine: ratios will be rough and absolute figures wrong")
    began = time.monotonic()
    samples: list[Sample] = []
    idle_shares: dict[str, float] = {}
    profiles = dict.fromkeys(cell.profile for cell in plan.cells)
    with tempfile.TemporaryDirectory(prefix="xinf-bench-", ignore_cleanup_errors=True) as scratch:
        for profile in profiles:
            cells = [cell for cell in plan.cells if cell.profile == profile]
            with _engines(profile, Path(scratch)) as engines:
                site = Site(Path(scratch), engines, profile)
                timed = [cell for cell in cells if cell.kind is not Kind.MEMORY]
                if timed:
                    samples += _interleaved(contestants, timed, site, plan, _Notes(say, idle_shares))
                for cell in cells:
                    if cell.kind is Kind.MEMORY:
                        samples += [_memory(one, cell, site, plan, say) for one in _takers(contestants, cell)]
    return Run(
        question=plan.question,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=commit(),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        cpu_model=cpu_model(),
        n_cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        python=platform.python_version(),
        background_share=round(background_share, 3),
        idle_core_share={name: round(share, 4) for name, share in idle_shares.items()},
        gateway_cpu=GATEWAY_CPU[0],
        load_cpu=LOAD_CPU[0],
        repeats=plan.repeats,
        is_quick=plan.is_quick,
        duration_s=round(time.monotonic() - began, 1),
        contestants=tuple(Taker(one.name, one.family.value, one.version(), one.settings) for one in contestants),
        samples=tuple(samples),
    )


class _Notes(msgspec.Struct, frozen=True):
    """What a run says while it goes on, and what it learns besides samples."""

    say: Say
    idle_shares: dict[str, float]  # by contestant: of the gateway core, with nothing to do


@contextlib.contextmanager
def _engines(profile: Profile, directory: Path) -> Iterator[HttpEngines]:
    engines = HttpEngines(profile, directory)
    try:
        yield engines
    finally:
        engines.close()


def _takers(contestants: Sequence[Contestant], cell: Cell) -> list[Contestant]:
    return [one for one in contestants if takes_part(one.name, one.family, cell)]


def _interleaved(
    contestants: Sequence[Contestant], cells: Sequence[Cell], site: Site, plan: Plan, notes: _Notes
) -> list[Sample]:
    samples: list[Sample] = []
    say = notes.say
    with contextlib.ExitStack() as stack:
        started: list[Contestant] = []
        for one in contestants:
            if not any(takes_part(one.name, one.family, cell) for cell in cells):
                continue
            stack.callback(one.close)
            try:
                one.start(site)
            except _START_ERRORS as error:
                say(f"{one.name} did not start: {error}")
                samples += [_failed(one, cell, 0, f"did not start: {error}") for cell in cells]
                continue
            started.append(one)
            say(f"{one.name} is up in front of engines with {site.profile.name}")
        for one in started:
            share = core_share(one.gateway_pids(), IDLE_WATCH_S)
            notes.idle_shares[one.name] = max(share, notes.idle_shares.get(one.name, 0.0))
        for repeat, cell in itertools.product(range(plan.repeats), cells):
            takers = _takers(started, cell)
            shift = repeat % max(1, len(takers))
            for one in takers[shift:] + takers[:shift]:
                sample = _one(one, cell, repeat, plan)
                say(line(sample))
                samples.append(sample)
    return samples


def _one(one: Contestant, cell: Cell, repeat: int, plan: Plan) -> Sample:
    engine_pids = one.engine_pids()
    was_idle = wait_until_idle(engine_pids)
    pids = (*one.gateway_pids(), *engine_pids)
    load = Load(
        ports=one.ports,
        connections=cell.connections,
        size_bytes=cell.size_bytes,
        model=MODEL,
        seconds=plan.seconds(cell, one.name),
        warmup_s=WARM_UP_S,
        seed=seed_of(cell.name, repeat),
        pids=pids,
    )
    try:
        if cell.kind is Kind.STREAMS:
            _warm_up_streams(load)
            load = msgspec.structs.replace(
                load, is_stream=True, warmup_s=0.0, max_tokens=CHUNKS_PER_STREAM, expect_chunks=CHUNKS_PER_STREAM
            )
        result: LoadResult = run(load)
    except (LoadFailed, subprocess.TimeoutExpired) as error:
        return _failed(one, cell, repeat, str(error))
    return sample_of(
        result,
        contestant=one.name,
        cell=cell.name,
        repeat=repeat,
        gateway_pids=one.gateway_pids(),
        engine_pids=engine_pids,
        was_idle=was_idle,
    )


def seed_of(cell: str, repeat: int) -> int:
    """One seed for all contestants, and no two cells or repeats share prompts: a gateway remembers those of before."""
    return zlib.crc32(f"{cell} {repeat}".encode())


def _warm_up_streams(load: Load) -> None:
    """Two short streams per connection: upstream connections exist before time to first token is measured."""
    n_requests = 2 * load.connections
    run(
        msgspec.structs.replace(
            load, is_stream=True, warmup_s=0.0, n_requests=n_requests, max_tokens=WARM_UP_TOKENS, seed=load.seed + 500
        )
    )


def _memory(one: Contestant, cell: Cell, site: Site, plan: Plan, say: Say) -> Sample:
    """Memory of a fresh gateway before, and after many distinct prompts."""
    try:
        one.start(site)
        pids = one.gateway_pids()
        # Threads, connections and buffers exist before the first reading: what grows after it are the prompts.
        warm_up = Load(ports=one.ports, connections=cell.connections, size_bytes=cell.size_bytes, n_requests=2000)
        run(warm_up)
        start_bytes, after, errors, requests = gateway_rss_bytes(one), [], 0, 0
        for number, (size_bytes, n_requests) in enumerate(plan.memory_steps()):
            load = Load(
                ports=one.ports,
                connections=cell.connections,
                size_bytes=size_bytes,
                n_requests=n_requests,
                warmup_s=0.0,
                seed=100 + number,
                pids=pids,
            )
            result = run(load)
            errors, requests = errors + result.errors, requests + result.requests
            after.append(gateway_rss_bytes(one))
        sample = Sample(
            contestant=one.name,
            cell=cell.name,
            repeat=0,
            seed=100,
            requests=requests,
            errors=errors,
            rss_start_bytes=start_bytes,
            rss_bytes=tuple(after),
        )
    except (*_START_ERRORS, LoadFailed) as error:
        sample = _failed(one, cell, 0, str(error))
    finally:
        one.close()
    say(line(sample))
    return sample


def _failed(one: Contestant, cell: Cell, repeat: int, reason: str) -> Sample:
    return Sample(contestant=one.name, cell=cell.name, repeat=repeat, seed=0, failure=reason[:500])


def line(sample: Sample) -> str:
    """One sample as a line for the terminal."""
    head = f"{sample.repeat} {sample.cell:<20} {sample.contestant:<26}"
    if sample.failure is not None:
        return f"{head} FAILED: {sample.failure}"
    if sample.rss_bytes is not None and sample.rss_start_bytes is not None:
        sizes = [f"{size / 2**20:.0f}" for size in (sample.rss_start_bytes, *sample.rss_bytes)]
        return f"{head} {' -> '.join(sizes)} MiB, errors {sample.errors}"
    gateway_pct, load_pct = (sample.gateway_core_share or 0) * 100, (sample.load_core_share or 0) * 100
    shares = f"gateway {gateway_pct:3.0f} % load {load_pct:3.0f} %"
    ends = f"errors {sample.errors} unfinished {sample.unfinished} short {sample.short}"
    if sample.chunks:
        times = f"TTFT p99 {sample.ttft_p99_ms or 0:7.1f} ms gap p99 {sample.gap_p99_ms or 0:6.1f} ms"
        cpu = f"{sample.gateway_us_per_chunk or 0:6.1f} µs/chunk engine {sample.engine_us_per_chunk or 0:5.1f}"
        return f"{head} {sample.chunks_per_s:8.0f}/s {cpu} {times} {shares} {ends}"
    cpu = f"{sample.gateway_us_per_request or 0:7.1f} µs engine {sample.engine_us_per_request or 0:5.1f}"
    times = f"p50 {sample.latency_p50_ms or 0:6.2f} p99 {sample.latency_p99_ms or 0:6.2f} ms"
    return f"{head} {sample.requests_per_s:8.0f}/s {cpu} {times} {shares} {ends}"

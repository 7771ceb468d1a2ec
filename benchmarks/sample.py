"""What one contestant did in one cell in one repeat, and the file that holds all of a run."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import msgspec

from benchmarks.loadgen import ROOT, LoadResult

RESULTS = Path(__file__).resolve().parent / "results"
SCRATCH = ROOT / ".build" / "bench"  # results of runs that were quick or of a part: nothing to keep


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures of one run. None where the cell does not have them."""

    contestant: str
    cell: str
    repeat: int
    seed: int
    requests: int = 0
    chunks: int = 0
    requests_per_s: float = 0.0
    chunks_per_s: float = 0.0
    gateway_us_per_request: float | None = None
    gateway_us_per_chunk: float | None = None
    engine_us_per_request: float | None = None
    engine_us_per_chunk: float | None = None
    gateway_core_share: float | None = None  # of one core: how busy the gateway was
    load_core_share: float | None = None  # engines and load generator; near 1, they and not the gateway were the limit
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None
    events_per_read: float | None = None
    errors: int = 0
    unfinished: int = 0
    short: int = 0
    was_idle: bool = True  # the engines had come to rest before
    rss_start_bytes: int | None = None
    rss_bytes: tuple[int, ...] | None = None  # after each step of the memory cell
    failure: str | None = None  # why there are no figures


class Taker(msgspec.Struct, frozen=True):
    """A contestant as the report names it."""

    name: str
    family: str
    version: str
    settings: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run."""

    question: str  # "peers": everybody on the same work; "gateway": xinf alone
    date: str
    commit: str
    command: str
    cpu_model: str
    n_cpus: int
    kernel: str
    python: str
    background_share: float  # of all cores, used by others before anything was started: should be next to nothing
    idle_core_share: dict[str, float]  # by contestant: what a gateway uses of its core with nothing to do
    gateway_cpu: int
    load_cpu: int
    repeats: int
    is_quick: bool
    duration_s: float
    contestants: tuple[Taker, ...]
    samples: tuple[Sample, ...]


def per(seconds: float, count: int) -> float | None:
    """Microseconds per item."""
    return round(seconds / count * 1e6, 2) if count else None


def sample_of(
    result: LoadResult,
    *,
    contestant: str,
    cell: str,
    repeat: int,
    gateway_pids: tuple[int, ...],
    engine_pids: tuple[int, ...],
    was_idle: bool,
) -> Sample:
    """Condense a load generator's result."""
    gateway_s = sum(result.cpu_s.get(str(pid), 0.0) for pid in gateway_pids)
    engine_s = sum(result.cpu_s.get(str(pid), 0.0) for pid in engine_pids)
    latency, ttft, gap = result.latency_ms, result.ttft_ms, result.gap_ms
    has_gateway = bool(gateway_pids)
    return Sample(
        contestant=contestant,
        cell=cell,
        repeat=repeat,
        seed=result.seed,
        requests=result.requests,
        chunks=result.chunks,
        requests_per_s=round(result.requests_per_s, 1),
        chunks_per_s=round(result.chunks_per_s, 1),
        gateway_us_per_request=per(gateway_s, result.requests) if has_gateway else None,
        gateway_us_per_chunk=per(gateway_s, result.chunks) if has_gateway else None,
        engine_us_per_request=per(engine_s, result.requests),
        engine_us_per_chunk=per(engine_s, result.chunks),
        gateway_core_share=round(gateway_s / result.duration_s, 3) if has_gateway else None,
        load_core_share=round((engine_s + result.own_cpu_s) / result.duration_s, 3),
        latency_p50_ms=None if latency is None else latency.p50,
        latency_p99_ms=None if latency is None else latency.p99,
        ttft_p50_ms=None if ttft is None else ttft.p50,
        ttft_p99_ms=None if ttft is None else ttft.p99,
        gap_p50_ms=None if gap is None else gap.p50,
        gap_p99_ms=None if gap is None else gap.p99,
        events_per_read=round(result.chunks / result.event_reads, 3) if result.event_reads else None,
        errors=result.errors,
        unfinished=result.unfinished,
        short=result.short,
        was_idle=was_idle,
    )


def commit() -> str:
    """The commit of the checkout, with + when files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "--", "xinf", "setup.py", "benchmarks/*.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def cpu_model() -> str:
    """What the kernel calls this processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(run: Run, directory: Path) -> Path:
    """Write a run as <date>-<commit>.json, with -gateway where it is of xinf alone; one sample a line."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = "" if run.question == "peers" else f"-{run.question}"
    path = directory / f"{run.date[:10]}-{run.commit.rstrip('+')}{suffix}.json"
    encoded = msgspec.json.encode(msgspec.structs.replace(run, samples=()))
    lines = b",\n".join(msgspec.json.encode(sample) for sample in run.samples)
    path.write_bytes(encoded.removesuffix(b"[]}") + b"[\n" + lines + b"\n]}\n")
    return path


def of_peers(directory: Path) -> list[Path]:
    """The results of comparisons with the peers in a directory."""
    # Named by their date; the micro-benchmarks' results beside them are named by their question, those of routing are
    # documents of another kind.
    paths = [path for path in sorted(directory.glob("20*.json")) if "-route-" not in path.name]
    return [path for path in paths if read(path).question == "peers"]


def read(path: Path) -> Run:
    """Read what `write` wrote. Raises: msgspec.ValidationError when it is something else."""
    return msgspec.json.decode(path.read_bytes(), type=Run)

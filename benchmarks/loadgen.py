"""The load generator: build it, run it, read what it says. What it does stands in loadgen.c."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.pin import LOAD_CPU, pinned

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).resolve().with_suffix(".c")
BINARY = ROOT / ".build" / "loadgen"
CHAT_PATH = "/v1/chat/completions"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Closed loop without `rate_per_s`; `n_requests` ends the window by count instead of `seconds`."""

    ports: tuple[int, ...]  # connections are dealt over them
    connections: int
    size_bytes: int  # of a body
    model: str = "sim"
    max_tokens: int = 1
    is_stream: bool = False
    seconds: float = 2.0
    warmup_s: float = 0.5
    drain_s: float = 30.0
    timeout_s: float = 30.0
    ramp_s: float = 0.0  # connections begin evenly over this time
    n_requests: int = 0
    rate_per_s: float = 0.0
    share: float = 0.0  # of prompts that begin with one of `groups` prefixes of `shared_bytes`
    shared_bytes: int = 0
    groups: int = 1
    seed: int = 1
    expect_chunks: int = 0  # streams with fewer are counted as short
    path: str = CHAT_PATH
    extra: str = ""  # JSON members added to a body, with a leading comma
    pids: tuple[int, ...] = ()  # whose CPU is read at both ends of the window

    def arguments(self) -> list[str]:
        """What the program is told."""
        values: dict[str, object] = {
            "--path": self.path,
            "--model": self.model,
            "--connections": self.connections,
            "--size": self.size_bytes,
            "--max-tokens": self.max_tokens,
            "--seconds": self.seconds,
            "--warmup": self.warmup_s,
            "--drain": self.drain_s,
            "--timeout": self.timeout_s,
            "--ramp": self.ramp_s,
            "--requests": self.n_requests,
            "--rate": self.rate_per_s,
            "--share": self.share,
            "--shared-bytes": self.shared_bytes,
            "--groups": self.groups,
            "--seed": self.seed,
            "--expect-chunks": self.expect_chunks,
            "--extra": self.extra,
        }
        words = [word for name, value in values.items() for word in (name, str(value))]
        words += [word for port in self.ports for word in ("--port", str(port))]
        words += [word for pid in self.pids for word in ("--cpu", str(pid))]
        return [*words, "--stream"] if self.is_stream else words


class Times(msgspec.Struct, frozen=True):
    """Percentiles in milliseconds."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one run saw. Counts and CPU are of the window; `statuses` and what is said of streams, of the whole run."""

    is_complete: bool
    seed: int
    duration_s: float
    requests: int  # answered in the window, whatever the status
    ok: int  # of them with 2xx
    sent: int
    requests_per_s: float
    errors: int  # transport and status errors and requests still open at the end
    transport_errors: int
    status_errors: int
    timeouts: int
    refused: int
    reconnects: int
    hung: int
    max_backlog: int  # open loop: arrivals that waited for a connection at once
    dropped_arrivals: int
    first_error: str
    statuses: dict[str, int]
    streams: int
    unfinished: int  # without `data: [DONE]` as the last event, without the last HTTP chunk, or cut
    without_done: int
    without_last_chunk: int
    short: int
    error_events: int
    chunks: int  # data events, [DONE] apart
    chunks_per_s: float
    event_reads: int  # reads that brought events: fewer than chunks where events were merged
    body_bytes: int
    latency_ms: Times | None
    ttft_ms: Times | None
    gap_ms: Times | None
    own_cpu_s: float
    cpu_s: dict[str, float]


class LoadFailed(RuntimeError):
    """The load generator gave up; the message says what it saw."""


def build() -> Path:
    """Compile the load generator if its source is newer. Raises: CalledProcessError with the compiler's words."""
    if not BINARY.exists() or BINARY.stat().st_mtime < SOURCE.stat().st_mtime:
        BINARY.parent.mkdir(exist_ok=True)
        scratch = BINARY.with_suffix(".new")
        warnings = ("-Wall", "-Wextra", "-Werror")
        subprocess.run(["cc", "-O2", *warnings, "-o", str(scratch), str(SOURCE), "-lm"], check=True)
        scratch.replace(BINARY)
    return BINARY


def run(load: Load, *, cpus: Sequence[int] = LOAD_CPU) -> LoadResult:
    """Run one load to its end. Raises: LoadFailed when there were too many errors or the options are refused."""
    limit_s = load.warmup_s + load.seconds + load.drain_s + load.timeout_s + 60
    if load.n_requests:
        limit_s += 600
    done = subprocess.run(
        pinned([str(build()), *load.arguments()], cpus), capture_output=True, timeout=limit_s, check=False
    )
    if done.returncode != 0:
        raise LoadFailed(
            f"loadgen exit {done.returncode}: {done.stderr.decode().strip()} {done.stdout.decode()[:2000]}"
        )
    return msgspec.json.decode(done.stdout, type=LoadResult)

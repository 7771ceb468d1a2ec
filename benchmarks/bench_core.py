"""What does the gateway's core cost per request, without sockets, server and gRPC?

One request from admit to its verdict: read, routed, handed to a Link that answers at once, relayed to a client that
takes everything. `pytest benchmarks/bench_core.py --benchmark-only`.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from xinf._fast.scan import SYSTEM_TOOLS_REST
from xinf.core.config import load
from xinf.core.records import RoutingPolicy
from xinf.gateway.access_log import AccessLog
from xinf.gateway.client import Head, RawHeaders
from xinf.gateway.decisions import Decisions
from xinf.gateway.hotpath import HotPath
from xinf.gateway.intake import Intake
from xinf.gateway.link import Ending, Sink, Submission
from xinf.gateway.metrics import Metrics
from xinf.gateway.table import Model, Table
from xinf.router import Router, RouterSettings

ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"hello"}}]}'
JSON: RawHeaders = [(b"content-type", b"application/json")]
SSE: RawHeaders = [(b"content-type", b"text/event-stream")]
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
N_CHUNKS = 100
N_BODIES = 512


class InstantLink:
    """A Link whose engine answers in the next call of `deliver`."""

    is_up = True

    def __init__(self) -> None:
        self.sinks: list[Sink] = []

    def submit(self, submission: Submission, sink: Sink) -> int:
        self.sinks.append(sink)
        return len(self.sinks)

    def cancel(self, submit_id: int) -> None:
        raise AssertionError("nothing is cancelled here")

    def deliver(self) -> None:
        for sink in self.sinks:
            sink.on_start(200, JSON)
            sink.on_chunk(ANSWER)
            sink.on_end(Ending(100, 0, 1))
            sink.flush()
        self.sinks.clear()

    def stream(self) -> None:
        for sink in self.sinks:
            sink.on_start(200, SSE)
            for _ in range(N_CHUNKS):
                sink.on_chunk(EVENT)
                sink.flush()
            sink.on_end(Ending(100, 0, N_CHUNKS))
            sink.flush()
        self.sinks.clear()


class OneModel:
    """The table's answers for one deployment with two replicas on one Link."""

    def __init__(self, link: InstantLink) -> None:
        self._link = link
        self._model = Model(deployment="m", names=("m",), seed=1, max_waiting=None, created_s=0.0)

    def find(self, name: str) -> Model:
        assert name == "m"
        return self._model

    def check_path(self, model: Model, path: str) -> None:
        pass

    def order(self, deployment: str) -> int:
        return SYSTEM_TOOLS_REST

    def link(self, replica: str) -> InstantLink:
        return self._link


class TakingClient:
    """Takes everything at once."""

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        return True

    def start(self, status: int, headers: RawHeaders) -> None:
        pass

    def write(self, data: bytes) -> bool:
        return True

    def finish(self, data: bytes) -> bool:
        return True

    def drop(self) -> None:
        raise AssertionError("nothing is dropped here")

    def watch(self) -> None:
        pass


class Bench:
    """The core's parts, wired as in `core.Core`."""

    def __init__(self) -> None:
        config = load(environ={})
        self.link = InstantLink()
        table = cast(Table, OneModel(self.link))
        router = Router(RouterSettings.of(config.routing, max_inflight=4096), turn=0)
        for name in ("r1", "r2"):
            router.set_replica(
                name, model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True, max_running=4096
            )
        metrics = Metrics()
        self.intake = Intake(config.gateway, table=table, metrics=metrics)
        self.path = HotPath(
            config.gateway,
            intake=self.intake,
            router=router,
            table=table,
            metrics=metrics,
            access_log=AccessLog(0.0),
            decisions=Decisions(config.gateway.recent_decisions, sample_every=config.gateway.candidates_every),
        )
        self.n = 0

    def sweep(self) -> None:
        """What the core's own sweep does 50 times a second."""
        self.path._young.clear()

    def begin(self, body: bytes) -> None:
        headers = {
            b"host": b"localhost:8080",
            b"content-type": b"application/json",
            b"accept": b"application/json",
            b"user-agent": b"openai/2",
            b"content-length": b"%d" % len(body),
        }
        self.n += 1
        head = Head("POST", "/v1/chat/completions", b"", headers, "127.0.0.1")
        request_id = f"req-{self.n}"
        admission = self.intake.admit(
            head, key=None, request_id=request_id, extra_headers=[(b"x-request-id", request_id.encode())]
        )
        self.path.serve(admission, body, TakingClient())


def bodies(n_bytes: int, *, stream: bool) -> list[bytes]:
    """Distinct prompts of about `n_bytes`."""
    filler = ("the quick brown fox jumps over the lazy dog " * (n_bytes // 44 + 1))[: max(0, n_bytes - 120)]
    return [
        orjson.dumps({"model": "m", "messages": [{"role": "user", "content": f"{n:016x} {filler}"}], "stream": stream})
        for n in range(N_BODIES)
    ]


@pytest.mark.parametrize("n_bytes", [512, 8192, 65536])
def test_whole_answer(benchmark: Any, n_bytes: int) -> None:
    bench = Bench()
    prompts = bodies(n_bytes, stream=False)

    def run() -> None:
        for prompt in prompts[:64]:
            bench.begin(prompt)
        bench.link.deliver()
        bench.sweep()

    benchmark.extra_info["per"] = 64
    benchmark(run)
    assert bench.path.n_open == 0


def test_stream_of_a_hundred_chunks(benchmark: Any) -> None:
    bench = Bench()
    prompts = bodies(512, stream=True)

    def run() -> None:
        for prompt in prompts[:16]:
            bench.begin(prompt)
        bench.link.stream()
        bench.sweep()

    benchmark.extra_info["per"] = 16 * N_CHUNKS
    benchmark(run)
    assert bench.path.n_open == 0

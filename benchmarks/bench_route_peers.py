"""How do xinf and other gateways route, on the same simulated engines and the same requests at the same times?

`python -m benchmarks.bench_route_peers [--quick] [--repeats 5] [--cells chat@50,agents@7] [--only "auto,smg ..."]`

Each run has new engines with empty caches: behind shims for xinf, on plain HTTP for the others, the same engine with
the same arguments. Every repeat goes through the cells, and in each cell through all contestants, beginning with
another one each time. What the others do not say (who answered, what they predicted) is left out.

About an hour at its defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.contestant import Family, Site
from benchmarks.cpu import total_cpu_s
from benchmarks.engines import MODEL, STEP_10_MS, XINF
from benchmarks.peers import Peer, install, sglang, smg, vllm
from benchmarks.pin import BOTH_CPUS
from benchmarks.route_table import MARK, render_routing
from benchmarks.route_trace import BLOCK_TOKENS, write_trace
from benchmarks.sample import RESULTS, SCRATCH, commit
from benchmarks.service import Service, free_port
from xinf.bench import (
    FleetSettings,
    RouteCase,
    RouteDocument,
    RouteKind,
    RouteLoad,
    RouteOutcome,
    RoutePlan,
    RouteProgress,
    RouteSettings,
    RouteWorkloadSettings,
    Target,
    make_route_points,
    parse_slo,
    run_route,
    send_plan,
    write_route_document,
)
from xinf.cli.private_stack import PrivateStack
from xinf.cli.route import PrivateSite

CELLS = "chat@50,hot-prefix@50,documents@50,agents@7,trace@50"
OURS = ("auto", "least_load", "prefix")
ASKED = (*OURS, "sglang-router cache_aware", "vllm-router cache_aware", "smg cache_aware")
N_REPLICAS = 4
LOAD = 0.9
_TIMEOUT_S = 120.0
_LENGTH_MARGIN_TOKENS = 64  # as behind xinf


def peers() -> dict[str, Peer]:
    """The gateways that look at prefixes, as they come; those that are not in ASKED take part when they are named."""
    found = (
        ("sglang-router cache_aware", "sglang-router", sglang("cache_aware")),
        ("vllm-router cache_aware", "vllm-router", vllm("cache_aware")),
        ("smg cache_aware", "smg", smg("cache_aware")),
        ("smg prefix_hash", "smg", smg("prefix_hash")),
    )
    return {
        name: Peer(name, Family.CACHE_AWARE, build, package=package, settings="as it comes")
        for name, package, build in found
    }


class FleetEngines:
    """Simulated engines on plain HTTP, as a fleet's settings say."""

    def __init__(self, fleet: FleetSettings, max_model_len: int, directory: Path) -> None:
        ports = [free_port() for _ in range(fleet.n_replicas)]
        self._urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        arguments = [f"{key}={value}" for key, value in msgspec.to_builtins(fleet.engine).items()]
        self._services: list[Service] = []
        for port in ports:
            command = [XINF, "sim", "--http", "--port", str(port), "--model", MODEL]
            command += ["--max-model-len", str(max_model_len)]
            command += [word for one in arguments for word in ("--engine-arg", one)]
            log = directory / f"engine-{port}.log"
            self._services.append(Service(f"engine {port}", command, cpus=BOTH_CPUS, log=log))
        for service, url in zip(self._services, self._urls, strict=True):
            service.wait_http(f"{url}/health")

    @property
    def urls(self) -> tuple[str, ...]:
        return self._urls

    def pids(self) -> tuple[int, ...]:
        return tuple(pid for service in self._services for pid in service.tree())

    def close(self) -> None:
        for service in self._services:
            service.stop()


class MixedSite:
    """Runs our policies through our gateway, everybody else's through theirs."""

    def __init__(self, stack: PrivateStack, directory: Path) -> None:
        self._ours = PrivateSite(stack)
        self._peers = peers()
        self._directory = directory

    def run(
        self, case: RouteCase, plan: RoutePlan, fleet: FleetSettings, on_progress: Callable[[int], None]
    ) -> RouteOutcome:
        if case.policy in OURS:
            return self._ours.run(case, plan, fleet, on_progress)
        longest = plan.working_set.longest_tokens
        max_model_len = min(longest + _LENGTH_MARGIN_TOKENS, fleet.engine.kv_tokens)
        with tempfile.TemporaryDirectory(dir=self._directory) as name:
            directory = Path(name)
            engines = FleetEngines(fleet, max_model_len, directory)
            peer = self._peers[case.policy]
            try:
                peer.start(Site(directory, engines, STEP_10_MS))
                pids = peer.gateway_pids()
                before_s = total_cpu_s(pids)
                target = Target.parse(f"http://127.0.0.1:{peer.port}", headers=(("accept", "*/*"),))
                outcome = send_plan(plan, target, MODEL, timeout_s=_TIMEOUT_S, on_progress=on_progress)
                return msgspec.structs.replace(outcome, gateway_cpu_s=total_cpu_s(pids) - before_s)
            finally:
                peer.close()
                engines.close()


def settings_of(
    cells: Sequence[str], contestants: Sequence[str], options: argparse.Namespace
) -> Iterator[RouteSettings]:
    """What each cell is. A cell is a workload and a pool in percent of its working set."""
    trace = write_trace(SCRATCH / "trace.jsonl")
    for cell in cells:
        name, _, pool = cell.partition("@")
        kind = RouteKind(name)
        yield RouteSettings(
            workloads=(
                RouteWorkloadSettings(
                    kind=kind,
                    trace=str(trace) if kind is RouteKind.TRACE else None,
                    trace_block_tokens=BLOCK_TOKENS,
                ),
            ),
            policies=tuple(contestants),
            load=RouteLoad(share=LOAD, duration_s=options.duration_s),
            fleet=FleetSettings(n_replicas=N_REPLICAS),
            is_simulated=False,
            pools_pct=(float(pool),),
            slo=parse_slo("ttft=1s"),
            label="bench_route_peers",
        )


def measure(
    cells: Sequence[str], contestants: Sequence[str], options: argparse.Namespace, result: Path
) -> RouteDocument:
    """Go through all cells, as often as asked for; the result is written after each time.

    Ctrl-C ends it early with the runs that were complete.
    """
    documents: list[RouteDocument] = []
    turn = 0
    asked = list(settings_of(cells, contestants, options))
    with tempfile.TemporaryDirectory(prefix="rp", dir=SCRATCH) as name, PrivateStack(front=None, settings=()) as stack:
        site = MixedSite(stack, Path(name))
        for repeat in range(options.repeats):
            for each in asked:
                rotated = (*contestants[turn % len(contestants) :], *contestants[: turn % len(contestants)])
                turn += 1
                wanted = msgspec.structs.replace(each, policies=rotated, seed=1 + repeat)
                documents.append(run_route(wanted, site, _tell))
                _say(documents[-1], repeat)
                if documents[-1].is_interrupted:
                    break
            joined = _joined(documents, asked, contestants, options)
            write_route_document(joined, result)
            if joined.is_interrupted:
                break
    return joined


def _joined(
    documents: Sequence[RouteDocument],
    asked: Sequence[RouteSettings],
    contestants: Sequence[str],
    options: argparse.Namespace,
) -> RouteDocument:
    """One document of all runs; a result of seed n is of repeat n - 1."""
    results = [
        msgspec.structs.replace(result, repeat=result.seed - 1) for document in documents for result in document.results
    ]
    workloads = tuple({each.workloads[0].kind: each.workloads[0] for each in asked}.values())
    pools = tuple(sorted({pool for each in asked for pool in each.pools_pct or ()}))
    return msgspec.structs.replace(
        documents[0],
        settings=msgspec.structs.replace(
            asked[0],
            workloads=workloads,
            pools_pct=pools,
            policies=tuple(contestants),
            n_repeats=options.repeats,
            seed=1,
        ),
        is_interrupted=documents[-1].is_interrupted,
        results=tuple(results),
        points=make_route_points(results),
    )


def _tell(progress: RouteProgress) -> None:
    pass


def _say(document: RouteDocument, repeat: int) -> None:
    for point in document.points:
        shown = ", ".join(
            f"{name} {point.figures[name].median:.3f}"
            for name in ("hit_share", "ttft_p50_s", "ttft_p99_s", "goodput_share", "refused_share", "failed_share")
            if name in point.figures
        )
        case = point.case
        print(f"{repeat} {case.workload} {case.pool_pct:g} % {case.policy}: {shown}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure, write the results, print the section of the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two cells, once, for 4 s: does it work at all?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cells", help=f"of workload@pool; default: {CELLS}")
    parser.add_argument("--only", help=f"contestants, with commas, of: {', '.join([*OURS, *peers()])}")
    parser.add_argument("--duration", dest="duration_s", type=float, default=8.0, help="seconds that requests come")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats, options.duration_s = 1, 4.0
    cells = (options.cells or ("chat@50,hot-prefix@50" if options.quick else CELLS)).split(",")
    known = [*OURS, *peers()]
    contestants = [name.strip() for name in options.only.split(",")] if options.only else list(ASKED)
    if unknown := set(contestants) - set(known):
        parser.error(f"no contestant {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    for package in dict.fromkeys(peer.package for name, peer in peers().items() if name in contestants):
        assert package is not None
        install(package)
    is_whole = not (options.quick or options.cells or options.only)
    directory = RESULTS if is_whole else SCRATCH
    directory.mkdir(parents=True, exist_ok=True)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    # A shell that started us in the background may have had INT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = directory / f"{date}{MARK}peers-{commit().rstrip('+')}.json"
    document = measure(cells, contestants, options, result)
    print(f"\n{render_routing(document, result.name)}\nresults: {result}")
    return 130 if document.is_interrupted else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))

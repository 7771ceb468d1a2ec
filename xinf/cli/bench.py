"""`xinf bench serve | compare | route`."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xinf.cli import route
from xinf.cli.failure import INTERRUPTED
from xinf.cli.options import ConfigFile, DataDir, Server
from xinf.cli.ps import read_everything
from xinf.cli.screen import Screen
from xinf.cli.session import Session, find_gateway, open_session, run
from xinf.core.errors import InvalidRequest, NotFound
from xinf.core.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from xinf.bench import Endpoint, Load, Progress, Settings, Target, WorkloadKind

app = typer.Typer(
    help="Measure a server: load generation and comparison, for any OpenAI-compatible URL.", no_args_is_help=True
)

_LOAD = "Load"
_WORKLOAD = "Workload"
_REQUEST = "Request"
_REPORT = "Report"
_DEFAULT_CONCURRENCY = "16"
_DEFAULT_DURATION_S = 30.0
# Options as `vllm bench serve` calls them; taken, but not listed beside ours on the help page.
_OPTIONS_OF_VLLM = {
    "base-url": "url",
    "max-concurrency": "concurrency",
    "request-rate": "rate",
    "num-prompts": "requests",
    "num-warmups": "warmup",
    "dataset-name": "workload",
    "dataset-path": "file",
    "random-input-len": "input-len",
    "random-output-len": "output-len",
    "random-range-ratio": "range-ratio",
    "goodput": "slo",
    "metric-percentiles": "percentiles",
}
_WORKLOADS = {"prefix_repetition": "shared-prefix", "custom": "file"}  # vLLM's names

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Server (default: the gateway of this installation)."),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Model to ask (default: the server's only one).")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", envvar=["XINF_API_KEY", "OPENAI_API_KEY"], metavar="KEY", help="API key.", show_envvar=True
    ),
]
EndpointOption = Annotated[
    str,
    typer.Option(
        "--endpoint", metavar="NAME", help="chat, completions or embeddings, or their path.", rich_help_panel=_REQUEST
    ),
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        "--concurrency",
        metavar="N",
        help="Requests open at once: a closed loop of so many clients; with --rate, the most that are let out. "
        f"Several with commas: a sweep. (default: {_DEFAULT_CONCURRENCY}, without --rate)",
        rich_help_panel=_LOAD,
        show_default=False,
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        metavar="RATE",
        help="Requests per second, whatever the server does: an open loop. Several with commas: a sweep.",
        rich_help_panel=_LOAD,
    ),
]
Arrivals = Annotated[
    str, typer.Option("--arrivals", metavar="HOW", help="Of an open loop: poisson or constant.", rich_help_panel=_LOAD)
]
Burstiness = Annotated[
    float,
    typer.Option(
        "--burstiness",
        metavar="SHAPE",
        help="Shape of the gamma distribution of gaps: 1 is Poisson, below 1 is burstier.",
        rich_help_panel=_LOAD,
    ),
]
Duration = Annotated[
    str | None,
    typer.Option(
        "--duration",
        metavar="TIME",
        help="Send for so long: 30s, 5m (default: 30s, or until --requests).",
        rich_help_panel=_LOAD,
        show_default=False,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, metavar="N", help="Send so many.", rich_help_panel=_LOAD),
]
Warmup = Annotated[
    int,
    typer.Option(
        "--warmup",
        min=0,
        metavar="N",
        help="Requests before each run that do not count.",
        rich_help_panel=_LOAD,
    ),
]
Repeat = Annotated[
    int,
    typer.Option(
        "--repeat", min=1, metavar="N", help="Measure so many times and show the spread.", rich_help_panel=_LOAD
    ),
]
WorkloadOption = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="NAME",
        help="random, shared-prefix, conversation or file.",
        rich_help_panel=_WORKLOAD,
    ),
]
File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="JSONL of prompts or requests.", rich_help_panel=_WORKLOAD),
]
InputLen = Annotated[
    int,
    typer.Option(
        "--input-len",
        min=1,
        metavar="N",
        help="Prompt (of a turn), in tokens.",
        rich_help_panel=_WORKLOAD,
    ),
]
OutputLen = Annotated[
    int,
    typer.Option("--output-len", min=1, metavar="N", help="Answer: max_tokens.", rich_help_panel=_WORKLOAD),
]
RangeRatio = Annotated[
    float,
    typer.Option(
        "--range-ratio",
        metavar="SHARE",
        help="Lengths vary evenly by this share.",
        rich_help_panel=_WORKLOAD,
    ),
]
Prefixes = Annotated[
    int,
    typer.Option("--prefixes", min=1, metavar="N", help="Shared prefixes.", rich_help_panel=_WORKLOAD),
]
PrefixLen = Annotated[
    int,
    typer.Option(
        "--prefix-len",
        min=1,
        metavar="N",
        help="Their length in tokens, before --input-len.",
        rich_help_panel=_WORKLOAD,
    ),
]
PrefixShare = Annotated[
    float,
    typer.Option(
        "--prefix-share", metavar="SHARE", help="Share of requests that have a shared one.", rich_help_panel=_WORKLOAD
    ),
]
Turns = Annotated[
    int, typer.Option("--turns", min=1, metavar="N", help="Of a conversation.", rich_help_panel=_WORKLOAD)
]
ThinkTime = Annotated[
    str,
    typer.Option(
        "--think-time", metavar="TIME", help="Between the turns of a conversation: 2s.", rich_help_panel=_WORKLOAD
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="The same seed sends the same (default: a new one, as caches know what was sent before).",
        rich_help_panel=_WORKLOAD,
        show_default=False,
    ),
]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Ask for a stream.", rich_help_panel=_REQUEST)]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="vLLM: write answers to their full length.", rich_help_panel=_REQUEST),
]
ExtraBody = Annotated[
    str | None,
    typer.Option(
        "--extra-body",
        metavar="JSON",
        help="Fields laid over every body; null takes one away: '{\"temperature\": 0}'.",
        rich_help_panel=_REQUEST,
    ),
]
Headers = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="NAME=VALUE", help="Header of every request.", rich_help_panel=_REQUEST),
]
RequestTimeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="For one whole request.", rich_help_panel=_REQUEST)
]
MaxConnections = Annotated[
    int, typer.Option("--max-connections", min=1, metavar="N", help="Sockets open at once.", rich_help_panel=_REQUEST)
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Do not check the server's certificate.", rich_help_panel=_REQUEST)
]
SloOption = Annotated[
    str | None,
    typer.Option(
        "--slo",
        metavar="LIMITS",
        help="What goodput counts: ttft=200ms,tpot=30ms.",
        rich_help_panel=_REPORT,
    ),
]
Percentiles = Annotated[str, typer.Option("--percentiles", metavar="LIST", help="To show.", rich_help_panel=_REPORT)]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the whole result there.", rich_help_panel=_REPORT)
]
RecordsOption = Annotated[
    bool, typer.Option("--records", help="Every single request into the --json file.", rich_help_panel=_REPORT)
]
Chart = Annotated[
    Path | None,
    typer.Option("--chart", metavar="FILE", help="Draw it: an .svg or a .png.", rich_help_panel=_REPORT),
]
Label = Annotated[
    str | None, typer.Option("--label", metavar="TEXT", help="Name of this result.", rich_help_panel=_REPORT)
]


@app.command(
    epilog="Example: [b]xinf bench serve --rate 10 --duration 1m --slo ttft=200ms[/b]",
    context_settings={"token_normalize_func": lambda name: _OPTIONS_OF_VLLM.get(name, name)},
)
def serve(
    url: Url = None,
    model: Model = None,
    api_key: ApiKey = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    arrivals: Arrivals = "poisson",
    burstiness: Burstiness = 1.0,
    duration: Duration = None,
    requests: Requests = None,
    warmup: Warmup = 1,
    repeat: Repeat = 1,
    workload: WorkloadOption = "random",
    file: File = None,
    input_len: InputLen = 1024,
    output_len: OutputLen = 128,
    range_ratio: RangeRatio = 0.0,
    prefixes: Prefixes = 10,
    prefix_len: PrefixLen = 1024,
    prefix_share: PrefixShare = 1.0,
    turns: Turns = 5,
    think_time: ThinkTime = "0s",
    seed: Seed = None,
    endpoint: EndpointOption = "chat",
    stream: Stream = True,
    ignore_eos: IgnoreEos = False,
    extra_body: ExtraBody = None,
    header: Headers = None,
    timeout: RequestTimeout = "10m",
    max_connections: MaxConnections = 4096,
    insecure: Insecure = False,
    slo: SloOption = None,
    percentiles: Percentiles = "50,90,95,99",
    json: JsonFile = None,
    records: RecordsOption = False,
    chart: Chart = None,
    label: Label = None,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Send load to a server and measure what its users would see: TTFT, inter-token latency, throughput, goodput.

    A closed loop (--concurrency) finds the throughput; an open loop (--rate) shows the latency that users have at it.
    Options that `vllm bench serve` has are taken under its names as well (--request-rate, --num-prompts, ...).
    """
    from xinf.bench import Settings, WorkloadSettings, parse_slo

    _check_files(json, chart, wants_records=records)
    loads = _loads(rate, concurrency, requests, arrivals=arrivals, burstiness=burstiness)
    asked = WorkloadSettings(
        kind=_workload_kind(workload, file),
        input_tokens=input_len,
        output_tokens=output_len,
        range_ratio=range_ratio,
        n_prefixes=prefixes,
        prefix_tokens=prefix_len,
        prefix_share=prefix_share,
        n_turns=turns,
        think_time_s=parse_seconds(think_time),
        file=None if file is None else str(file),
    )
    objectives = parse_slo(slo) if slo else None
    duration_s = parse_seconds(duration) if duration else None if requests else _DEFAULT_DURATION_S
    timeout_s = parse_seconds(timeout)
    shown = tuple(_number(part, "--percentiles") for part in percentiles.split(","))
    headers = _headers(header, api_key)
    route = _endpoint(endpoint)
    session = open_session(config, data_dir, server)
    target = _find_target(url or run(find_gateway(session)), headers, is_insecure=insecure)
    settings = Settings(
        url=target.url,
        model=model or (_only_deployment(session) if url is None else None) or _find_model(target),
        endpoint=route,
        loads=loads,
        workload=asked,
        n_requests=requests,
        duration_s=duration_s,
        n_warmup=warmup,
        is_stream=stream,
        ignore_eos=ignore_eos,
        extra_body=extra_body,
        header_names=tuple(name for name, _ in headers),
        slo=objectives,
        percentiles=shown,
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        n_repeats=repeat,
        timeout_s=timeout_s,
        max_connections=max_connections,
        keeps_records=records,
        label=label,
    )
    _measure(settings, target, json, chart)


@app.command(epilog="Example: [b]xinf bench compare before.json after.json[/b]")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Result of `xinf bench serve --json`.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Print the ratios of two results, load by load, with the spread of their repeats."""
    from xinf.bench import compare as compare_documents
    from xinf.bench import read_document
    from xinf.cli.bench_report import print_comparison
    from xinf.cli.table import print_json

    comparison = compare_documents(read_document(a), read_document(b))
    if json:
        print_json(comparison)
    else:
        print_comparison(comparison)


app.command(epilog="Example: [b]xinf bench route --workload chat,hot-prefix --pool 7,50 --repeat 5[/b]")(route.route)


def _measure(settings: Settings, target: Target, json: Path | None, chart: Path | None) -> None:
    import sys

    from xinf.bench import draw, run_bench, write_document
    from xinf.cli.bench_report import print_document, print_plan

    print_plan(settings)
    screen = Screen(sys.stderr)
    try:
        document = run_bench(settings, target, lambda progress: screen.status(_status(progress)))
    finally:
        screen.close()
    print_document(document)
    if json is not None:
        write_document(document, json)
        print(f"result: {json}")
    if chart is not None and document.results:
        draw(document, chart)
        print(f"chart: {chart}")
    if document.is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if not any(result.summary.n_good for result in document.results):
        raise typer.Exit(1)


def _status(progress: Progress) -> str:
    which = f"run {progress.run} of {progress.n_runs}, " if progress.n_runs > 1 else ""
    what = "warm-up" if progress.is_warmup else progress.load.label
    failed = f", {progress.n_failed} failed" if progress.n_failed else ""
    return (
        f"{which}{what}: {format_seconds(progress.elapsed_s)}, {progress.n_done} done, "
        f"{progress.n_in_flight} open{failed}"
    )


# ---- options ------------------------------------------------------------------------------------------------------


def _loads(
    rate: str | None, concurrency: str | None, n_requests: int | None, *, arrivals: str, burstiness: float
) -> tuple[Load, ...]:
    from xinf.bench import ClosedLoop, OpenLoop

    if arrivals not in ("poisson", "constant"):
        raise typer.BadParameter(f"--arrivals is poisson or constant, not {arrivals!r}")
    if arrivals == "constant" and burstiness != 1.0:
        raise typer.BadParameter("--burstiness shapes random arrivals, --arrivals constant has none")
    limits = [_whole(part, "--concurrency") for part in (concurrency or "").split(",") if part.strip()]
    if rate is not None and rate.strip().lower() == "inf":
        # vLLM's word for "all at once": then only --max-concurrency and the number of requests bound it.
        if not limits and n_requests is None:
            raise typer.BadParameter("--rate inf sends all at once: say how many with --requests or --concurrency")
        return (ClosedLoop(limits[0] if limits else n_requests or 1),)
    if rate is None:
        return tuple(ClosedLoop(limit) for limit in limits or [int(_DEFAULT_CONCURRENCY)])
    if len(limits) > 1:
        raise typer.BadParameter("with --rate, --concurrency is one number: the most that are let out")
    return tuple(
        OpenLoop(
            rate=_number(part, "--rate"),
            burstiness=None if arrivals == "constant" else burstiness,
            max_concurrency=limits[0] if limits else None,
        )
        for part in rate.split(",")
    )


def _workload_kind(name: str, file: Path | None) -> WorkloadKind:
    from xinf.bench import WorkloadKind

    if file is not None and name == "random":
        return WorkloadKind.FILE
    try:
        kind = WorkloadKind(_WORKLOADS.get(name, name))
    except ValueError:
        known = ", ".join(kind.value for kind in WorkloadKind)
        raise typer.BadParameter(f"--workload is one of {known}, not {name!r}") from None
    if (kind is WorkloadKind.FILE) != (file is not None):
        raise typer.BadParameter("--workload file and --file go together")
    return kind


def _endpoint(name: str) -> Endpoint:
    from xinf.bench import Endpoint

    for endpoint in Endpoint:
        if name in (endpoint.value, endpoint.path):
            return endpoint
    raise typer.BadParameter(f"--endpoint is one of {', '.join(endpoint.value for endpoint in Endpoint)}, not {name!r}")


def _headers(given: list[str] | None, api_key: str | None) -> tuple[tuple[str, str], ...]:
    headers = [("accept", "*/*"), ("user-agent", "xinf-bench")]
    if api_key:
        headers.append(("authorization", f"Bearer {api_key.strip()}"))
    for item in given or ():
        name, separator, value = re.split(r"([=:])", item, maxsplit=1) if re.search(r"[=:]", item) else (item, "", "")
        if not separator or not name.strip():
            raise typer.BadParameter(f"--header {item!r} is not NAME=VALUE")
        headers = [pair for pair in headers if pair[0] != name.strip().lower()]
        headers.append((name.strip().lower(), value.strip()))
    return tuple(headers)


def _find_target(url: str, headers: tuple[tuple[str, str], ...], *, is_insecure: bool) -> Target:
    from xinf.bench import Target

    return Target.parse(url, headers=headers, verify=not is_insecure)


def _only_deployment(session: Session) -> str | None:
    """A name of the one deployment of this installation: clients may have several for it. None: there are others."""
    found = run(read_everything(session)).deployments
    return found[0].spec.served_names[0] if len(found) == 1 and found[0].spec.served_names else None


def _find_model(target: Target) -> str:
    from xinf.bench import find_model

    return find_model(target)


def _check_files(json: Path | None, chart: Path | None, *, wants_records: bool) -> None:
    """Find out before a long run what could not be written after it."""
    from xinf.bench import check_chart

    if wants_records and json is None:
        raise typer.BadParameter("--records go into the --json file: name one")
    for path in filter(None, (json, chart)):
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise NotFound(f"cannot write {path}", remedy="name a file in a directory that exists")
    if chart is not None:
        check_chart(chart)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{option}: {text.strip()!r} is not a number") from None


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"{option}: {text.strip()!r} is not a whole number") from None

"""What is to be doubted about a run's figures, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xinf.bench.load import Load, OpenLoop
from xinf.bench.record import Record
from xinf.bench.report import Caution, Summary
from xinf.bench.workload import WorkloadKind, WorkloadSettings

MAX_CPU = 0.8
_FEW_FOR_P99 = 100
_FEW_FOR_TREND = 30
_LATE_SHARE = 0.1
_LATE_S = 0.001


def cautions(
    summary: Summary,
    records: Sequence[Record],
    load: Load,
    workload: WorkloadSettings,
    *,
    n_file_prompts: int | None = None,
) -> tuple[Caution, ...]:
    """Say what distorts, what is missing, what is not as asked. `n_file_prompts`: of a file, None otherwise."""
    found = [*_generator(summary), *_server(summary, records, workload)]
    if isinstance(load, OpenLoop) and falls_behind(records):
        found.append(
            _say(
                "overload",
                f"the server did not keep up with {load.rate:.4g} requests/s: it answered "
                f"{summary.requests_per_s:.4g}, and latency grows for as long as the run lasts",
            )
        )
    if n_file_prompts is not None and summary.n_sent > n_file_prompts:
        found.append(
            _say(
                "prompts_again",
                f"the file's {n_file_prompts} prompts were sent {summary.n_sent / n_file_prompts:.1f} times each: "
                "a prefix cache answers what it has seen",
            )
        )
    if 0 < summary.n_good < _FEW_FOR_P99:
        found.append(_say("few", f"only {summary.n_good} good answers: p99 means little, send at least {_FEW_FOR_P99}"))
    return tuple(found)


def falls_behind(records: Sequence[Record]) -> bool:
    """Whether a server in an open loop was slower than the arrivals: much is open at the last one, and it got worse."""
    n = len(records)
    if n < _FEW_FOR_TREND:
        return False
    ordered = sorted(records, key=lambda record: record.intended_s)
    last_s = ordered[-1].intended_s
    n_open = sum(record.end_s > last_s for record in ordered)
    third = n // 3
    early_s, late_s = (sum(record.e2e_s for record in part) for part in (ordered[:third], ordered[-third:]))
    return n_open > 0.1 * n and late_s > 1.5 * early_s


def _say(kind: str, text: str) -> Caution:
    return Caution(kind=kind, text=text)


def _generator(summary: Summary) -> Iterator[Caution]:
    generator = summary.generator
    if generator.cpu_max > MAX_CPU:
        yield _say(
            "generator_cpu",
            f"the load generator used up to {generator.cpu_max:.0%} of a core ({generator.cpu_mean:.0%} on average): "
            "its own delays are in the figures; lower the load or run several generators",
        )
    if generator.lateness is not None and summary.e2e is not None:
        late_s = generator.lateness.percentiles["p99"]
        scale = summary.ttft or summary.e2e
        if late_s > max(_LATE_S, _LATE_SHARE * scale.percentiles["p50"]):
            yield _say(
                "generator_late",
                f"the load generator sent late (p99 {late_s * 1e3:.1f} ms after the intended time); "
                "latency counts from the intended time, so it is in the figures",
            )
    if generator.connection_waits:
        yield _say(
            "connection_waits",
            f"{generator.connection_waits} requests waited for a connection: all that --max-connections allows were "
            "in use",
        )


def _server(summary: Summary, records: Sequence[Record], workload: WorkloadSettings) -> Iterator[Caution]:
    if summary.n_failed:
        yield _say(
            "failed",
            f"{summary.n_failed} of {summary.n_sent} requests failed; latency figures are of the good answers only",
        )
    if summary.n_unfinished:
        yield _say(
            "interrupted",
            f"{summary.n_unfinished} requests were cut off when the run was interrupted; they are in no figure",
        )
    if summary.n_skipped_turns:
        yield _say(
            "skipped_turns",
            f"{summary.n_skipped_turns} later turns of conversations were not sent, because a turn failed",
        )
    if summary.generator.reconnects:
        yield _say(
            "reconnects",
            f"{summary.generator.reconnects} requests found their idle connection closed and were sent again",
        )
    good = [record for record in records if record.failure is None]
    if good:
        yield from _answers(summary, good)
        yield from _prompts(summary, good, workload)


def _answers(summary: Summary, good: Sequence[Record]) -> Iterator[Caution]:
    if summary.output_tokens_from in ("events", "both"):
        which = "" if summary.output_tokens_from == "events" else "some answers say no usage: "
        yield _say(
            "tokens_from_events",
            f"{which}output tokens are counted as events of the stream, which may carry several tokens each",
        )
    with_length = [record for record in good if record.max_tokens is not None and record.output_tokens]
    asked = sum(record.max_tokens or 0 for record in with_length)
    got = sum(record.output_tokens for record in with_length)
    if got < 0.9 * asked:
        yield _say(
            "short_answers",
            f"answers were {got / len(with_length):.0f} tokens long on average, {asked / len(with_length):.0f} were "
            "asked for: --ignore-eos makes vLLM write them to the full length",
        )
    n_empty = sum(record.first_token_s is None for record in good)
    if summary.ttft is not None and n_empty:
        yield _say("empty_answers", f"{n_empty} answers had no token in them: they count as good but have no TTFT")


def _prompts(summary: Summary, good: Sequence[Record], workload: WorkloadSettings) -> Iterator[Caution]:
    if workload.kind not in (WorkloadKind.RANDOM, WorkloadKind.SHARED_PREFIX) or summary.input_tokens is None:
        return
    asked = workload.input_tokens
    if workload.kind is WorkloadKind.SHARED_PREFIX:
        asked += workload.prefix_tokens
    got = summary.input_tokens / len(good)
    # A chat template adds some tens of tokens of its own.
    if abs(got - asked) > max(0.2 * asked, 64):
        yield _say("prompt_length", f"prompts were {got:.0f} tokens long by the server's count, {asked} were asked for")

"""Is what the gateway predicts of an engine's prefix cache what the engine then finds in it?

    python -m benchmarks.bench_exact --requests 1500 --templates qwen2,llama3 --mode sequential,parallel --block 32,128

Real vLLM on CPU behind the real gateway and Link, a KV pool that evicts. For each request: the prediction of the
decision header against the engine's own `cached_tokens`. See benchmarks/exact/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from benchmarks.exact.checkpoint import ADAPTERS, RECIPES, Recipe, tool_begin, write_checkpoint
from benchmarks.exact.client import Answer, ask, knows_adapter
from benchmarks.exact.dump import dump_miss
from benchmarks.exact.record import Cause, Record
from benchmarks.exact.stack import NAME, EngineSettings, ExactStack, engine_python
from benchmarks.exact.table import Row, markdown, row
from benchmarks.exact.tape import LAG_S, Tape
from benchmarks.exact.workload import Ask, Settings, Workload
from benchmarks.measure import RESULTS, about
from benchmarks.pin import BOTH_CPUS
from benchmarks.service import Service

# Requests in flight, and tokens in the engine's pool: about a fifth of what the chats have.
_MODES = {"sequential": (1, 28_800), "parallel": (12, 38_400)}
_STATES = ("exact", "approx")
_METHOD = (
    "one gateway process, one replica, a fresh engine for each cell; sequential: each request after the end of the"
    " answer before; parallel: 12 in flight; predicted and actual tokens are compared in whole blocks; a lost race:"
    " more than a block too much was predicted, and the first block not served was in the cache when the request was"
    f" sent (or up to {LAG_S * 1000:.0f} ms before) and left it before the request's end, by the engine's KV events"
)
_TIMEOUT_S = 120
_MAX_FAILED = 10


class Cell(msgspec.Struct, frozen=True):
    """One run."""

    recipe: Recipe
    block_tokens: int
    mode: str
    has_events: bool
    n_requests: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.block_tokens}-{self.mode}-{'exact' if self.has_events else 'approx'}"


class Outcome(msgspec.Struct):
    """Of one cell."""

    records: list[Record]
    asks: dict[int, Ask]
    answers: dict[int, Answer]
    n_failed: int = 0


def run_cell(cell: Cell, scratch: Path, dump: Path | None) -> Outcome:
    """Start an engine, ask it everything, compare."""
    model = write_checkpoint(cell.recipe, scratch / "models")
    logs = scratch / cell.name
    logs.mkdir(parents=True, exist_ok=True)
    n_blocks = _MODES[cell.mode][1] // cell.block_tokens
    settings = EngineSettings(model, cell.block_tokens, n_blocks, cell.has_events)
    recording = logs / "events"
    with ExactStack(settings, logs) as stack:
        recorder = _record(stack.events, recording, logs) if cell.has_events else None
        try:
            outcome = asyncio.run(_ask_all(cell, stack.url))
        finally:
            if recorder is not None:
                recorder.stop()
    if recorder is not None:
        tape = Tape.read(recording, cell.block_tokens)
        for record in outcome.records:
            judge(record, tape, outcome.answers[record.number].prompt_ids)
        print(
            f"  {tape.n_stored} blocks stored, {tape.n_removed} removed, {tape.n_orphans} without a parent", flush=True
        )
    if dump is not None:
        for record in outcome.records:
            if abs(record.error_blocks) > 1:
                number = record.number
                dump_miss(dump / cell.name, record, outcome.asks[number], outcome.answers[number])
    return outcome


def _record(endpoint: str, path: Path, logs: Path) -> Service:
    script = Path(__file__).parent / "exact" / "recorder.py"
    return Service(
        "recorder", [engine_python(), str(script), endpoint, str(path)], cpus=BOTH_CPUS, log=logs / "recorder.log"
    )


async def _ask_all(cell: Cell, url: str) -> Outcome:
    recipe = cell.recipe
    settings = Settings(NAME, ADAPTERS, tool_begin(recipe), thinks=recipe.style.thinks, calls_once=recipe.calls_once)
    workload = Workload(settings, cell.seed, cell.n_requests)
    outcome = Outcome([], {}, {})

    async def work(client: httpx.AsyncClient) -> None:
        while (request := workload.next()) is not None:
            is_adapted = request.body["model"] in ADAPTERS
            answer = await ask(client, request, prefix="" if is_known or not is_adapted else f"/models/{NAME}")
            if answer.status != 200:
                outcome.n_failed += 1
                print(f"  request {request.number} ({request.kind}): {answer.status} {answer.error}", flush=True)
                if outcome.n_failed > _MAX_FAILED:
                    raise RuntimeError(f"{cell.name}: {outcome.n_failed} requests failed")
                workload.answered(request, None)
                continue
            workload.answered(request, answer.told)
            outcome.asks[request.number] = request
            outcome.answers[request.number] = answer
            outcome.records.append(_compared(cell, request, answer))

    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        is_known = await knows_adapter(client, ADAPTERS[0])
        await asyncio.gather(*(work(client) for _ in range(_MODES[cell.mode][0])))
    return outcome


def _compared(cell: Cell, request: Ask, answer: Answer) -> Record:
    body = request.body
    return Record(
        number=request.number,
        kind=request.kind,
        template=cell.recipe.name,
        mode=cell.mode,
        block_tokens=cell.block_tokens,
        # Gateways that say none have only the approximate index.
        state=answer.decision.get("state", "approx"),
        predicted=int(answer.decision["predicted_cached_tokens"]),
        cached=answer.cached_tokens,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        sent_s=answer.sent_s,
        ended_s=answer.ended_s,
        is_streamed=bool(body.get("stream")),
        lora=body["model"] if body["model"] in ADAPTERS else "",
        salt=body.get("cache_salt", ""),
    )


def judge(record: Record, tape: Tape, prompt_ids: Sequence[int]) -> None:
    """Say what a walk over token ids would have predicted, and why too much was, by the engine's events."""
    keys = tape.keys(prompt_ids, record.lora, record.salt)
    n_held = next((number for number, key in enumerate(keys) if not tape.held(key, record.sent_s)), len(keys))
    block = record.block_tokens
    # The engine computes the last token of every prompt anew.
    record.walked = min(n_held, (record.prompt_tokens - 1) // block) * block
    first_not_served = record.cached // block
    if record.error_blocks > 1 and first_not_served < len(keys):
        key = keys[first_not_served]
        if tape.held(key, record.sent_s) and tape.left(key, record.sent_s, record.ended_s):
            record.cause = Cause.RACE
        elif tape.left(key, record.sent_s - LAG_S, record.sent_s):
            record.cause = Cause.LAG
        else:
            record.cause = Cause.OTHER


def save(rows: Sequence[Row], records: Sequence[Record], method: str, path: Path) -> None:
    """Write what was measured; records as one row of values each."""
    names = Record.__struct_fields__
    values = [[msgspec.to_builtins(getattr(record, name)) for name in names] for record in records]
    content = about(method) | {"rows": msgspec.to_builtins(rows), "fields": names, "records": values}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main() -> None:
    options = _options()
    # Ends the engines too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="bench-exact-"))
    rows: list[Row] = []
    records: list[Record] = []
    cells = [
        Cell(RECIPES[template], block, mode, state == "exact", options.requests, options.seed)
        for template in options.templates
        for block in options.block
        for mode in options.mode
        for state in options.state
    ]
    for cell in cells:
        print(cell.name, flush=True)
        outcome = run_cell(cell, scratch, options.dump)
        if outcome.n_failed:
            print(f"  {outcome.n_failed} requests failed", flush=True)
        rows.append(row(outcome.records))
        records += outcome.records
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
        save(rows, records, _METHOD, options.out or scratch / "exact.json")
    print(markdown(rows))


def _listed(text: str) -> list[str]:
    return text.split(",")


def _options() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--templates", default=list(RECIPES), type=_listed)
    parser.add_argument("--mode", default=list(_MODES), type=_listed)
    parser.add_argument("--block", default=[32, 128], type=lambda text: [int(each) for each in text.split(",")])
    parser.add_argument("--state", default=list(_STATES), type=_listed, help="approx: the engine tells no events")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help=f"where the figures go; to keep them: {RESULTS / 'exact.json'}")
    parser.add_argument(
        "--dump", type=Path, help="a directory for everything about each request off by more than a block"
    )
    parser.add_argument(
        "--scratch", type=Path, help="models, logs and events; default: a new one below the temp directory"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""How does the prefix index compare with Dynamo's RadixTree?

`python -m benchmarks.bench_dynamo [--quick]` installs ai-dynamo-runtime from PyPI into .build/peers/dynamo and runs
both in one process of that environment on residency.py's data, interleaved; the answers are compared first. Each gets
its own native form: the tree JSON events and lists of integers, the index chains of bytes. CPU time counts all threads
of the process (the tree answers from a thread of its own); wall time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

from benchmarks.measure import ROOT, Record, interleaved, median_ratio, record, rss_bytes, save, spread
from benchmarks.residency import N_WORKERS, Event, Residency, residency
from xinf._fast.prefix import PrefixIndex

PACKAGE = "ai-dynamo-runtime==1.6.1"
VENV = ROOT / ".build" / "peers" / "dynamo"
QUESTION = __doc__.splitlines()[0]
OURS, THEIRS = "xinf PrefixIndex", "Dynamo RadixTree"
ROUNDS = 9
ROUND_S = 0.1
BOUND = 1 << 30
CLOCKS = {"us CPU": time.process_time, "us": time.perf_counter}
METHOD = (
    f"{ROUNDS} rounds after a warm-up, each of about {ROUND_S:g} s per subject and clock, in turns in one process; "
    "apply: all events into an empty index, ended by a find, so that nothing is still queued; memory: growth of the "
    "resident size of a process of its own"
)


def event_bytes(number: int, event: Event) -> bytes:
    """A stored event as RadixTree.apply_event takes it; the hash of a block's tokens is the block's hash here."""
    blocks = [{"block_hash": block, "tokens_hash": block} for block in event.blocks]
    return json.dumps(
        {"event_id": number, "data": {"stored": {"parent_hash": event.parent, "blocks": blocks}}}
    ).encode()


def fill_tree(events: list[tuple[int, bytes]]) -> Any:
    from dynamo.llm import RadixTree

    tree = RadixTree()
    for worker, data in events:
        tree.apply_event(worker, data)
    tree.find_matches([1])
    return tree


def fill_index(events: list[tuple[int, bytes, bytes]]) -> PrefixIndex:
    index = PrefixIndex(BOUND)
    for worker, chain, positions in events:
        index.insert(worker, chain, positions)
    return index


def their_events(data: Residency) -> list[tuple[int, bytes]]:
    return [(event.worker, event_bytes(number, event)) for number, event in enumerate(data.events)]


def our_events(data: Residency) -> list[tuple[int, bytes, bytes]]:
    return [(event.worker, event.chain(), event.positions()) for event in data.events]


def scores_of(tree: Any, blocks: list[int]) -> dict[int, int]:
    """Worker -> blocks; the tree's keys are (worker, data parallel rank)."""
    return {worker: n for (worker, _), n in tree.find_matches(blocks).scores.items()}


def find(data: Residency, index: PrefixIndex, tree: Any, round_s: float) -> list[Record]:
    records = []
    lengths = array("I", bytes(4 * N_WORKERS))
    for case, blocks in data.queries.items():
        chain = array("Q", blocks).tobytes()
        index.match(chain, lengths)
        answer = {worker: n for worker, n in enumerate(lengths) if n}
        assert answer == scores_of(tree, blocks) == data.expected[case], case

        def ours(chain: bytes = chain) -> int:
            return index.match(chain, lengths)

        def theirs(blocks: list[int] = blocks) -> object:
            return tree.find_matches(blocks)  # without making the dictionary of scores

        for unit, clock in CLOCKS.items():
            values = interleaved({OURS: ours, THEIRS: theirs}, rounds=ROUNDS, round_s=round_s, clock=clock)
            records += [
                record(QUESTION, f"find, {case}", name, unit, [value * 1e6 for value in seconds])
                for name, seconds in values.items()
            ]
    return records


def apply(data: Residency, rounds: int) -> list[Record]:
    ours, theirs = our_events(data), their_events(data)
    subjects: dict[str, Callable[[], object]] = {OURS: lambda: fill_index(ours), THEIRS: lambda: fill_tree(theirs)}
    records = []
    for unit, clock in CLOCKS.items():
        values = interleaved(subjects, rounds=rounds, round_s=0.0, clock=clock)
        records += [
            record(QUESTION, "apply, per block", name, unit, [value * 1e6 / data.n_entries for value in seconds])
            for name, seconds in values.items()
        ]
    return records


def memory(is_quick: bool) -> list[Record]:
    """Bytes per held block, each in a process of its own: the mixed data, and blocks that all workers hold."""
    records = []
    for shape in ("mixed", "all shared"):
        for name in (OURS, THEIRS):
            command = [sys.executable, "-m", "benchmarks.bench_dynamo", "--memory-of", name, "--shape", shape]
            values = [
                float(
                    subprocess.run(command + ["--quick"] * is_quick, cwd=ROOT, capture_output=True, check=True).stdout
                )
                for _ in range(1 if is_quick else 5)
            ]
            records.append(record(QUESTION, f"memory, {shape}", name, "bytes per held block", values))
    return records


def memory_of(name: str, shape: str, is_quick: bool) -> float:
    data = residency(10 if is_quick else 1)
    if shape == "all shared":
        stored = [event for event in data.events if event.worker == 0]
        data.events = [Event(worker, e.parent, e.blocks, e.first_position) for worker in range(64) for e in stored]
        data.n_entries = sum(len(event.blocks) for event in data.events)
    events: Any = our_events(data) if name == OURS else their_events(data)
    if name == THEIRS:
        fill_tree(events[:1])  # its threads and tables, once
    before = rss_bytes()
    held = fill_index(events) if name == OURS else fill_tree(events)
    grown = rss_bytes() - before
    assert held is not None
    return grown / data.n_entries


def inside(is_quick: bool) -> int:
    """Measure; in the environment that has Dynamo."""
    data = residency(10 if is_quick else 1)
    print(f"{data.n_entries:,} entries in {len(data.events):,} events over {N_WORKERS} workers")
    index, tree = fill_index(our_events(data)), fill_tree(their_events(data))
    records = find(data, index, tree, ROUND_S / 20 if is_quick else ROUND_S)
    records.append(record(QUESTION, "memory, allocated", OURS, "bytes per held block", [index.nbytes / len(index)]))
    del index, tree
    records += apply(data, 2 if is_quick else 5)
    records += memory(is_quick)
    if not is_quick:
        print(save("dynamo", records, METHOD))
    show(records)
    return 0


def show(records: list[Record]) -> None:
    """Print a table with ratios."""
    pairs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in records:
        pairs.setdefault((one["case"], one["unit"]), {})[one["subject"]] = one["values"]
    print(f"{'case':46} {'unit':20} {OURS:24} {THEIRS:24} times as much")
    for (case, unit), values in pairs.items():
        ours, theirs = values[OURS], values.get(THEIRS)
        ratio = f"{median_ratio(ours, theirs):.1f}" if theirs and len(ours) == len(theirs) else ""
        print(f"{case:46} {unit:20} {spread(ours):24} {spread(theirs) if theirs else '':24} {ratio}")


def install() -> str:
    """Give the Python of the environment with Dynamo, made if need be."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=120)
    known = subprocess.run([str(python), "-c", "import dynamo._core"], capture_output=True).returncode == 0
    if not known:
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE], check=True, timeout=900)
    return str(python)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_dynamo")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, to see whether it runs")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="mixed", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        print(memory_of(given.memory_of, given.shape, given.quick))
        return 0
    if given.inside:
        return inside(given.quick)
    command = [install(), "-m", "benchmarks.bench_dynamo", "--inside", *["--quick"] * given.quick]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode


if __name__ == "__main__":
    sys.exit(main())

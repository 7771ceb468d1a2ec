"""The options that the gateway benchmarks share, and what they do in the end: write the results, render the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.arena import Plan, measure
from benchmarks.cells import CELLS, chosen
from benchmarks.contestant import Contestant
from benchmarks.render import summary, write_report
from benchmarks.sample import RESULTS, SCRATCH, write


def read_options(description: str, names: Sequence[str], arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Exits with a message when nothing matches."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="half a second a cell, one repeat: does it work at all?")
    parser.add_argument("--only", help=f"contestants whose names contain one of these words: {', '.join(names)}")
    parser.add_argument("--cells", help=f"cells whose names contain one of: {', '.join(c.name for c in CELLS)}")
    parser.add_argument("--repeats", type=int, help="how often each cell is run (default: 5)")
    return parser.parse_args(arguments)


def select(contestants: Sequence[Contestant], only: str | None) -> list[Contestant]:
    """Those whose names contain one of the comma-separated words. Raises: ValueError when there is none."""
    if not only:
        return list(contestants)
    words = only.split(",")
    found = [one for one in contestants if any(word in one.name for word in words)]
    if not found:
        raise ValueError(f"nobody matches {only}; there are {', '.join(one.name for one in contestants)}")
    return found


def run(question: str, contestants: Sequence[Contestant], options: argparse.Namespace) -> int:
    """Measure and write the results; a whole comparison also renders the report. Gives the exit status.

    Runs that are quick or of a part go to a scratch directory: they are for whoever runs them.
    """
    repeats = options.repeats or (1 if options.quick else 5)
    plan = Plan(chosen(options.cells), repeats, options.quick, question)
    found = measure(contestants, plan, lambda text: print(text, flush=True))
    is_whole = not (options.quick or options.only or options.cells)
    path = write(found, RESULTS if is_whole else SCRATCH)
    print(f"\n{summary(found)}\n{len(found.samples)} samples in {found.duration_s:.0f} s: {path}")
    if is_whole and question == "peers":
        print(f"report: {write_report(path)}")
    failures = [sample for sample in found.samples if sample.failure is not None]
    for sample in failures:
        print(f"{sample.contestant} in {sample.cell}: {sample.failure}", file=sys.stderr)
    return 1 if failures else 0

"""The options that the gateway benchmarks share, and what they do in the end: write the results, render the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.arena import Plan, measure
from benchmarks.cells import CELLS, chosen
from benchmarks.contestant import Contestant
from benchmarks.sample import write


def read_options(description: str, names: Sequence[str], arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Exits with a message when nothing matches."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="half a second a cell, one repeat: does it work at all?")
    parser.add_argument("--only", help=f"contestants whose names contain one of these words: {', '.join(names)}")
    parser.add_argument("--cells", help=f"cells whose names contain one of: {', '.join(c.name for c in CELLS)}")
    parser.add_argument("--repeats", type=int, help="how often each cell is run (default: 5)")
    parser.add_argument("--no-report", action="store_true", help="write the results, leave README.md as it is")
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


def run(contestants: Sequence[Contestant], options: argparse.Namespace) -> int:
    """Measure, write the results and render the report; a quick run never touches the report."""
    repeats = options.repeats or (1 if options.quick else 5)
    plan = Plan(chosen(options.cells), repeats, options.quick)
    found = measure(contestants, plan, lambda text: print(text, flush=True))
    path = write(found)
    print(f"{len(found.samples)} samples in {found.duration_s:.0f} s: {path}")
    if not options.quick and not options.no_report:
        from benchmarks.render import write_report

        print(f"report: {write_report(path)}")
    failures = [sample for sample in found.samples if sample.failure is not None]
    for sample in failures:
        print(f"{sample.contestant} in {sample.cell}: {sample.failure}", file=sys.stderr)
    return 1 if failures else 0

"""How does `auto` route, beside least load and mere prefix affinity, on workloads that share in different ways?

`python -m benchmarks.bench_route [--quick] [--simulate] [--repeats 5] [--workloads chat,agents]`

Everything at its defaults takes about four hours, as each of 270 runs goes in real time; --simulate takes minutes.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.route_table import MARK, render_routing
from benchmarks.route_trace import write_trace
from benchmarks.sample import RESULTS, SCRATCH, commit
from xinf.bench import read_route_document

WORKLOADS = "chat,hot-prefix,documents,agents,random,trace"
POLICIES = "auto,least_load,prefix"
_POOLS = "7,50,150"


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two workloads, one pool, once: does it work at all?")
    parser.add_argument("--simulate", action="store_true", help="in virtual time instead of through a gateway")
    parser.add_argument("--repeats", type=int, help="how often each case is run (default: 5)")
    parser.add_argument("--workloads", help=f"of these: {WORKLOADS}")
    parser.add_argument("--replicas", type=int, help="simulated engines (default: 4, simulated 8)")
    return parser.parse_args(arguments)


def command_of(options: argparse.Namespace, trace: Path, result: Path) -> list[str]:
    """The `xinf` command that measures what the options say."""
    workloads = options.workloads or ("chat,hot-prefix" if options.quick else WORKLOADS)
    what = ["simulate"] if options.simulate else ["bench", "route"]
    command = [sys.executable, "-m", "xinf.cli", *what, "--workload", workloads, "--policy", POLICIES]
    command += ["--pool", "50" if options.quick else _POOLS, "--load", "0.9", "--seed", "1", "--slo", "ttft=1s"]
    command += ["--repeat", str(options.repeats or (1 if options.quick else 5))]
    command += ["--duration", "5s" if options.quick else "60s" if options.simulate else "20s"]
    command += ["--replicas", str(options.replicas or (8 if options.simulate else 4))]
    command += ["--json", str(result), "--label", "bench_route"]
    if "trace" in workloads.split(","):
        command += ["--trace", str(trace)]
    return command


def main(arguments: Sequence[str]) -> int:
    """Measure and write the results; print the section of the report."""
    options = read_options(arguments)
    is_whole = not (options.quick or options.simulate or options.workloads)
    directory = RESULTS if is_whole else SCRATCH
    directory.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = directory / f"{date}{MARK}{commit().rstrip('+')}.json"
    trace = write_trace(SCRATCH / "trace.jsonl")
    done = subprocess.run(command_of(options, trace, result), check=False)
    if done.returncode != 0:
        return done.returncode
    print(f"\n{render_routing(read_route_document(result), result.name)}\nresults: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

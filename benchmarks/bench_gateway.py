"""What does a request or a chunk cost in xinf's gateway, behind each of its fronts?

`python -m benchmarks.bench_gateway [--quick] [--only granian,direct] [--cells requests-8k] [--repeats 5]`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.command import read_options, run, select
from benchmarks.contestant import Contestant
from benchmarks.peers import Direct
from benchmarks.xinf_stack import XinfStack, fronts


def contestants() -> list[Contestant]:
    """Every front with one worker, the scaling of each, and no gateway."""
    found: list[Contestant] = [XinfStack(front) for front in fronts()]
    found += [XinfStack(front, workers=2) for front in fronts() if front != "granian-rsgi"]
    return [*found, Direct()]


def main(arguments: Sequence[str]) -> int:
    """Measure xinf alone; the report of the comparison stays as it is."""
    everybody = contestants()
    options = read_options(__doc__ or "", [one.name for one in everybody], arguments)
    return run("gateway", select(everybody, options.only), options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

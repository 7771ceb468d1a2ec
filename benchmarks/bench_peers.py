"""How does xinf's gateway compare with other gateways on the same work?

Installs each of them into an environment of its own (see peers.py), runs them and xinf interleaved, and renders
README.md.

`python -m benchmarks.bench_peers [--quick] [--only smg,xinf] [--cells streams] [--repeats 5]`
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.bench_gateway import contestants as xinf_contestants
from benchmarks.command import read_options, run, select
from benchmarks.contestant import Contestant, Family
from benchmarks.peers import Peer, install, peers


def contestants() -> list[Contestant]:
    """xinf's fronts, then everybody else."""
    ours = [one for one in xinf_contestants() if one.family is Family.XINF]
    return [*ours, *peers()]


def main(arguments: Sequence[str]) -> int:
    """Install, measure, render."""
    everybody = contestants()
    options = read_options(__doc__ or "", [one.name for one in everybody], arguments)
    takers = []
    for one in select(everybody, options.only):
        if isinstance(one, Peer) and one.package not in (None, "granian"):
            assert one.package is not None
            try:
                install(one.package)
            except (subprocess.CalledProcessError, RuntimeError) as error:
                print(f"{one.name} is left out, it could not be installed: {error}", file=sys.stderr)
                continue
        takers.append(one)
    return run("peers", takers, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

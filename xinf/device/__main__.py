"""The children that ask vendor libraries, in processes that may be lost, and the whole inventory for a person.

python -m xinf.device                               all devices of this host as JSON
python -m xinf.device inventory VENDOR [ROOT]       one vendor's
python -m xinf.device sample INTERVAL_S [ROOT]      a line of samples per interval until nobody reads
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from xinf.core.device import Vendor
from xinf.device.inventory import read_inventory
from xinf.device.probe import PROBES
from xinf.device.sampler import write_samples


def main(arguments: list[str]) -> None:
    root = Path(arguments[2]) if len(arguments) > 2 else Path("/")
    match arguments[:2]:
        case ["inventory", vendor]:
            _print(PROBES[Vendor(vendor)].inventory(root))
        case ["sample", interval_s]:
            write_samples(float(interval_s), root)
        case []:
            _print(asyncio.run(read_inventory()))
        case _:
            raise SystemExit(__doc__)


def _print(content: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(content) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])

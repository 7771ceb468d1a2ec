"""The children that ask vendor libraries, in processes that may be lost, and the whole inventory for a person.

python -m xinf.device                                    all devices of this host and how far apart they are, as JSON
python -m xinf.device inventory VENDOR [ROOT]            one vendor's
python -m xinf.device read VENDOR INTERVAL_S [ROOT]      a line per interval, and one per event, until nobody reads
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    match arguments:
        case ["inventory", vendor, *root] if len(root) < 2:
            from xinf.device.child import print_inventory

            print_inventory(vendor, Path(*root or "/"))
        case ["read", vendor, interval_s, *root] if len(root) < 2:
            from xinf.device.child import print_readings

            print_readings(vendor, float(interval_s), Path(*root or "/"))
        case []:
            import asyncio

            import msgspec

            from xinf.device.inventory import read_host

            sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(read_host())) + b"\n")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

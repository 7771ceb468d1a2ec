"""The children that ask vendor libraries, in processes that may be lost, and the whole inventory for a person.

python -m xinf.device                                    all devices of this host and how far apart they are, as JSON
python -m xinf.device inventory VENDOR [ROOT [SECONDS]]  one vendor's
python -m xinf.device read VENDOR INTERVAL_S [ROOT [SECONDS]]
                                                         a line per interval, and one per event, until nobody reads

SECONDS: what the vendor's tools may take together for one answer; 12 unless told.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    match arguments:
        case ["inventory", vendor, *rest] if len(rest) < 3:
            from xinf.device.child import end_at_once, print_inventory

            root, tools_s = _where_and_how_long(rest)
            print_inventory(vendor, root, tools_s)
            end_at_once()  # what was said counts, however the library takes its leave
        case ["read", vendor, interval_s, *rest] if len(rest) < 3:
            from xinf.device.child import print_readings

            root, tools_s = _where_and_how_long(rest)
            print_readings(vendor, float(interval_s), root, tools_s)
        case []:
            import asyncio

            import msgspec

            from xinf.device.inventory import read_host

            sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(read_host())) + b"\n")
        case _:
            raise SystemExit(__doc__)


def _where_and_how_long(words: list[str]) -> tuple[Path, float]:
    root, seconds, *_ = (*words, *("/", "12")[len(words) :])
    try:
        return Path(root), float(seconds)
    except ValueError:
        raise SystemExit(__doc__) from None


if __name__ == "__main__":
    main(sys.argv[1:])

"""Devices for tests of what they can do."""

from __future__ import annotations

from typing import Any

from xinf.core.device import Device, Vendor


def device(vendor: Vendor, arch: str | None, **fields: Any) -> Device:
    """One healthy device; its name says nothing unless it is given."""
    given = {"name": "a device", "index": 0, "uuid": f"{vendor}-0", **fields}
    return Device(vendor=vendor, arch=arch, **given)

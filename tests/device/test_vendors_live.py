"""AMD's, Intel's, Apple's and Hygon's probes on live drivers; skipped where there are none (`live: none`)."""

from __future__ import annotations

import pytest

from xinf.core.device import Health, Vendor
from xinf.device import ReadingStream, read_host

VENDORS = [
    pytest.param(vendor, marks=pytest.mark.device(vendor.value), id=vendor.value)
    for vendor in (Vendor.AMD, Vendor.INTEL, Vendor.APPLE, Vendor.HYGON)
]


@pytest.mark.parametrize("vendor", VENDORS)
async def test_live_devices_are_described_and_sampled(vendor: Vendor) -> None:
    devices = [device for device in (await read_host()).devices if device.vendor is vendor]
    assert [device.index for device in devices] == list(range(len(devices)))
    well = {device.uuid: device for device in devices if device.health is Health.OK}
    assert well, [device.reason for device in devices]
    for device in well.values():
        assert (device.memory_bytes or 0) > 1 << 28
        assert device.arch
    async with ReadingStream(interval_s=0.2, vendors=[vendor]) as stream:
        reading = await anext(stream.__aiter__())
    assert reading.fault is None
    for sample in reading.samples:
        if sample.uuid in well:
            assert 0 <= (sample.memory_used_bytes or 0) <= (well[sample.uuid].memory_bytes or 0)

"""The cards of the vendors that RosterProbe asks, on live drivers; skipped where there are none (`live: none`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.core.device import Health, Vendor
from xinf.device import ReadingStream, read_host
from xinf.device.probe import PROBES
from xinf.device.roster_probe import RosterProbe
from xinf.device.way import ask_in_turn

VENDORS = [
    pytest.param(vendor, marks=pytest.mark.device(vendor.value), id=vendor.value)
    for vendor in (Vendor.ASCEND, Vendor.CAMBRICON, Vendor.ENFLAME, Vendor.MTHREADS, Vendor.KUNLUNXIN)
]
ROOT = Path("/")


@pytest.mark.parametrize("vendor", VENDORS)
async def test_live_cards_are_described_and_every_sample_joins_one(vendor: Vendor) -> None:
    devices = [device for device in (await read_host()).devices if device.vendor is vendor]
    well = {device.uuid: device for device in devices if device.health is Health.OK}
    assert well, [device.reason for device in devices]
    assert all((device.memory_bytes or 0) > 1 << 28 for device in well.values())
    async with ReadingStream(interval_s=0.2, vendors=[vendor]) as stream:
        reading = await anext(stream.__aiter__())
    assert reading.fault is None
    assert well.keys() <= {sample.uuid for sample in reading.samples} <= {device.uuid for device in devices}


@pytest.mark.parametrize("vendor", VENDORS)
def test_live_cards_have_one_name_whichever_way_they_are_read(vendor: Vendor) -> None:
    probe = PROBES[vendor]
    assert isinstance(probe, RosterProbe)
    said: list[str] = []
    answers = [
        {card.uuid for card in cards}
        for way in probe.inventory_ways(ROOT)
        if (cards := probe.place(ask_in_turn([way], said), ROOT))
    ]
    assert answers, said
    assert all(answer == answers[0] for answer in answers), said

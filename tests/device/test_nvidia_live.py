"""The NVIDIA probe on a live driver; skipped where there is none, and the end of the run says so (`live: none`)."""

from __future__ import annotations

import re

import pytest

from xinf.core.device import Distance, Health, Vendor
from xinf.device import Reading, ReadingStream, read_host

pytestmark = pytest.mark.device("nvidia")


async def test_live_cards_are_described_whole() -> None:
    host = await read_host()
    cards = [device for device in host.devices if device.vendor is Vendor.NVIDIA and device.parent is None]
    assert cards
    for number, card in enumerate(cards):
        assert card.index == number
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", card.uuid)
        assert re.fullmatch(r"sm_\d{2,3}", str(card.arch))
        assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", str(card.pci))
        assert (card.memory_bytes or 0) > 1 << 30
        assert card.visible == (None if "mig" in card.extra else card.uuid)
    for first, second, distance in host.topology.pairs:
        assert first < second
        assert distance is not Distance.SELF


async def test_live_samples_come_again_and_again_without_a_fault() -> None:
    found: list[Reading] = []
    async with ReadingStream(interval_s=0.2, vendors=[Vendor.NVIDIA]) as stream:
        async for reading in stream:
            assert reading.fault is None
            found.append(reading)
            # By then events were registered for and waited for without one: an idle card's timeout is the rule.
            if len(found) == 10:
                break
    uuids = {device.uuid for device in (await read_host()).devices if device.health is Health.OK}
    for sample in found[-1].samples:
        assert sample.uuid in uuids
        assert sample.memory_used_bytes is None or sample.memory_used_bytes >= 0
        assert sample.health in (None, Health.OK)

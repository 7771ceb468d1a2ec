"""What commands tell of this host's devices without a worker: as one that starts now would."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from xinf.agent import list_devices
from xinf.agent.chart import write_chart
from xinf.agent.damper import Mark, Spell
from xinf.core.config import Config, load
from xinf.core.device import Device, Health, Vendor
from xinf.device import Inventory

CARD = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-1", name="card", pci="0000:01:00.0")
CPU = Device(vendor=Vendor.CPU, index=0, uuid="c", name="cpu")
ILL = msgspec.structs.replace(CARD, health=Health.FAULTY, reason="Xid 48", since_s=1000.0)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    async def read_host(root: Path) -> Inventory:
        return Inventory(devices=(CARD, CPU))

    monkeypatch.setattr("xinf.agent.host_devices.read_host", read_host)
    return load(environ={}, overrides={"data_dir": str(tmp_path)})


async def test_host_without_a_worker_is_as_it_is_found(config: Config) -> None:
    assert await list_devices(config) == (CARD, CPU)


async def test_what_a_worker_knows_is_told_with_its_time(config: Config) -> None:
    spell = Spell(mark=Mark(Health.FAULTY, "Xid 48"))
    write_chart(config.paths.devices_file, (ILL, CPU), {CARD.uuid: spell})
    assert await list_devices(config) == (ILL, CPU)


async def test_what_is_over_long_ago_is_not(config: Config) -> None:
    spell = Spell(mark=Mark(Health.FAULTY, "Xid 48"), calm_since_s=time.monotonic() - 61)
    write_chart(config.paths.devices_file, (ILL, CPU), {CARD.uuid: spell})
    card, _ = await list_devices(config)
    assert (card.health, card.reason) == (Health.OK, None)


async def test_worker_that_does_not_watch_says_nothing(config: Config) -> None:
    write_chart(config.paths.devices_file, (ILL, CPU), {CARD.uuid: Spell(mark=Mark(Health.FAULTY, "Xid 48"))})
    unwatched = msgspec.structs.replace(config.agent, sample_interval=0.0)
    assert await list_devices(msgspec.structs.replace(config, agent=unwatched)) == (CARD, CPU)

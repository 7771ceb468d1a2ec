"""Cards to plan for where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.core.device import Dtype, Support, Vendor
from xinf.core.errors import ConfigError, InvalidRequest
from xinf.registry import capabilities
from xinf.registry.cards import imagine_hosts, read_cards, shipped_cards

_ROW = """
[[card]]
name = "a"
vendor = "nvidia"
device = "A"
arch = "sm_90"
memory_mib = 3
source = "seen"
"""


@pytest.mark.parametrize("name", sorted({card.name for card in shipped_cards().values()}))
def test_every_card_is_known_to_the_table_of_types(name: str) -> None:
    (host,) = imagine_hosts(name)
    (device,) = host.devices
    levels = capabilities(device)
    assert levels[Dtype.FP16] is Support.NATIVE, "no row of engine_compatibility.toml fits its architecture"
    assert 8 << 30 < (device.memory_bytes or 0) < 512 << 30


@pytest.mark.parametrize("name", sorted({card.name for card in shipped_cards().values()} - {"gb10"}))
def test_driver_keeps_some_of_a_card_of_nvidia(name: str) -> None:
    """As of those that are here: what a probe takes for a card's memory has the reserve left out (a GB10 has none)."""
    card = shipped_cards()[name]
    kept_mib = card.memory_mib - (card.memory_bytes >> 20)
    if card.vendor is Vendor.NVIDIA:
        assert 200 <= kept_mib <= 1200, "V100 236, GH200 1103"
    (host,) = imagine_hosts(name)
    assert host.devices[0].memory_bytes == card.memory_bytes


def test_every_vendor_of_accelerators_has_one_but_apple() -> None:
    """An Apple chip shares its memory with the processor, in as many sizes as there are machines."""
    vendors = {card.vendor for card in shipped_cards().values()}
    assert vendors == set(Vendor) - {Vendor.CPU, Vendor.APPLE}


def test_hosts_are_read_with_counts_and_other_names() -> None:
    hosts = imagine_hosts("8x H100, rtx-5090,2*l4")
    assert [host.name for host in hosts] == ["8x h100-80gb", "rtx-5090", "2x l4"]
    assert [len(host.devices) for host in hosts] == [8, 1, 2]
    assert [device.selector for device in hosts[2].devices] == ["cuda:0", "cuda:1"]
    assert len({device.uuid for host in hosts for device in host.devices}) == 11


@pytest.mark.parametrize(
    "text", ["", "h100,", "voodoo", "0x h100", "65x h100", "h100 x2", "x h100", "../h100", f"{'9' * 5000}x h100"]
)
def test_what_is_no_card_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest):
        imagine_hosts(text)


def test_the_remedy_lists_the_cards() -> None:
    with pytest.raises(InvalidRequest) as caught:
        imagine_hosts("voodoo")
    assert "rtx-5090" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_ROW + _ROW, "row 2: 'a' is there twice"),
        (_ROW.replace('"seen"', '""'), "no source"),
        (_ROW.replace("mib = 3", "mib = 0"), "no memory"),
        (_ROW.replace("= 3", "= 81559\nruntime_gib = 79.7"), "not what a driver leaves"),
        (_ROW.replace("= 3", "= 81559\nruntime_gib = 7.91"), "not what a driver leaves"),
        (_ROW.replace("nvidia", "voodoo"), "row 1"),
        (_ROW.replace("arch", "architecture"), "row 1"),
        ("[[card", "unreadable"),
    ],
)
def test_a_bad_table_is_refused_by_row(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_cards(path)


def test_a_table_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unreadable"):
        read_cards(tmp_path / "none.toml")

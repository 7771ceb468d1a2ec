"""The fake NVML drives NVIDIA's own cuda.core.system too (the extra `cuda`), which reads the same library another way.

Proves that what our probe reads of the fake is what NVIDIA's binding reads of it, so that a slip in both our reading
and our fake would show. Skipped, and said so, where cuda-core is not installed: `pip install 'xinf[cuda]'`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from xinf.core.device import Distance
from xinf.device import read_host
from xinf.device.pci import normalise_address

CARDS = [("0000:1b:00.0", "0x10de", "0x030200", 1), ("0000:3b:00.0", "0x10de", "0x030200", -1)]
_READ = """
import json
from cuda.core import system

def read_event(card):
    event = card.register_events(["xid_critical_error"]).wait(timeout_ms=2000)
    return [str(event.event_type), event.event_data]

cards = [system.Device(index=i) for i in range(system.get_num_devices())]
memory = [card.memory_info for card in cards]
print(json.dumps({
    "driver": ".".join(str(part) for part in system.get_kernel_mode_driver_version()),
    "uuids": [str(card.uuid) for card in cards],
    "names": [card.name for card in cards],
    "capabilities": [list(card.cuda_compute_capability) for card in cards],
    "totals": [part.total - part.reserved for part in memory],
    "runtime": ".".join(str(part) for part in system.get_user_mode_driver_version()[:2]),
    "buses": [card.pci_bus_id for card in cards],
    "p2p": str(system.get_p2p_status(cards[0], cards[1], "nvlink")) if len(cards) > 1 else None,
    "event": read_event(cards[0]),
}))
"""


def has_cuda_core() -> bool:
    return importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.core") is not None


@pytest.fixture
def read_with_cuda(nvml_environ: Callable[[str], Mapping[str, str]]) -> Callable[[str], dict[str, Any]]:
    """Read a scenario of the fake in a child, through cuda.core.system."""
    if not has_cuda_core():
        pytest.skip("cuda-core is not installed: the fake is not driven by cuda.core.system here")

    def read(scenario: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", _READ],
            env={**nvml_environ(scenario), "FAKE_NVML_EVENTS": "8:79"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return read


async def test_nvidias_binding_reads_the_same_cards(
    read_with_cuda: Callable[[str], dict[str, Any]],
    make_tree: Callable[..., Path],
    nvml_environ: Callable[[str], Mapping[str, str]],
) -> None:
    theirs = read_with_cuda("2xb200")
    host = await read_host(root=make_tree(*CARDS), environ=nvml_environ("2xb200"))
    ours = host.devices[:-1]
    assert (theirs["driver"], theirs["runtime"]) == (ours[0].driver, ours[0].runtime)
    assert {normalise_address(bus) for bus in theirs["buses"]} == {card.pci for card in ours}
    assert set(theirs["uuids"]) == {card.uuid for card in ours}
    assert set(theirs["names"]) == {card.name for card in ours}
    assert {f"sm_{major}{minor}" for major, minor in theirs["capabilities"]} == {card.arch for card in ours}
    assert set(theirs["totals"]) == {card.memory_bytes for card in ours}
    assert "ok" in theirs["p2p"].lower()
    assert host.topology.between(ours[0].uuid, ours[1].uuid) is Distance.LINK


def test_nvidias_binding_reads_the_same_event(read_with_cuda: Callable[[str], dict[str, Any]]) -> None:
    assert read_with_cuda("5090")["event"] == ["xid_critical_error", 79]


def test_capability_is_not_the_architecture(read_with_cuda: Callable[[str], dict[str, Any]]) -> None:
    assert read_with_cuda("5090")["capabilities"] == [[12, 0]]

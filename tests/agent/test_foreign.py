"""How much memory others use: pure rules, one case each."""

from __future__ import annotations

import pytest

from xinf.agent.foreign import FOREIGN_STEP_BYTES, foreign_bytes
from xinf.core.device import Sample, Vendor
from xinf.device import DeviceProcess, Reading

MIB = 1 << 20


def used(mib: int, *processes: tuple[int, int | None]) -> Reading:
    return Reading(
        vendor=Vendor.NVIDIA,
        samples=(Sample(uuid="a", t_ns=0, memory_used_bytes=mib * MIB),),
        processes=tuple(
            DeviceProcess(uuid="a", pid=pid, memory_bytes=None if size is None else size * MIB)
            for pid, size in processes
        ),
    )


@pytest.mark.parametrize(
    ("reading", "own_pids", "foreign_mib"),
    [
        (used(512), [], 512),
        (used(100), [], None),  # a step too small to be told
        (used(20512, (7, 20000)), [7, 8], 512),
        (used(20512, (7, 20000), (9, 300)), [7], 512),
        (used(20512, (9, 300)), [7], None),  # the driver does not know our engine: another namespace
        (used(20512, (7, None)), [7], None),  # nor how much it has
    ],
)
def test_foreign_memory_is_what_is_not_our_engines(
    reading: Reading, own_pids: list[int], foreign_mib: int | None
) -> None:
    told = foreign_bytes(reading, {"a": own_pids}, {}, {})
    assert told == ({} if foreign_mib is None else {"a": foreign_mib * MIB})


def test_foreign_memory_moves_in_steps() -> None:
    assert foreign_bytes(used(1100), {}, {}, {"a": 1000 * MIB}) == {"a": 1000 * MIB}
    assert foreign_bytes(used(1300), {}, {}, {"a": 1000 * MIB}) == {"a": 1300 * MIB}
    assert foreign_bytes(used(0), {}, {}, {"a": FOREIGN_STEP_BYTES + MIB}) == {}


def test_processor_counts_what_the_host_knows() -> None:
    reading = Reading(vendor=Vendor.CPU, samples=(Sample(uuid="c", t_ns=0, memory_used_bytes=3000 * MIB),))
    assert foreign_bytes(reading, {}, {"c": 2000 * MIB}, {}) == {"c": 1000 * MIB}

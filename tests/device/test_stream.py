"""The resident readers: one per vendor, replaced when they fall silent, and none for the processor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from xinf.core.device import Vendor
from xinf.device import Reading, ReadingStream, read_once
from xinf.device.cpu import CpuProbe

CARD = ("0000:1b:00.0", "0x10de", "0x030200", 1)
Environ = Callable[[str], Mapping[str, str]]


async def test_hung_driver_costs_its_own_vendor_only(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    found: list[Reading] = []
    async with ReadingStream(
        interval_s=0.05, deadline_s=1.5, root=make_tree(CARD), environ=nvml_environ("hang_sample")
    ) as stream:
        async for reading in stream:
            found.append(reading)
            if reading.misses == 2:
                break
    late = [reading for reading in found if reading.vendor is Vendor.NVIDIA]
    assert [(reading.misses, reading.samples) for reading in late] == [(1, ()), (2, ())]
    assert "did not answer within 1.55 s" in str(late[0].fault)
    n_others = len(found) - len(late)
    assert n_others > 10, "the processor is read every 50 ms meanwhile"


async def test_hung_reader_is_replaced(make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path) -> None:
    environ = {**nvml_environ("hang_once"), "FAKE_NVML_MARK": str(tmp_path / "mark")}
    async with ReadingStream(
        interval_s=0.05, deadline_s=4, vendors=[Vendor.NVIDIA], root=make_tree(CARD), environ=environ
    ) as stream:
        readings = aiter(stream)
        late, good = await anext(readings), await anext(readings)
    assert (late.misses, late.samples) == (1, ())
    assert (good.fault, len(good.samples)) == (None, 1)


async def test_reader_that_crashes_is_named_by_its_signal(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    async with ReadingStream(
        interval_s=0.05, vendors=[Vendor.NVIDIA], root=make_tree(CARD), environ=nvml_environ("crash")
    ) as stream:
        first = await anext(aiter(stream))
    assert (first.misses, first.fault) == (1, "its reader ended with signal 11")


async def test_leaving_ends_the_readers(make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    environ = {**nvml_environ("5090"), "FAKE_NVML_LOG": str(log)}
    async with ReadingStream(interval_s=0.02, vendors=[Vendor.NVIDIA], root=make_tree(CARD), environ=environ) as stream:
        await anext(aiter(stream))
        (child,) = children_of_this_process()
    assert not Path(f"/proc/{child}/cmdline").exists()


async def test_processor_is_read_without_a_child(make_tree: Callable[..., Path]) -> None:
    async with ReadingStream(interval_s=0.01, root=make_tree()) as stream:
        readings = aiter(stream)
        first, second = await anext(readings), await anext(readings)
        assert children_of_this_process() == []
    assert first.samples[0].memory_free_bytes == 65536 * 1024
    assert second.samples[0].t_ns > first.samples[0].t_ns


async def test_processor_that_cannot_be_read_says_why_and_is_read_again(
    make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: CpuProbe, __: Path) -> NoReturn:
        raise PermissionError("/proc/meminfo: not for you")

    with monkeypatch.context() as broken:
        broken.setattr(CpuProbe, "sample", refuse)
        async with ReadingStream(interval_s=0.01, root=make_tree()) as stream:
            readings = aiter(stream)
            bad = await anext(readings)
            broken.undo()
            async with asyncio.timeout(30):
                while (good := await anext(readings)).fault is not None:
                    pass
    assert bad.fault == "/proc/meminfo: not for you"
    assert good.samples


async def test_readers_wait_for_who_reads_slowly(make_tree: Callable[..., Path]) -> None:
    async with ReadingStream(interval_s=0.0001, root=make_tree()) as stream:
        async with asyncio.timeout(30):
            while not stream._readings.full():
                await asyncio.sleep(0.001)
        assert (await anext(aiter(stream))).vendor is Vendor.CPU


def children_of_this_process() -> list[int]:
    """The readers that run now."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"xinf.device" in command:
                found.append(int(pid))
    return found


async def test_one_reading_of_each_vendor_is_enough(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    found = await read_once(
        (Vendor.NVIDIA, Vendor.CPU), root=make_tree(CARD), environ=nvml_environ("5090"), deadline_s=30
    )
    assert {reading.vendor for reading in found} == {Vendor.NVIDIA, Vendor.CPU}
    assert all(reading.samples for reading in found)


async def test_driver_that_hangs_is_left_out(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    found = await read_once(
        (Vendor.NVIDIA, Vendor.CPU), root=make_tree(CARD), environ=nvml_environ("hang_sample"), deadline_s=1
    )
    assert [reading.vendor for reading in found] == [Vendor.CPU]

"""Events of NVIDIA devices through the real pynvml and a fake library, in a resident reader as the agent has it.

Proves that we register for what is supported, take a timeout for the rule, and tell an Xid by the table; not when a
driver sends one.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from xinf.core.device import DeviceEvent, Health, Vendor
from xinf.device import Reading, ReadingStream

CARDS = [("0000:1b:00.0", "0x10de", "0x030200", 1), ("0000:3b:00.0", "0x10de", "0x030200", -1)]
FIRST = "GPU-00000000-0000-0000-0000-000000000000"
SECOND = "GPU-00000000-0000-0000-0000-000000000001"
Environ = Callable[[str], Mapping[str, str]]
XID, ECC, RECOVERY = 8, 2, 0x8000


def stream(root: Path, environ: Mapping[str, str]) -> ReadingStream:
    return ReadingStream(interval_s=0.2, vendors=[Vendor.NVIDIA], root=root, environ=environ)


async def next_events(readings: AsyncIterator[Reading], n: int) -> list[DeviceEvent]:
    found: list[DeviceEvent] = []
    async for reading in readings:
        found += reading.events
        if len(found) >= n:
            break
    return found


@pytest.mark.parametrize(
    ("told", "kind", "code", "health", "words"),
    [
        (f"{XID}:79", "xid", 79, Health.FAULTY, "fallen off the bus"),
        (f"{XID}:31", "xid", 31, Health.OK, "page fault"),
        (f"{XID}:63", "xid", 63, Health.OK, "retired"),
        (f"{XID}:777", "xid", 777, Health.OK, "not known here"),
        (f"{ECC}:0", "ecc", None, Health.FAULTY, "double bit"),
    ],
)
async def test_event_is_told_with_what_it_means(
    make_tree: Callable[..., Path],
    nvml_environ: Environ,
    told: str,
    kind: str,
    code: int | None,
    health: Health,
    words: str,
) -> None:
    environ = {**nvml_environ("5090"), "FAKE_NVML_EVENTS": told}
    async with stream(make_tree(CARDS[0]), environ) as readings:
        (event,) = await next_events(aiter(readings), 1)
    assert (event.uuid, event.kind, event.code, event.health) == (FIRST, kind, code, health)
    assert words in event.message


async def test_memory_error_of_a_card_that_contains_them_marks_nothing(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    environ = {**nvml_environ("2xb200"), "FAKE_NVML_EVENTS": f"{ECC}:0 {XID}:94 {XID}:95"}
    async with stream(make_tree(*CARDS), environ) as readings:
        events = await next_events(aiter(readings), 3)
    assert [(event.kind, event.code, event.health) for event in events] == [
        ("ecc", None, Health.OK), ("xid", 94, Health.OK), ("xid", 95, Health.FAULTY),
    ]  # fmt: skip
    assert "an Xid tells" in events[0].message


async def test_several_events_come_in_their_order(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    environ = {**nvml_environ("5090"), "FAKE_NVML_EVENTS": f"{XID}:94 {XID}:45 {XID}:95"}
    async with stream(make_tree(CARDS[0]), environ) as readings:
        events = await next_events(aiter(readings), 3)
    assert [event.code for event in events] == [94, 45, 95]


@pytest.mark.parametrize("told", [f"{XID}:154", f"{RECOVERY}:0"])
async def test_recovery_action_is_read_when_it_changes(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path, told: str
) -> None:
    environ = {**nvml_environ("reset"), "FAKE_NVML_EVENTS": told}
    async with stream(make_tree(CARDS[0]), environ) as readings:
        (wanted,) = await next_events(aiter(readings), 1)
    (tmp_path / "done").touch()
    async with stream(tmp_path / "root", {**environ, "FAKE_NVML_MARK": str(tmp_path / "done")}) as readings:
        (over,) = await next_events(aiter(readings), 1)
    assert (wanted.kind, wanted.health) == ("xid", Health.FAULTY)
    assert "--gpu-reset" in wanted.message
    assert (over.kind, over.health) == ("recovered", Health.OK)


async def test_lost_card_is_told_by_its_name_and_so_is_its_return(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path
) -> None:
    mark = tmp_path / "lost"
    environ = {**nvml_environ("2xlost"), "FAKE_NVML_MARK": str(mark)}
    async with stream(make_tree(*CARDS), environ) as readings:
        source = aiter(readings)
        before = await anext(source)
        for _ in range(3):  # by then events are waited for
            await anext(source)
        mark.touch()
        (lost,) = await next_events(source, 1)
        mark.unlink()
        (back,) = await next_events(source, 1)
    assert [sample.health for sample in before.samples] == [Health.OK, Health.OK]
    assert (lost.uuid, lost.kind, lost.health) == (SECOND, "lost", Health.FAULTY)
    assert (back.uuid, back.kind) == (SECOND, "found")


async def test_driver_that_lets_go_ends_the_reader_and_a_new_one_begins(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    environ = {**nvml_environ("5090"), "FAKE_NVML_SYSTEM_EVENTS": "unbind"}
    async with stream(make_tree(CARDS[0]), environ) as readings:
        source = aiter(readings)
        (event,) = await next_events(source, 1)
        after = await anext(source)
    assert (event.kind, event.health) == ("driver", Health.OK)
    assert "lets go" in event.message
    assert after.samples


async def test_driver_of_another_version_is_noticed(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    root = make_tree(CARDS[0])
    version = root / "sys/module/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("595.84\n")
    async with stream(root, nvml_environ("gb10")) as readings:
        source = aiter(readings)
        await anext(source)
        for _ in range(3):  # by then events are waited for
            await anext(source)
        version.write_text("600.10\n")
        (event,) = await next_events(source, 1)
    assert event.message == "the NVIDIA kernel driver 595.84 was replaced by 600.10"


async def test_library_that_is_replaced_tells_of_an_upgrade(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path
) -> None:
    """The kernel's driver is still the old one: its version file says nothing, new processes do."""
    own, mark = tmp_path / "own", tmp_path / "upgraded"
    own.mkdir()
    environ = {**nvml_environ("upgrade"), "FAKE_NVML_MARK": str(mark)}
    library = own / "libnvidia-ml.so.1"
    shutil.copy(Path(environ["LD_LIBRARY_PATH"]) / library.name, library)
    async with stream(make_tree(CARDS[0]), {**environ, "LD_LIBRARY_PATH": str(own)}) as readings:
        source = aiter(readings)
        for _ in range(4):  # by then events are waited for
            assert (await anext(source)).samples
        mark.touch()
        shutil.copy(library, own / "new")
        (own / "new").replace(library)
        (event,) = await next_events(source, 1)
        refused = await anext(source)
    assert (event.kind, event.health) == ("driver", Health.OK)
    assert "library was replaced" in event.message
    assert (refused.misses, refused.samples) == (0, ())
    assert "differ in version" in str(refused.fault)

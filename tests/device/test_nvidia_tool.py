"""`nvidia-smi` where NVML cannot be loaded: parsers on recorded layouts, and the whole probe with a fake tool on PATH.

The fake tool is a shell script that prints a file according to its arguments: it proves our arguments and what we make
of exit statuses, not what a release of the tool prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from xinf.core.device import Device, Health, Vendor
from xinf.device import ReadingStream, read_inventory
from xinf.device.nvidia_tool import parse_devices, parse_instances, parse_samples, parse_table
from xinf.device.tool import FormatError

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "devices"
CARDS = [("0000:1b:00.0", "0x10de", "0x030200", 1), ("0000:3b:00.0", "0x10de", "0x030200", -1)]
B200 = "GPU-5a1c0f3e-0000-4000-8000-0000000000c2"


def printed(name: str) -> str:
    """What the tool printed: the fixture without the line that says where its layout is from."""
    return (FIXTURES / f"nvidia-smi-595.84-{name}.txt").read_text().partition("\n")[2]


@pytest.fixture
def tool(tmp_path: Path, fake_dir: Path) -> Callable[[str], Mapping[str, str]]:
    """Make the environment of a child that finds an `nvidia-smi` with this shell script as its body, and no NVML."""

    def make(body: str) -> Mapping[str, str]:
        path = fake_dir / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return {**os.environ, "PATH": f"{fake_dir}:/usr/bin:/bin"}

    return make


@pytest.fixture
def fake_dir(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    for name in FIXTURES.glob("nvidia-smi-595.84-*.txt"):
        (path / name.name).write_text(name.read_text().partition("\n")[2])
    return path


def cat(directory: Path, name: str) -> str:
    return f"cat '{directory}/nvidia-smi-595.84-{name}.txt'"


def answers(directory: Path, devices: str, metrics: str = "rtx5090-metrics", listing: str = "b200-list") -> str:
    return (
        'case "$1" in\n'
        f"  --query-gpu=*memory.used*) {cat(directory, metrics)};;\n"
        f"  --query-gpu=uuid,name*) {cat(directory, devices)};;\n"
        f"  -L) {cat(directory, listing)};;\n"
        "  *) echo unknown argument; exit 2;;\nesac"
    )


async def nvidia(root: Path, environ: Mapping[str, str]) -> list[Device]:
    devices = await read_inventory(root=root, environ=environ)
    return [device for device in devices if device.vendor is Vendor.NVIDIA]


async def test_tool_answers_where_the_library_is_missing(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], fake_dir: Path
) -> None:
    first, second = await nvidia(make_tree(*CARDS), tool(answers(fake_dir, "rtx5090")))
    assert first == Device(
        vendor=Vendor.NVIDIA,
        index=0,
        uuid="GPU-5a1c0f3e-0000-4000-8000-0000000000a0",
        name="NVIDIA GeForce RTX 5090",
        arch="sm_120",
        memory_bytes=(32607 - 495) << 20,
        driver="595.84",
        pci="0000:1b:00.0",
        numa=1,
        visible="GPU-5a1c0f3e-0000-4000-8000-0000000000a0",
        extra={"source": "nvidia-smi", "compute_capability": "12.0", "reserved_bytes": 495 << 20},
    )
    assert (second.index, second.pci, second.numa) == (1, "0000:3b:00.0", None)


async def test_card_that_the_tool_does_not_list_is_recorded(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], fake_dir: Path
) -> None:
    root = make_tree(*CARDS, ("0000:5b:00.0", "0x10de", "0x030200", -1))
    *_, third = await nvidia(root, tool(answers(fake_dir, "rtx5090")))
    assert (third.index, third.health, third.uuid) == (2, Health.NO_DRIVER, "PCI-0000-5b-00.0")


async def test_columns_that_an_old_tool_refuses_are_left_out(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], fake_dir: Path
) -> None:
    """Of a driver before 510: its total has no reserve in it."""
    old = fake_dir / "old.txt"
    text = re.sub(r", (compute_cap|12\.0|memory\.reserved \[MiB\]|495)", "", printed("rtx5090"))
    old.write_text(text.replace("32607", "32112"))
    body = (
        'case "$1" in *memory.reserved*) echo \'Field "memory.reserved" is not a valid field to query.\'; exit 2;;'
        " *compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;"
        f" *) cat '{old}';; esac"
    )
    first, _ = await nvidia(make_tree(*CARDS), tool(body))
    assert (first.arch, first.memory_bytes, first.extra) == (None, 32112 << 20, {"source": "nvidia-smi"})


def test_whole_card_is_counted_on_wsl(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    (root / "dev").mkdir()
    (root / "dev/dxg").touch()
    assert parse_devices(printed("rtx5090"), root)[0].memory_bytes == 32607 << 20
    sample = parse_samples(printed("rtx5090-metrics"), root)[0]
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == ((495 + 512) << 20, 31600 << 20)


async def test_instances_come_from_the_list(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], fake_dir: Path
) -> None:
    card, *instances = await nvidia(make_tree(CARDS[0]), tool(answers(fake_dir, "b200-mig")))
    assert (card.uuid, card.visible, card.extra["mig"]) == (B200, None, "enabled")
    assert [(found.parent, found.visible, found.memory_bytes) for found in instances] == [
        (B200, "MIG-5a1c0f3e-0000-5000-8000-000000000001", None),
        (B200, "MIG-5a1c0f3e-0000-5000-8000-000000000002", None),
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "nvidia-smi ended with status 9: NVIDIA-SMI has failed"),
        ("exit 0", "nvidia-smi printed nothing"),
        ("echo 'no such thing'", "header that is not known here: 'no such thing'"),
    ],
)
async def test_failure_of_the_tool_is_told_beside_that_of_the_library(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], body: str, words: str
) -> None:
    (card,) = await nvidia(make_tree(CARDS[0]), tool(body))
    assert card.health is Health.NO_DRIVER
    assert "libnvidia-ml.so.1 is not there" in str(card.reason)
    assert words in str(card.reason)


async def test_tool_is_read_again_and_again(
    make_tree: Callable[..., Path], tool: Callable[[str], Mapping[str, str]], fake_dir: Path
) -> None:
    environ = tool(answers(fake_dir, "rtx5090"))
    async with ReadingStream(
        interval_s=0.05, vendors=[Vendor.NVIDIA], root=make_tree(*CARDS), environ=environ
    ) as stream:
        readings = aiter(stream)
        first, second = await anext(readings), await anext(readings)
    assert [sample.uuid[-2:] for sample in first.samples] == ["b1", "a0"]
    assert second.samples[0].t_ns > first.samples[0].t_ns


def test_metrics_are_read_by_their_units_and_unknown_is_none() -> None:
    first, second = parse_samples(printed("rtx5090-metrics"))
    assert (first.memory_used_bytes, first.memory_free_bytes) == (512 << 20, 31600 << 20)
    assert (first.util_pct, first.temp_c, first.power_w) == (37.0, 53.0, 91.3)
    assert (second.util_pct, second.power_w) == (None, None)


def test_integrated_gpu_has_the_hosts_memory(make_tree: Callable[..., Path]) -> None:
    """As `nvidia-smi` prints a GB10 (driver 580.173.02, XuehaiPan/nvitop #208) and an Orin (driver 540.4.0)."""
    root = make_tree()
    header = "uuid, name, memory.total [MiB], pci.bus_id, driver_version, compute_cap, mig.mode.current"
    first = "GPU-1, NVIDIA GB10, [N/A], 0000000F:01:00.0, 580.173.02, 12.1, [N/A]"
    second = "2, Orin (nvgpu), [N/A], [N/A], 540.4.0, 8.7, [N/A]"
    spark, orin = parse_devices(f"{header}\n{first}\n{second}\n", root)
    assert [(card.memory_bytes, card.extra["memory"]) for card in (spark, orin)] == [(131072 * 1024, "unified")] * 2
    assert (spark.visible, spark.pci, orin.visible, orin.pci) == ("GPU-1", "000f:01:00.0", None, None)
    metrics = "uuid, name, memory.used [MiB], memory.free [MiB], utilization.gpu [%], temperature.gpu, power.draw [W]"
    (sample,) = parse_samples(f"{metrics}\nGPU-1, NVIDIA GB10, [N/A], [N/A], 0, 35, 11.17\n", root)
    assert (sample.memory_used_bytes, sample.memory_free_bytes, sample.util_pct) == (65536 * 1024, 65536 * 1024, 0.0)


def test_columns_may_change_places_and_spacing() -> None:
    rows = parse_table(printed("rtx5090"))
    respaced = "\n".join(
        ",".join(f"  {field.strip()}" for field in line.split(",")) for line in printed("rtx5090").splitlines()
    )
    turned = "\n".join(", ".join(reversed(line.split(", "))) for line in printed("rtx5090").splitlines())
    assert parse_table(respaced) == rows
    assert parse_table(turned) == rows


def test_name_with_a_comma_is_one_field() -> None:
    text = printed("rtx5090").replace("NVIDIA GeForce RTX 5090", '"NVIDIA Gadget, large"')
    assert parse_devices(text)[0].name == "NVIDIA Gadget, large"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "printed nothing"),
        (lambda text: text.partition("\n")[0], "no device"),
        (lambda text: text[: text.index("3B:00")], "fields below 8 columns"),
        (lambda text: text.replace("uuid,", "id,"), "header that is not known here: 'id"),
        (lambda text: text.replace("[MiB]", "[furlong]"), "memory.total in 'furlong'"),
        (lambda text: text.replace(" 32607", " many"), "'many', which is no number"),
        (lambda text: text.replace("00000000:3B:00.0", "elsewhere"), "PCI address as 'elsewhere'"),
        (lambda text: text.replace("GPU-5a1c0f3e-0000-4000-8000-0000000000b1", "[N/A]"), "without a UUID"),
    ],
)
def test_damage_is_refused_by_name(damage: Callable[[str], str], words: str) -> None:
    with pytest.raises(FormatError, match=re.escape(words)) as raised:
        parse_devices(damage(printed("rtx5090")))
    assert "nvidia-smi" in str(raised.value)


def test_line_of_the_list_that_is_not_known_is_refused() -> None:
    cards = parse_devices(printed("b200-mig"))
    with pytest.raises(FormatError, match="Slice"):
        parse_instances(printed("b200-list").replace("  MIG 3g", "  Slice 3g"), cards)

"""AMD's cards from files, library and tool; see gpu_tree.py, fake/rocm_smi.c and fake_tool.py for what each proves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.device.fake_tool import FakeTools
from tests.device.gpu_tree import GpuTree, add_mi300x
from tests.device.mutations import FAILURES, Damage, Failure, damages, reorder_json, truncate_json
from xinf.core.device import Device, Distance, Health, Topology, Vendor
from xinf.device import PROBES, DeviceProcess, LinkProbe, ProcessProbe, ReadingStream, read_host
from xinf.device.amd import AmdProbe
from xinf.device.amd_tool import LIST, METRIC, METRIC_OF_GUESTS, STATIC, parse_list, parse_metric, parse_static
from xinf.device.amdgpu import CardReading
from xinf.device.library import LibraryError
from xinf.device.rocm_library import RocmSmi
from xinf.device.tool import FormatError, ToolError

Read = Callable[[str], str]
FIRST, SECOND = "0000:83:00.0", "0000:c1:00.0"
STATIC_7, STATIC_6 = "amd-smi-7.0-static-mi300x.json", "amd-smi-6.2-static-w7900.json"
METRIC_7, LIST_7 = "amd-smi-7.0-metric-mi300x.json", "amd-smi-7.0-list-mi300x.json"
BARE = {"mem_info_vram_used", "mem_info_vram_total", "product_name", "gpu_busy_percent", "hwmon", "ras"}


@pytest.fixture
def two_cards(gpu_tree: GpuTree) -> GpuTree:
    """Two MI300X with an xGMI link, the first on the bus second in KFD's order."""
    add_mi300x(gpu_tree, SECOND, node=2, unique_id=0xB, linked=[3])
    add_mi300x(gpu_tree, FIRST, node=3, unique_id=0xFEDCBA9876543210, linked=[2])
    gpu_tree.open_kfd()
    gpu_tree.write("sys/module/amdgpu/version", "6.14.14\n")
    gpu_tree.write("opt/rocm/.info/version", "7.0.1-42\n")
    return gpu_tree


@pytest.fixture
def library(fake_library: Callable[[str, str], Path]) -> Callable[[Path], None]:
    """Put a fake librocm_smi64.so below a root."""

    def install(root: Path) -> None:
        target = root / "opt/rocm/lib/librocm_smi64.so"
        target.parent.mkdir(parents=True)
        shutil.copy(fake_library("rocm_smi.c", "librocm_smi64.so") / "librocm_smi64.so", target)

    return install


def strip(root: Path, *, nodes: bool = True) -> None:
    """Take away what the driver's files say of the cards but their unique ids; `nodes`: and KFD."""
    for card in (root / "sys/bus/pci/devices").iterdir():
        for name in BARE:
            path = card / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if nodes:
        shutil.rmtree(root / "sys/class/kfd")


def test_probe_is_registered() -> None:
    probe = PROBES[Vendor.AMD]
    assert isinstance(probe, AmdProbe)
    assert isinstance(probe, LinkProbe)
    assert isinstance(probe, ProcessProbe)


def test_card_is_described_by_its_drivers_files_alone(two_cards: GpuTree, fake_tool: FakeTools) -> None:
    fake_tool.add("amd-smi", {"*": "must not be asked"})
    first, second = AmdProbe().inventory(two_cards.root)
    assert first == Device(
        vendor=Vendor.AMD,
        index=0,
        uuid="GPU-fedcba9876543210",
        name="AMD Instinct MI300X OAM",
        arch="gfx942",
        memory_bytes=206141652992,
        driver="6.14.14",
        runtime="7.0.1",
        pci=FIRST,
        numa=0,
        dev_nodes=("/dev/kfd", "/dev/dri/renderD129"),
        visible="GPU-fedcba9876543210",
        extra={"kfd_node": 3},
    )
    assert (second.index, second.pci, second.uuid) == (1, SECOND, "GPU-000000000000000b")
    assert fake_tool.calls("amd-smi") == []


def test_inventory_reads_no_metric(two_cards: GpuTree) -> None:
    before = AmdProbe().inventory(two_cards.root)
    for name in ("mem_info_vram_used", "gpu_busy_percent", "ras/umc_err_count", "hwmon/hwmon4/temp1_input"):
        (two_cards.root / "sys/bus/pci/devices" / FIRST / name).write_text("not a number\n")
    assert AmdProbe().inventory(two_cards.root) == before


def test_card_without_unique_id_is_counted_by_kfd(gpu_tree: GpuTree) -> None:
    add_mi300x(gpu_tree, FIRST, node=2, unique_id=0)
    add_mi300x(gpu_tree, SECOND, node=1, unique_id=0)
    gpu_tree.open_kfd()
    found = AmdProbe().inventory(gpu_tree.root)
    assert [(card.uuid, card.visible) for card in found] == [("PCI-0000-83-00.0", "1"), ("PCI-0000-c1-00.0", "0")]


def test_unique_id_of_two_boards_names_neither(gpu_tree: GpuTree) -> None:
    add_mi300x(gpu_tree, FIRST, node=2, unique_id=5)
    add_mi300x(gpu_tree, SECOND, node=1, unique_id=5)
    assert {card.uuid for card in AmdProbe().inventory(gpu_tree.root)} == {"PCI-0000-83-00.0", "PCI-0000-c1-00.0"}


def test_partitions_are_devices_of_their_card(gpu_tree: GpuTree) -> None:
    add_mi300x(gpu_tree, FIRST, node=1, unique_id=0xA)
    for partition in (1, 2):
        properties = {"location_id": 0x8300 | partition << 28, "gfx_target_version": 90402, "unique_id": 0xA}
        banks = [{"heap_type": 1, "size_in_bytes": 64 << 30}]
        gpu_tree.add_node(1 + partition, properties, gpu_id=77 + partition, banks=banks)
    gpu_tree.open_kfd()
    found = AmdProbe().inventory(gpu_tree.root)
    assert [(d.index, d.uuid, d.visible, d.parent) for d in found] == [
        (n, f"GPU-000000000000000a-p{n}", str(n), "GPU-000000000000000a") for n in range(3)
    ]
    assert found[1].memory_bytes == 64 << 30
    assert {sample.memory_used_bytes for sample in AmdProbe().sample(gpu_tree.root)} == {None}


def test_xgmi_link_is_told_by_uuid(two_cards: GpuTree) -> None:
    topology = AmdProbe().topology(two_cards.root)
    assert topology == Topology(pairs=(("GPU-000000000000000b", "GPU-fedcba9876543210", Distance.LINK),))


def test_processes_are_told_by_uuid(two_cards: GpuTree) -> None:
    two_cards.write("sys/class/kfd/kfd/proc/4242/vram_40003", "8589934592\n")
    two_cards.write("sys/class/kfd/kfd/proc/4243/vram_7", "1\n")  # of no card of ours
    assert AmdProbe().processes(two_cards.root) == (
        DeviceProcess(uuid="GPU-fedcba9876543210", pid=4242, memory_bytes=8 << 30),
    )


async def test_host_is_read_through_the_children(two_cards: GpuTree) -> None:
    host = await read_host(root=two_cards.root)
    first, second, processor = host.devices
    assert (first.selector, second.selector, processor.vendor) == ("rocm:0", "rocm:1", Vendor.CPU)
    assert host.topology.between(first.uuid, second.uuid) is Distance.LINK  # whatever the bus says
    async with ReadingStream(interval_s=0.05, root=two_cards.root, vendors=[Vendor.AMD]) as stream:
        reading = await anext(stream.__aiter__())
    assert [sample.uuid for sample in reading.samples] == [first.uuid, second.uuid]


@pytest.mark.parametrize(
    ("driver", "words"), [(None, "modprobe amdgpu"), ("vfio-pci", "vfio-pci is bound to it, not amdgpu")]
)
def test_card_without_its_driver_is_recorded(gpu_tree: GpuTree, driver: str | None, words: str) -> None:
    gpu_tree.add_card(FIRST, vendor=0x1002, device=0x74A1, driver=driver)
    (card,) = AmdProbe().inventory(gpu_tree.root)
    assert (card.health, card.pci, card.memory_bytes, card.visible) == (Health.NO_DRIVER, FIRST, None, None)
    assert words in str(card.reason)
    with pytest.raises(ToolError, match="no card of amd has its kernel driver"):
        AmdProbe().sample(gpu_tree.root)


def test_closed_kfd_is_the_reason(two_cards: GpuTree) -> None:
    (two_cards.root / "dev/kfd").unlink()
    cards = AmdProbe().inventory(two_cards.root)
    assert {card.health for card in cards} == {Health.NO_DRIVER}
    assert "--device /dev/kfd" in str(cards[0].reason)


def test_card_whose_render_node_is_kept_away_is_no_device(two_cards: GpuTree) -> None:
    (two_cards.root / "dev/dri/renderD129").unlink()
    hidden, other = AmdProbe().inventory(two_cards.root)
    assert (hidden.health, hidden.visible, other.health) == (Health.NO_DRIVER, None, Health.OK)
    assert "--device /dev/dri/renderD129" in str(hidden.reason)


def test_unreadable_files_make_a_silent_record(two_cards: GpuTree) -> None:
    (two_cards.root / "sys/bus/pci/devices" / FIRST / "mem_info_vram_total").write_text("lots\n")
    cards = AmdProbe().inventory(two_cards.root)
    assert [card.health for card in cards] == [Health.SILENT, Health.SILENT]
    assert "mem_info_vram_total: 'lots' is not a number" in str(cards[0].reason)


def test_library_fills_in_by_address(two_cards: GpuTree, library: Callable[[Path], None]) -> None:
    library(two_cards.root)
    strip(two_cards.root, nodes=False)
    first, second = AmdProbe().inventory(two_cards.root)
    assert (first.name, second.name) == ("AMD Instinct MI300X", "AMD Instinct MI300X (second)")
    assert first.uuid == "GPU-fedcba9876543210"  # the files know better than the library


def test_tool_fills_in_what_files_and_library_do_not_say(
    two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    strip(two_cards.root)
    fake_tool.add("amd-smi", {" ".join(STATIC): device_fixture(STATIC_7)})
    first, second = AmdProbe().inventory(two_cards.root)
    assert (first.name, first.arch, first.memory_bytes) == ("AMD Instinct MI300X", "gfx942", 196592 << 20)
    assert (first.visible, second.visible) == (None, None)  # nobody told how ROCr counts them


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named_in_the_reason(two_cards: GpuTree, fake_tool: FakeTools, failure: Failure) -> None:
    strip(two_cards.root)
    fake_tool.add("amd-smi", {"*": ""}, failure=failure)
    first, _ = AmdProbe(timeout_s=0.3).inventory(two_cards.root)
    assert first.health is Health.NO_DRIVER
    assert "amd-smi" in str(first.reason)
    assert "librocm_smi64" in str(first.reason)


def test_sample_is_of_the_drivers_files(two_cards: GpuTree) -> None:
    first, second = AmdProbe().sample(two_cards.root)
    assert (first.uuid, second.uuid) == ("GPU-fedcba9876543210", "GPU-000000000000000b")
    assert (first.memory_used_bytes, first.memory_free_bytes) == (301895680, 206141652992 - 301895680)
    assert (first.util_pct, first.temp_c, first.power_w, first.ecc_uncorrected) == (63.0, 58.0, 412.0, 0)
    assert (first.health, first.reason) == (Health.OK, None)


def test_what_a_card_does_not_say_is_none(two_cards: GpuTree) -> None:
    strip(two_cards.root, nodes=False)
    for sample in AmdProbe().sample(two_cards.root):
        assert (sample.memory_used_bytes, sample.util_pct, sample.temp_c, sample.power_w) == (None, None, None, None)
        assert (sample.ecc_uncorrected, sample.health) == (None, None)


def test_growing_errors_make_a_card_faulty(two_cards: GpuTree) -> None:
    probe, counts = AmdProbe(), two_cards.root / "sys/bus/pci/devices" / FIRST / "ras/umc_err_count"
    counts.write_text("ue: 4\nce: 5\n")
    assert probe.sample(two_cards.root)[0].health is Health.OK  # of before our time
    counts.write_text("ue: 6\nce: 5\n")
    ill, well = probe.sample(two_cards.root)
    assert (ill.health, ill.ecc_uncorrected, well.health) == (Health.FAULTY, 6, Health.OK)
    assert "2 uncorrectable memory errors" in str(ill.reason)


def test_errors_of_a_count_that_began_anew_make_a_card_faulty(two_cards: GpuTree) -> None:
    probe, counts = AmdProbe(), two_cards.root / "sys/bus/pci/devices" / FIRST / "ras/umc_err_count"
    for errors, health in ((4, Health.OK), (0, Health.OK), (3, Health.FAULTY)):
        counts.write_text(f"ue: {errors}\nce: 5\n")
        assert probe.sample(two_cards.root)[0].health is health, errors


def test_name_on_a_board_may_hold_anything(two_cards: GpuTree) -> None:
    (two_cards.root / "sys/bus/pci/devices" / FIRST / "product_name").write_bytes(b"MI300X \xff\xfe\n")
    first, second = AmdProbe().inventory(two_cards.root)
    assert (first.health, second.health) == (Health.OK, Health.OK)
    assert first.name.startswith("MI300X")


@pytest.mark.parametrize(
    ("milli", "health", "words"),
    [
        (99999, Health.OK, None),
        (100000, Health.DEGRADED, "critical limit of 100 C"),
        (105000, Health.FAULTY, "105 C or above, where it turns itself off"),
    ],
)
def test_heat_is_judged_by_the_limits_of_the_card(
    two_cards: GpuTree, milli: int, health: Health, words: str | None
) -> None:
    directory = two_cards.root / "sys/bus/pci/devices"
    (directory / FIRST / "hwmon/hwmon4/temp1_input").write_text(f"{milli}\n")
    hot, _ = AmdProbe().sample(two_cards.root)
    assert hot.health is health
    assert hot.reason is None if words is None else words in str(hot.reason)


def test_lost_card_is_a_fault(two_cards: GpuTree) -> None:
    (two_cards.root / "sys/bus/pci/devices" / SECOND / "config").write_bytes(b"\xff" * 64)
    _, lost = AmdProbe().sample(two_cards.root)
    assert lost.health is Health.FAULTY
    assert "fell off the PCI bus" in str(lost.reason)


def test_sample_is_of_the_library_where_files_are_silent(
    two_cards: GpuTree, library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library(two_cards.root)
    strip(two_cards.root, nodes=False)
    monkeypatch.setenv("FAKE_ROCM_SMI", "errors")
    first, second = AmdProbe().sample(two_cards.root)
    assert (first.memory_used_bytes, second.memory_used_bytes) == (11 << 30, 10 << 30)
    assert (first.util_pct, first.temp_c, first.power_w, first.ecc_uncorrected) == (41.0, 62.0, 118.000001, 4)


def test_sample_is_of_the_tool_where_nothing_else_speaks(
    two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    strip(two_cards.root, nodes=False)
    fake_tool.add("amd-smi", {" ".join(METRIC): device_fixture(METRIC_7), " ".join(LIST): device_fixture(LIST_7)})
    probe = AmdProbe()
    first, second = probe.sample(two_cards.root)
    assert (first.memory_used_bytes, first.temp_c, first.power_w) == (98304 << 20, 58.0, 412.0)
    assert (second.memory_used_bytes, second.temp_c, second.power_w) == (296 << 20, 39.0, None)
    probe.sample(two_cards.root)
    assert fake_tool.calls("amd-smi") == [" ".join(LIST), " ".join(METRIC), " ".join(METRIC)]


def test_older_tool_in_a_virtual_machine_is_asked_for_the_memory_alone(
    two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    # ROCm/amdsmi, amdsmi_parser.py of its first releases: of these options a guest has --mem-usage only.
    strip(two_cards.root, nodes=False)
    content = json.loads(device_fixture(METRIC_7))
    short = [{"gpu": entry["gpu"], "mem_usage": entry["mem_usage"]} for entry in content["gpu_data"]]
    answers = {" ".join(METRIC_OF_GUESTS): json.dumps(short), " ".join(LIST): device_fixture(LIST_7)}
    fake_tool.add("amd-smi", answers)
    first, _ = AmdProbe().sample(two_cards.root)
    assert (first.memory_used_bytes, first.temp_c, first.power_w) == (98304 << 20, None, None)
    assert fake_tool.calls("amd-smi") == [" ".join(LIST), " ".join(METRIC), " ".join(METRIC_OF_GUESTS)]


def test_bare_list_of_rocm_6_is_read(device_fixture: Read) -> None:
    (facts,) = parse_static(device_fixture(STATIC_6)).values()
    assert (facts.name, facts.arch) == ("AMD Radeon PRO W7900", None)
    assert (facts.memory_bytes, facts.driver) == (46064 << 20, "6.8.5")


def test_warnings_before_the_answer_are_passed_over(device_fixture: Read) -> None:
    text = device_fixture(STATIC_7)
    for warning in ("WARNING: User is missing group membership", "[WARNING] {0} is in a low-power state", "{a}\n[1]"):
        assert parse_static(f"{warning}\n{text}") == parse_static(text)


@pytest.mark.parametrize(
    ("name", "parse"),
    [(STATIC_7, parse_static), (STATIC_6, parse_static), (METRIC_7, parse_metric), (LIST_7, parse_list)],
)
def test_order_and_spacing_of_keys_do_not_matter(
    name: str, parse: Callable[[str], object], device_fixture: Read
) -> None:
    assert parse(reorder_json(device_fixture(name))) == parse(device_fixture(name))


@pytest.mark.parametrize("damage", [*damages('"bdf"', '"gpu_data"'), pytest.param(truncate_json, id="truncated")])
def test_damaged_static_is_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="amd-smi"):
        parse_static(damage(device_fixture(STATIC_7)))


@pytest.mark.parametrize("damage", [*damages('"gpu"', '"gpu_data"'), pytest.param(truncate_json, id="truncated")])
def test_damaged_metric_is_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="amd-smi"):
        parse_metric(damage(device_fixture(METRIC_7)))


def test_unknown_unit_is_refused_and_not_guessed(device_fixture: Read) -> None:
    text = device_fixture(STATIC_7).replace('"unit": "MB"', '"unit": "pages"')
    with pytest.raises(FormatError, match="unit of"):
        parse_static(text)


def test_library_that_does_not_start_says_so(
    tmp_path: Path, library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path)
    monkeypatch.setenv("FAKE_ROCM_SMI", "fails")
    with pytest.raises(LibraryError, match="does not start"):
        RocmSmi(directories=("/opt/rocm/lib",), root=tmp_path)


def test_card_without_average_power_says_what_it_draws(
    tmp_path: Path, library: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path)
    monkeypatch.setenv("FAKE_ROCM_SMI", "mi300")
    smi = RocmSmi(directories=("/opt/rocm/lib",), root=tmp_path)
    assert smi.reading(FIRST) == CardReading(
        memory_used_bytes=11 << 30,
        memory_total_bytes=191 << 30,
        util_pct=41.0,
        temp_c=62.0,
        temp_limit_c=100.0,
        temp_shutdown_c=105.0,
        power_w=140.000001,
        ecc_uncorrected=0,
    )
    assert smi.reading("0000:01:00.0") == CardReading()


@pytest.fixture
def strix_halo(gpu_tree: GpuTree) -> GpuTree:
    """A processor with graphics and 128 GB, as Linux 6.16 shows it: a node of its own, whose memory is the machine's.

    The sizes are those that ROCm/rocm-systems #8475 reports of one.
    """
    files = {
        "mem_info_vram_total": "536870912",
        "mem_info_vram_used": "402653184",
        "mem_info_gtt_used": f"{30 << 30}",
    }
    gpu_tree.add_card("0000:c5:00.0", vendor=0x1002, device=0x1586, driver="amdgpu", pci_class=0x038000, files=files)
    properties = {"cpu_cores_count": 0, "location_id": 0xC500, "gfx_target_version": 110501}
    gpu_tree.add_node(1, properties, gpu_id=5, banks=[{"heap_type": 1, "size_in_bytes": 118111600640}])
    gpu_tree.open_kfd()
    return gpu_tree


def test_integrated_gpu_has_the_machines_memory(strix_halo: GpuTree) -> None:
    (device,) = AmdProbe().inventory(strix_halo.root)
    assert (device.arch, device.extra["memory"], device.visible) == ("gfx1151", "unified", "0")
    assert device.memory_bytes == 118111600640, "what HIP may allocate, not the 512 MiB of the screen"


@pytest.mark.parametrize(("available_kb", "free"), [(100 << 20, 118111600640 - (30 << 30)), (8 << 20, 8 << 30)])
def test_free_memory_of_an_integrated_gpu_is_the_machines(strix_halo: GpuTree, available_kb: int, free: int) -> None:
    strix_halo.write("proc/meminfo", f"MemTotal: 130023424 kB\nMemAvailable: {available_kb} kB\n")
    (sample,) = AmdProbe().sample(strix_halo.root)
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (118111600640 - free, free)


def test_integrated_gpu_with_memory_of_its_own_is_a_card(strix_halo: GpuTree) -> None:
    directory = strix_halo.root / "sys/bus/pci/devices/0000:c5:00.0"
    (directory / "mem_info_vram_total").write_text(f"{96 << 30}\n")
    bank = strix_halo.root / "sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties"
    bank.write_text(f"heap_type 1\nsize_in_bytes {96 << 30}\n")
    (device,) = AmdProbe().inventory(strix_halo.root)
    (sample,) = AmdProbe().sample(strix_halo.root)
    assert (device.memory_bytes, "memory" in device.extra) == (96 << 30, False)
    assert sample.memory_free_bytes == (96 << 30) - 402653184


def test_record_survives_the_way_to_the_agent(two_cards: GpuTree) -> None:
    found = AmdProbe().inventory(two_cards.root)
    assert msgspec.json.decode(msgspec.json.encode(found), type=tuple[Device, ...]) == found

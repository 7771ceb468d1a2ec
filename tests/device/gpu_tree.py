"""Builds below a temporary root what the kernel shows of a GPU: the PCI function with its driver, and KFD's nodes.

The files have the names and forms of Linux 6.8's amdgpu, xe and amdkfd. They prove how the files are read and joined,
not that a driver writes them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Properties = Mapping[str, int]


class GpuTree:
    """A root directory that GPUs are put into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/bus/pci/devices").mkdir(parents=True)

    def add_card(
        self,
        address: str,
        *,
        vendor: int,
        device: int,
        driver: str | None,
        pci_class: int = 0x120000,
        numa: int = 0,
        files: Mapping[str, str] | None = None,
    ) -> Path:
        """Put a PCI function there; `files` by their path below it."""
        directory = self.root / "sys/bus/pci/devices" / address
        known = {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{pci_class:#08x}"}
        for name, text in {**known, "numa_node": str(numa), **(files or {})}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        if driver is not None:
            target = self.root / "sys/bus/pci/drivers" / driver
            target.mkdir(parents=True, exist_ok=True)
            (directory / "driver").symlink_to(target)
        return directory

    def add_node(
        self,
        number: int,
        properties: Properties,
        *,
        gpu_id: int,
        banks: Sequence[Properties] = (),
        links: Sequence[Properties] = (),
    ) -> Path:
        """Put a KFD node there."""
        directory = self.root / "sys/class/kfd/kfd/topology/nodes" / str(number)
        directory.mkdir(parents=True)
        (directory / "gpu_id").write_text(f"{gpu_id}\n")
        if minor := properties.get("drm_render_minor"):
            self.write(f"dev/dri/renderD{minor}", "")
        _write_properties(directory, properties)
        for name, entries in (("mem_banks", banks), ("io_links", links)):
            for position, entry in enumerate(entries):
                _write_properties(directory / name / str(position), entry)
        return directory

    def open_kfd(self) -> None:
        """Make /dev/kfd, as a regular file: nothing opens it."""
        path = self.root / "dev/kfd"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, path: str, text: str) -> None:
        """Write a file below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def _write_properties(directory: Path, properties: Properties) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "properties").write_text("".join(f"{key} {value}\n" for key, value in properties.items()))


def add_mi300x(tree: GpuTree, address: str, *, node: int, unique_id: int, linked: Sequence[int] = ()) -> Path:
    """Put an MI300X there, with all that its driver shows; `linked`: nodes that an xGMI link leads to."""
    bus = int(address.split(":")[1], 16)
    tree.add_node(
        node,
        {
            "cpu_cores_count": 0,
            "simd_count": 1216,
            "mem_banks_count": 1,
            "gfx_target_version": 90402,
            "vendor_id": 4098,
            "device_id": 29857,
            "location_id": bus << 8,
            "domain": 0,
            "drm_render_minor": 126 + node,
            "unique_id": unique_id,
        },
        gpu_id=40000 + node,
        banks=[{"heap_type": 1, "size_in_bytes": 206141652992, "flags": 0, "width": 8192}],
        links=[
            {"type": 2, "node_from": node, "node_to": 0, "weight": 20},
            *({"type": 11, "node_from": node, "node_to": other, "weight": 15} for other in linked),
        ],
    )
    return tree.add_card(
        address,
        vendor=0x1002,
        device=0x74A1,
        driver="amdgpu",
        files={
            "mem_info_vram_total": "206141652992",
            "mem_info_vram_used": "301895680",
            "gpu_busy_percent": "63",
            "unique_id": f"{unique_id:x}",
            "product_name": "AMD Instinct MI300X OAM",
            "hwmon/hwmon4/temp1_label": "junction",
            "hwmon/hwmon4/temp1_input": "58000",
            "hwmon/hwmon4/temp1_crit": "100000",
            "hwmon/hwmon4/temp1_emergency": "105000",
            "hwmon/hwmon4/temp2_label": "mem",
            "hwmon/hwmon4/temp2_input": "44000",
            "hwmon/hwmon4/power1_input": "412000000",
            "ras/umc_err_count": "ue: 0\nce: 5",
            "ras/gfx_err_count": "ue: 0\nce: 0",
        },
    )

"""Device nodes that show a vendor's devices where the PCI bus does not: in containers, on modules, in WSL."""

from __future__ import annotations

from pathlib import Path

from xinf.core.device import Vendor

# NVIDIA's: of the driver; of WSL, where any vendor's GPU has it; of nvgpu, the driver of Tegra's GPUs (Jetson).
_NODES: dict[Vendor, tuple[str, ...]] = {
    Vendor.NVIDIA: ("dev/nvidiactl", "dev/dxg", "dev/nvhost-gpu", "dev/nvgpu"),
    Vendor.ASCEND: ("dev/davinci_manager",),
    Vendor.CAMBRICON: ("dev/cambricon_ctl",),
}


def has_node(vendor: Vendor, root: Path) -> bool:
    """Whether one of the vendor's device nodes is there."""
    return any((root / node).exists() for node in _NODES.get(vendor, ()))

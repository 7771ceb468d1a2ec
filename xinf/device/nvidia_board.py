"""What the name of an NVIDIA GPU, and where it is, tell where neither library nor tool have a question for it."""

from __future__ import annotations

from pathlib import Path

_TEGRA = ("(nvgpu)", "NVIDIA Thor")


def is_tegra(name: str) -> bool:
    """Whether it is the GPU of a Jetson, whose UUID is another one in CUDA.

    Source: NVIDIA/go-nvlib, HasAnIntegratedGPU (`Orin (nvgpu)`, `NVIDIA Thor`); NVIDIA/nvbandwidth #55.
    """
    return any(part in name for part in _TEGRA)


def is_integrated(name: str) -> bool:
    """Whether it computes in the host's memory: a Jetson's, or that of a GB10 (DGX Spark)."""
    return is_tegra(name) or "GB10" in name.split()


def is_of_windows(root: Path) -> bool:
    """Whether it is the Windows host of this WSL that has the card: CUDA then counts the driver's reserve as well.

    Seen: RTX 5090, CUDA 31.84 GiB = NVML's 32607 MiB (Alex8791-cyber/cognithor #318); elsewhere CUDA has 31.36 GiB.
    """
    return (root / "dev/dxg").exists()

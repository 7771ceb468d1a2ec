"""A fake NVML for the real binding, and sysfs trees to look at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

MakeTree = Callable[..., Path]


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a compiled fake libnvidia-ml.so.1; see fake/nvml.c for what it proves and what it cannot."""
    directory = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "fake" / "nvml.c"
    library = directory / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return directory


@pytest.fixture
def nvml_environ(fake_nvml: Path) -> Callable[[str], Mapping[str, str]]:
    """Make the environment of a child whose NVML answers as a scenario says."""
    return lambda scenario: {**os.environ, "LD_LIBRARY_PATH": str(fake_nvml), "FAKE_NVML": scenario}


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Make a root directory with a PCI bus: `make_tree(("0000:1b:00.0", "0x10de", "0x030000", 0))`."""

    def make(*functions: tuple[str, str, str, int]) -> Path:
        root = tmp_path / "root"
        for address, vendor, pci_class, numa in functions:
            directory = root / "sys/bus/pci/devices" / address
            directory.mkdir(parents=True)
            for name, text in (("vendor", vendor), ("class", pci_class), ("device", "0x2b85"), ("numa_node", numa)):
                (directory / name).write_text(f"{text}\n")
        (root / "proc").mkdir(parents=True)
        (root / "proc/meminfo").write_text("MemTotal:       131072 kB\nMemAvailable:    65536 kB\n")
        return root

    return make

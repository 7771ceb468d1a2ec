"""Fake C libraries and fake tools to ask, fixtures with what tools printed, and sysfs trees to look at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.gpu_tree import GpuTree

MakeTree = Callable[..., Path]
_FIXTURES = Path(__file__).parent.parent / "fixtures/devices"
_FIRST_LINE = "# layout seen in: "


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


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compile a fake of fake/*.c: `fake_library("amdsmi.c", "libamd_smi.so")` gives the directory it lies in.

    A child finds it with LD_LIBRARY_PATH; the source says what it proves and what it cannot.
    """
    made: dict[tuple[str, str], Path] = {}

    def compile_once(source: str, library: str) -> Path:
        if (source, library) not in made:
            directory = tmp_path_factory.mktemp("fake")
            path = Path(__file__).parent / "fake" / source
            command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o", str(directory / library), str(path)]
            subprocess.run(command, check=True, timeout=60)
            made[source, library] = directory
        return made[source, library]

    return compile_once


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    """Fake tools first on the PATH: `fake_tool.add("hy-smi", {"--showuse --json": text})`."""
    tools = FakeTools(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tools.directory}{os.pathsep}{os.environ['PATH']}")
    return tools


@pytest.fixture(scope="session")
def device_fixture() -> Callable[[str], str]:
    """Read a file of tests/fixtures/devices without its first line, which says where the layout was seen."""

    def read(name: str) -> str:
        first, _, rest = (_FIXTURES / name).read_text().partition("\n")
        assert first.startswith(_FIRST_LINE), f"{name} does not say where its layout was seen"
        return rest

    return read


@pytest.fixture
def gpu_tree(tmp_path: Path) -> GpuTree:
    """A root directory that GPUs are put into."""
    return GpuTree(tmp_path / "root")

"""Packages that load their names on first use: all of them, once, and no others."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ("xinf.agent", "xinf.device", "xinf.meta", "xinf.serve")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_found_and_kept(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is module.__dict__[name]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_said_as_python_says_it(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        getattr(import_module(package), "nonsense")  # noqa: B009


def test_one_name_loads_one_module() -> None:
    code = (
        "import sys; from xinf.device import find_pci_functions;"
        " print(sorted(name for name in sys.modules if name.startswith('xinf.device.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['xinf.device.pci']"

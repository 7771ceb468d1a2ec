"""A run that wanted a live device says which were there, and a skipped test is not a passed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xinf.core.device import Vendor
from xinf.device import PROBES


@pytest.mark.skipif(PROBES[Vendor.NVIDIA].is_present(Path("/")), reason="this host shows an NVIDIA device")
def test_run_without_the_device_says_so(checkout: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "tests/device/test_nvidia_live.py", f"--basetemp={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
    assert "live: none (not here: nvidia)" in done.stdout
    assert " passed" not in done.stdout
    assert "2 skipped" in done.stdout

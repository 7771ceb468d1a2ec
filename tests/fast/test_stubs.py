"""The hand-written stubs say what was built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_stubs_agree_with_the_extensions(checkout: Path) -> None:
    modules = [f"xinf._fast.{path.stem}" for path in sorted((checkout / "xinf" / "_fast").glob("*.pyx"))]
    assert len(modules) >= 3
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *modules], cwd=checkout, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The master of Granian's workers."""

from __future__ import annotations

import subprocess
import sys


def test_master_imports_neither_grpc_nor_the_application() -> None:
    code = (
        "import sys, xinf.gateway, xinf.gateway.front, xinf.gateway.__main__;"
        "heavy = ('grpc', 'xinf.gateway.app', 'xinf.gateway.link', 'lmdb', 'xinf.router');"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""

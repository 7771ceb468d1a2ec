"""The build of xinf/_fast with the address and undefined-behaviour sanitizers, and what a process needs to load it.

It lies in .build/sanitize, apart from the plain build, and is made anew when a source has changed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD_DIR = ROOT / ".build" / "sanitize"
FAST_DIR = BUILD_DIR / "lib" / "xinf" / "_fast"
FAILURES_DIR = ROOT / ".build" / "fuzz"


def build() -> None:
    """Bring the build up to date. Raises: RuntimeError with the compiler's output."""
    stamp = BUILD_DIR / "stamp"
    digest = _digest_of_sources()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(BUILD_DIR, ignore_errors=True)  # nothing old is ever taken for new
    BUILD_DIR.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--parallel", str(os.cpu_count() or 1)],
        cwd=ROOT,
        env=os.environ | {"XINF_SANITIZE": "1", "XINF_BUILD_DIR": str(BUILD_DIR.relative_to(ROOT))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"the sanitized build failed:\n{done.stdout}\n{done.stderr}")
    stamp.write_text(digest)


def _digest_of_sources() -> str:
    digest = hashlib.sha256(sys.version.encode())
    fast = ROOT / "xinf" / "_fast"
    for source in [ROOT / "setup.py", *sorted(fast.glob("*.pyx")), *sorted(fast.glob("*.pxd"))]:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Variables for a Python that loads the build: the sanitizer first of all, and every object its own allocation."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    return os.environ | {
        "LD_PRELOAD": library,
        # The interpreter never frees much of what it has; leaks of ours are counted by the driver.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Bytes come from malloc one by one, so that a byte read behind the end of a body is seen.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }


def load() -> None:
    """Let `xinf._fast` be the sanitized extensions in this process. Raises: RuntimeError if they are not."""
    import xinf._fast

    if allocated_bytes() is None:
        raise RuntimeError("the address sanitizer is not loaded: LD_PRELOAD lacks libasan")
    xinf._fast.__path__.insert(0, str(FAST_DIR))
    for name in sorted(path.stem for path in (ROOT / "xinf" / "_fast").glob("*.pyx")):
        spec = importlib.util.find_spec(f"xinf._fast.{name}")
        if spec is None or spec.origin is None or Path(spec.origin).parent != FAST_DIR:
            raise RuntimeError(f"xinf._fast.{name} is not the sanitized one: {spec}")


@functools.cache
def _allocation_counter() -> Callable[[], int] | None:
    try:
        count = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
    except AttributeError:
        return None
    count.restype = ctypes.c_size_t
    return count


def allocated_bytes() -> int | None:
    """Bytes allocated in this process as the address sanitizer counts them, None without it."""
    count = _allocation_counter()
    return None if count is None else int(count())

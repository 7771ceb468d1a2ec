"""A short run of the fuzzer under the sanitizers, with a new seed each time; `make fuzz` is the long one."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fuzz.minimize import minimized

SECONDS = 8


@pytest.mark.timeout(700)  # the first run builds the sanitized extensions: half a minute, much longer on a busy machine
def test_nothing_is_found_in_a_short_run(checkout: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--seed", str(seed)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=690,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for target in ("scanner", "chain", "bind", "index", "ledger", "blocks", "wire"):
        assert f"  {target}: " in done.stdout, done.stdout  # each says how many cases it ran


def test_a_failing_case_is_minimized() -> None:
    def fails(case: Sequence[object]) -> bool:
        return b"a" in bytes(case) and b"z" in bytes(case)  # type: ignore[arg-type]

    assert minimized(b"123a456789" * 3 + b"z00", fails, 1000) == b"az"
    assert minimized([1, 2, 3, 4, 5], lambda case: 4 in case, 1000) == [4]
    assert len(minimized(bytes(100), lambda case: True, 3)) < 100

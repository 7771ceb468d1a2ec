"""What all tests share: where the checkout is, and a short directory for state with Unix sockets below it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.engine_fixtures"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory with a short name: Unix socket paths end at 108 bytes and pytest's tmp_path is long."""
    path = Path(tempfile.mkdtemp(prefix="xi", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)

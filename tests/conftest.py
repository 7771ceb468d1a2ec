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


# What shares one real engine runs in one process; these take longest, so they begin.
_ENGINE_GROUPS = {"e2e": 0, "vllm": 1}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Share the tests among processes (`-n`) by file, and by engine where there is one."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item.path)))
    items.sort(key=lambda item: _ENGINE_GROUPS.get(_group(item.path), len(_ENGINE_GROUPS)))


def _group(path: Path) -> str:
    if path.parent.name == "e2e":
        return "e2e"
    return "vllm" if path.name.startswith("test_vllm") else str(path.relative_to(ROOT))

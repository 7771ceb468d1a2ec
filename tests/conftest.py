"""What all tests share: where the checkout is, a short directory for state with Unix sockets below it, the cases.

Property tests try the same cases in every run, or new ones with HYPOTHESIS_PROFILE=explore: a new case that fails is to
be found by who looks for it, not by who changed something else.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from xinf.core.device import Vendor
from xinf.device import PROBES

pytest_plugins = ["tests.engine_fixtures", "tests.shares"]

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_WANTED = "wants a device of"  # property of a test: the vendor


def pytest_configure() -> None:
    """Let children hear an interrupt: a shell's background job (`make test &`) ignores it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a device of a vendor where the host shows none: a skipped test is not a passed one."""
    for item in items:
        for marker in item.iter_markers("device"):
            vendor = Vendor(marker.args[0])
            item.user_properties.append((_WANTED, str(vendor)))
            if not PROBES[vendor].is_present(Path("/")):
                item.add_marker(pytest.mark.skip(reason=f"live: none: this host shows no device of {vendor}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which vendors' devices were really there, if any test wanted one."""
    # From the reports: with pytest-xdist this process has no tests of its own.
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    properties = [one for report in reports for one in getattr(report, "user_properties", ())]
    wanted = sorted({vendor for name, vendor in properties if name == _WANTED})
    if not wanted:
        return
    present = [vendor for vendor in wanted if PROBES[Vendor(vendor)].is_present(Path("/"))]
    absent = [vendor for vendor in wanted if vendor not in present]
    missing = f" (not here: {', '.join(absent)})" if absent else ""
    terminalreporter.write_line(f"live: {', '.join(present) or 'none'}{missing}")

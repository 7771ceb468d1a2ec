"""How the suite is divided when it runs in several processes (`pytest -n 2`): a pytest plugin, idle otherwise.

A share is what one process runs in one go. By default that is a file, so that what a file has in common is made once.
Files that use the same costly thing (an engine of vLLM, a gateway on each front) are one share. Shares that take long
come first: the last one to begin decides how long a process waits for the other.
"""

from __future__ import annotations

from typing import Any

import pytest

# Longest first. A path belongs to the first share that has a beginning of it.
SHARES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # All that starts the real vLLM: each start takes a core for seconds, and engines that are shared are started once.
    (
        "vllm",
        (
            "tests/e2e/test_memory.py",
            "tests/e2e/test_openai_client.py",
            "tests/e2e/test_process_deaths.py",
            "tests/engine/test_vllm_adapter.py",
            "tests/engine/test_vllm_faults.py",
            "tests/engine/test_vllm_lora.py",
            "tests/engine/test_vllm_memory.py",
            "tests/engine/test_vllm_residency.py",
            "tests/engine/test_kv_event_publisher.py",
            "tests/registry/test_transformers.py",
        ),
    ),
    # Gateways with a fleet of connections each, for themselves.
    ("fronts-load", ("tests/gateway/fronts/test_load.py",)),
    ("fronts-processes", ("tests/gateway/fronts/test_processes.py",)),
    ("fronts-stopping", ("tests/gateway/fronts/test_stopping.py",)),
    ("fronts", ("tests/gateway/fronts/",)),
    ("up", ("tests/serve/test_up.py",)),
    ("supervisor", ("tests/serve/test_supervisor.py",)),
    ("crash", ("tests/meta/test_crash.py",)),
    ("fuzz", ("tests/fast/test_fuzz.py",)),
    ("wheel", ("tests/layout/test_wheel.py",)),
    ("terminals", ("tests/cli/test_terminals.py",)),
    ("environment", ("tests/agent/test_environment.py",)),
)


def share_of(nodeid: str) -> str:
    """Name the share of a test, by the path in its node id."""
    path = nodeid.partition("::")[0]
    for name, beginnings in SHARES:
        if path.startswith(beginnings):
            return name
    return path


def rank(nodeid: str) -> int:
    """Say how early a test's share is handed out; equal ranks keep the order in which they were collected."""
    share = share_of(nodeid)
    return next((n for n, (name, _) in enumerate(SHARES) if name == share), len(SHARES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long shares first in a process of several; a run in one process keeps the order of the files."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out shares whole. `--dist` of the command line has no say."""
    from xdist.scheduler import LoadScopeScheduling

    class ShareScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return share_of(nodeid)

    # By number of tests, xdist's own order, the vLLM engines would come last.
    config.option.loadscopereorder = False
    return ShareScheduling(config, log)

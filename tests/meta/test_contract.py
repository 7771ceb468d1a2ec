"""The contract suite, run against every way to reach a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meta.backends import Backend, LmdbBackend, ServedBackend
from tests.meta.contract_suite import StoreContract


class TestLmdb(StoreContract):
    @pytest.fixture
    def backend(self, short_dir: Path) -> Backend:
        return LmdbBackend(short_dir)


class TestClientOfLmdb(StoreContract):
    @pytest.fixture
    def backend(self, short_dir: Path) -> Backend:
        return ServedBackend(short_dir)

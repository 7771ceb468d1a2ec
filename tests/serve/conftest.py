"""A place of its own for each test with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.processes import Place, made_place


@pytest.fixture
def place() -> Iterator[Place]:
    yield from made_place()

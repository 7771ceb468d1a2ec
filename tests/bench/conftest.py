"""A misbehaving server, and records of made-up requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.bench.odd_server import OddServer
from xinf.bench.record import Record


@pytest.fixture
def server() -> Iterator[OddServer]:
    with OddServer() as made:
        yield made


@pytest.fixture
def record() -> Callable[..., Record]:
    """A request of intended time `at` that was answered after `took`, with `n` tokens 10 ms apart from 100 ms on."""

    def make(at: float = 0.0, took: float = 1.0, n: int = 5, **fields: Any) -> Record:
        given = {
            "number": 0,
            "session": 0,
            "intended_s": at,
            "dispatched_s": at,
            "sent_s": at,
            "first_token_s": at + 0.1,
            "last_token_s": at + 0.1 + 0.01 * (n - 1),
            "end_s": at + took,
            "status": 200,
            "n_events": n,
            "completion_tokens": n,
            "prompt_tokens": 100,
        }
        return Record(**(given | fields))

    return make

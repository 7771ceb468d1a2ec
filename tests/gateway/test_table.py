"""What the table tells the router of an engine that said hello; the rest of it is tested through a gateway."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xinf._pb import engine_service_pb2 as pb
from xinf.gateway.table import Table


class Told:
    """A router that keeps what it was told."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def set_replica(self, replica_id: str, **told: Any) -> None:
        self.last = told


@pytest.mark.parametrize(("residency", "expected"), [("exact", True), ("approx", False), ("off", False), ("", False)])
def test_chains_go_only_to_engines_that_say_exactly_what_they_hold(residency: str, expected: bool) -> None:
    router = Told()
    table = Table(None, router=router, keys=None, gateway="g", on_ready=print)  # type: ignore[arg-type]
    table._deployments.items["m"] = SimpleNamespace(policy="auto"), 1  # type: ignore[assignment]
    record = SimpleNamespace(id="r", deployment="m", block_tokens=16)
    place: Any = SimpleNamespace(record=record, link=SimpleNamespace(info=pb.EngineInfo(residency=residency)))
    table._tell_router(place, is_ready=True)
    assert router.last["wants_chain"] is expected
    place.link.info = None  # not connected yet
    table._tell_router(place, is_ready=False)
    assert router.last["wants_chain"] is False

"""Which replicas a request may not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from xinf.gateway.client import Admission, Head
from xinf.gateway.job import Job
from xinf.gateway.relay import Relay
from xinf.gateway.table import Form, Model


def job_for(*lacking: str) -> Job:
    head = Head("POST", "/v1/chat/completions", b"", {}, None)
    route: Any = SimpleNamespace(path=head.path)
    admission = Admission(
        head,
        route,
        key=None,
        length=0,
        max_body_bytes=1,
        begun_s=0.0,
        deadline_s=None,
        request_id="r",
        extra_headers=[],
    )
    model = Model(
        deployment="m",
        names=("tuned", "m"),
        form=Form(1, 0, 64),
        max_waiting=None,
        created_s=0.0,
        lacking=frozenset(lacking),
    )
    client: Any = SimpleNamespace()
    relay = Relay(client, buffer_bytes=1, extra_headers=[])
    path: Any = None
    return Job(path, admission, relay, model=model, asked="tuned", scanned=None, head=b"", body=b"", counters=None)  # type: ignore[arg-type]


def test_replicas_without_the_adapter_are_unfit_as_are_those_that_were_tried() -> None:
    job = job_for("r1")
    assert job.unfit() == {"r1"}
    job.excluded.add("r2")
    assert job.unfit() == {"r1", "r2"}
    assert job.excluded == {"r2"}


def test_a_request_that_not_every_replica_can_have_is_picky() -> None:
    assert job_for("r1").is_picky
    assert not job_for().is_picky
    tried = job_for()
    tried.excluded.add("r1")
    assert tried.is_picky
    assert tried.unfit() == {"r1"}

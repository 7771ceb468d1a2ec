"""The ring of recent decisions and the decision header, fed with jobs that a real router chose for."""

from __future__ import annotations

import random
import re
import time
from typing import Any, cast

import msgspec
import orjson
import psutil
import pytest

from tests.model.requests import random_request, write
from xinf._fast.scan import scan
from xinf.core.clock import SystemClock
from xinf.core.decision import Decision
from xinf.core.errors import EngineDied, EngineError, Overloaded
from xinf.core.records import RoutingPolicy
from xinf.gateway.client import Admission, Client, Head
from xinf.gateway.decision_header import NAME, with_decision
from xinf.gateway.decisions import MAX_CANDIDATES, Decisions
from xinf.gateway.job import Job, Path
from xinf.gateway.link import Ending
from xinf.gateway.metrics import ModelCounters
from xinf.gateway.relay import Outcome, Relay, Verdict
from xinf.gateway.routes import match
from xinf.gateway.table import Form, Model
from xinf.router import Router, RouterSettings

MODEL = Model(
    deployment="demo",
    names=("demo", "alias"),
    form=Form(seed=7, order=0, chunk_bytes=64),
    max_waiting=None,
    created_s=0.0,
)
SECRET = "xyzzy-secret"
DONE = Verdict(Outcome.DONE, ending=Ending(prompt_tokens=300, cached_tokens=256, completion_tokens=9))


def chat(text: str = "hello " * 100) -> bytes:
    return orjson.dumps({"model": "alias", "messages": [{"role": "user", "content": text}]})


def router_of(n: int = 2) -> Router:
    router = Router(RouterSettings(), clock=SystemClock(), turn=0)
    for i in range(n):
        router.set_replica(f"demo-{i}", model="demo", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    return router


def job_of(request_id: str = "req-0-aa-1", body: bytes = b"", **headers: str) -> Job:
    body = body or chat()
    raw = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    head = Head("POST", "/v1/chat/completions", b"", raw, "127.0.0.1")
    admission = Admission(
        head,
        match(head.method, head.path),
        key=None,
        length=len(body),
        max_body_bytes=1 << 20,
        begun_s=time.monotonic(),
        deadline_s=None,
        request_id=request_id,
        extra_headers=[],
    )
    relay = Relay(cast(Client, None), buffer_bytes=1, extra_headers=[])
    return Job(
        cast(Path, None),
        admission,
        relay,
        model=MODEL,
        asked="alias",
        scanned=scan(body),
        head=b"",
        body=body,
        counters=ModelCounters(),
    )


def run(decisions: Decisions, router: Router, job: Job, verdict: Verdict | None = None, status: int = 200) -> None:
    """What the hot path does with a job, as far as decisions go."""
    verdict = verdict or DONE
    if decisions.takes_sample():
        job.wants_candidates = True
    if job.wants_candidates:
        decisions.note_candidates(job, router.explain("demo", job.scanned, seed=7))
    job.chosen = router.choose("demo", job.scanned, seed=7)
    assert job.chosen is not None
    job.verdict = verdict
    ending = verdict.ending or Ending()
    router.finished(
        job.chosen,
        prompt_tokens=ending.prompt_tokens,
        cached_tokens=ending.cached_tokens,
        completion_tokens=ending.completion_tokens,
        is_ok=verdict.error is None,
    )
    decisions.keep(job, status, time.monotonic())


def only(found: list[Decision]) -> Decision:
    (decision,) = found
    return decision


def test_decision_says_what_was_believed_and_what_came_true() -> None:
    decisions, router = Decisions(8, sample_every=0), router_of()
    run(decisions, router, job_of("first"))
    job = job_of("second")
    job.relay.first_byte_s = job.admission.begun_s + 0.25
    run(decisions, router, job)
    decision = only(decisions.find("second"))
    assert (decision.asked, decision.deployment, decision.path) == ("alias", "demo", "/v1/chat/completions")
    assert (decision.outcome, decision.status, decision.error) == ("done", 200, None)
    assert decision.first_byte_s == pytest.approx(0.25)
    assert decision.at_s == pytest.approx(time.time(), abs=5)
    assert decision.usage is not None
    assert (decision.usage.prompt_tokens, decision.usage.cached_tokens, decision.usage.completion_tokens) == (
        300,
        256,
        9,
    )
    chosen, choice = decision.chosen, job.chosen
    assert chosen is not None
    assert choice is not None
    assert (chosen.reason, chosen.index_state) == ("prefix", "approx")
    assert chosen.matched_bytes == choice.matched_bytes > 600
    assert chosen.predicted_cached_tokens == choice.predicted_cached_tokens > 0
    assert chosen.cost.total_s == pytest.approx(choice.queued_s + choice.prefill_s + choice.decode_s + choice.full_s)
    assert decision.candidates is None


def test_ring_is_bounded_and_forgets_the_oldest() -> None:
    decisions, router = Decisions(5, sample_every=0), router_of()
    assert decisions.reach().oldest_s is None
    for i in range(13):
        run(decisions, router, job_of(f"r{i}"))
        assert decisions.reach().n_kept == min(i + 1, 5)
    assert [decision.request_id for decision in decisions.last(100)] == ["r12", "r11", "r10", "r9", "r8"]
    assert [decision.request_id for decision in decisions.last(2)] == ["r12", "r11"]
    assert decisions.find("r7") == []
    oldest_s = decisions.reach().oldest_s
    assert oldest_s is not None
    assert oldest_s == pytest.approx(only(decisions.find("r8")).at_s, abs=1e-3)


def test_kept_requests_take_little_memory() -> None:
    """Bodies, scans and marks go; 20,000 requests of 64 KB each would be 1.3 GB."""
    decisions, router = Decisions(20_000, sample_every=64), router_of()
    body = chat("m" * 65_536)
    run(decisions, router, job_of("warm", body))
    before = psutil.Process().memory_info().rss
    for i in range(20_000):
        run(decisions, router, job_of(f"req-0-abcdef-{i}", bytes(bytearray(body))))
    per_request = (psutil.Process().memory_info().rss - before) / 20_000
    assert decisions.reach().n_kept == 20_000
    assert per_request < 800


def test_size_zero_keeps_nothing_and_samples_nothing() -> None:
    decisions, router = Decisions(0, sample_every=1), router_of()
    assert not any(decisions.takes_sample() for _ in range(10))
    run(decisions, router, job_of())
    assert decisions.last(10) == []
    assert decisions.reach().size == 0


def test_one_in_so_many_keeps_its_candidates() -> None:
    decisions, router = Decisions(100, sample_every=10), router_of(3)
    for i in range(100):
        run(decisions, router, job_of(f"r{i}"))
    kept = [decision for decision in decisions.last(100) if decision.candidates is not None]
    assert len(kept) == 10
    for decision in kept:
        assert decision.candidates is not None
        assert decision.n_candidates == len(decision.candidates) == 3
        assert decision.chosen is not None
        # The one that was picked before the choice is the one that was chosen, at the same cost.
        (picked,) = [one for one in decision.candidates if one.picked is not None]
        assert (picked.replica, picked.picked, picked.cost) == (
            decision.chosen.replica,
            decision.chosen.reason,
            decision.chosen.cost,
        )


def test_large_fleet_is_sampled_rarely_and_its_cheapest_are_kept() -> None:
    decisions, router = Decisions(1000, sample_every=10), router_of(64)
    for i in range(400):
        run(decisions, router, job_of(f"r{i}"))
    kept = [decision for decision in decisions.last(1000) if decision.candidates is not None]
    assert len(kept) == 5  # one in 10 at first, then in 10 x 64 / 8
    for decision in kept:
        assert decision.candidates is not None
        assert (len(decision.candidates), decision.n_candidates) == (MAX_CANDIDATES, 64)
        assert decision.chosen is not None
        assert decision.chosen.replica in {one.replica for one in decision.candidates if one.picked}


def test_request_that_asks_keeps_its_candidates() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of()
    run(decisions, router, job_of("asks", x_xinf_decision="1"))
    assert only(decisions.find("asks")).n_candidates == 2


def test_replica_without_the_adapter_is_told_from_one_that_was_tried() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of(3)
    job = job_of("adapter")
    job.model = msgspec.structs.replace(MODEL, lacking=frozenset({"demo-0"}))
    job.excluded = {"demo-1"}
    decisions.note_candidates(job, router.explain("demo", job.scanned, seed=7, exclude=job.unfit()))
    decisions.keep(job, 429, time.monotonic())
    candidates = only(decisions.find("adapter")).candidates
    assert candidates is not None
    assert {one.replica: one.closed for one in candidates} == {
        "demo-0": "no_adapter",
        "demo-1": "tried",
        "demo-2": None,
    }


def test_refusals_and_errors_are_kept_by_their_code() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of()
    refused = job_of("refused")
    refused.refusal = Overloaded("full", retry_after_s=1).code
    decisions.keep(refused, 429, time.monotonic())
    decision = only(decisions.find("refused"))
    assert (decision.outcome, decision.status, decision.error, decision.chosen) == ("failed", 429, "no_capacity", None)
    cut = Verdict(Outcome.DONE, EngineError(SECRET), ending=Ending(9, 0, 1, "engine_error", SECRET))
    run(decisions, router, job_of("cut"), cut)
    decision = only(decisions.find("cut"))
    assert (decision.outcome, decision.error, decision.usage) == ("done", "engine_error", None)


def test_earlier_attempts_are_told_with_why_they_failed() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of()
    job = job_of("moved")
    first = router.choose("demo", job.scanned, seed=7)
    assert first is not None
    job.earlier = [(first, EngineDied("gone").code)]
    run(decisions, router, job)
    (attempt,) = only(decisions.find("moved")).earlier
    assert (attempt.replica, attempt.error) == (first.replica_id, "engine_died")


def test_open_request_is_found_before_it_ends() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of()
    job = job_of("now")
    job.chosen = router.choose("demo", job.scanned, seed=7)
    decision = only(decisions.find("now", [job, job_of("other")]))
    assert (decision.outcome, decision.status, decision.usage) == ("open", None, None)
    assert decision.chosen is not None


def test_id_that_was_used_again_is_found_each_time() -> None:
    decisions, router = Decisions(10, sample_every=0), router_of()
    for status in (200, 400):
        run(decisions, router, job_of("same"), status=status)
    assert [decision.status for decision in decisions.find("same")] == [400, 200]


def test_kept_numbers_do_not_change_with_the_next_request() -> None:
    """Entries of a full ring are written anew; what was told of them stays."""
    decisions, router = Decisions(1, sample_every=0), router_of()
    run(decisions, router, job_of("a"))
    told = only(decisions.find("a"))
    copy = msgspec.json.encode(told)
    run(decisions, router, job_of("b"), Verdict(Outcome.GONE), status=499)
    assert msgspec.json.encode(told) == copy
    decision = only(decisions.find("b"))
    assert (decision.outcome, decision.usage, decision.first_byte_s) == ("gone", None, None)


@pytest.mark.parametrize("seed", range(60))
def test_no_text_of_a_request_is_told(seed: int) -> None:
    """Whatever the body holds: neither the ring's answers nor the header have any of its strings."""
    rng = random.Random(seed)
    decisions, router = Decisions(10, sample_every=1), router_of()
    marks: list[str] = []
    body = write(marked(random_request(rng), marks), rng)
    assert marks
    job = job_of("req-0-aa-9", body, x_xinf_decision="1", x_session_id=SECRET, authorization=SECRET)
    run(decisions, router, job)
    told = msgspec.json.encode(decisions.last(10)) + msgspec.json.encode(decisions.reach())
    assert job.chosen is not None
    ((_, header),) = with_decision([], job.chosen, job.candidates, n_retries=0)
    assert SECRET.encode() not in told
    assert SECRET.encode() not in header


def marked(value: Any, marks: list[str]) -> Any:
    """The same request with a mark in every text of it; the model stays, for it is told."""
    if isinstance(value, str):
        marks.append(value)
        return value + SECRET
    if isinstance(value, list):
        return [marked(item, marks) for item in value]
    if isinstance(value, dict):
        kept = ("model", "role", "type")
        return {key: item if key in kept else marked(item, marks) for key, item in value.items()}
    return value


def test_header_is_a_safe_line_of_bounded_length() -> None:
    router = Router(RouterSettings(), turn=0)
    for name in ("a;b=c\r\nevil: 1", "ü€" * 300):
        router.set_replica(name, model="demo", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    body = scan(chat())
    views = router.explain("demo", body, seed=7)
    choice = router.choose("demo", body, seed=7)
    assert choice is not None
    old = (NAME, b"replica=before")
    headers = with_decision([(b"x-request-id", b"1"), old], choice, views, n_retries=2)
    assert [name for name, _ in headers] == [b"x-request-id", NAME]
    text = headers[1][1].decode("ascii")
    assert re.fullmatch(r"[\x21-\x7e]+", text)
    assert len(text) < 700
    keys = [pair.partition("=")[0] for pair in text.split(";")]
    assert keys == [
        "replica", "reason", "state", "matched_bytes", "matched_tokens", "predicted_cached_tokens", "cost_ms",
        "queued_ms", "prefill_ms", "decode_ms", "full_ms", "runner_up", "runner_up_cost_ms", "retries",
    ]  # fmt: skip
    assert text.endswith(";retries=2")


def test_header_names_no_runner_up_that_could_not_have_taken_it() -> None:
    router = router_of(2)
    router.set_replica("demo-1", model="demo", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=False)
    body = scan(chat())
    views = router.explain("demo", body, seed=7)
    choice = router.choose("demo", body, seed=7)
    assert choice is not None
    assert b"runner_up" not in with_decision([], choice, views, n_retries=0)[0][1]
    assert b"runner_up" not in with_decision([], choice, None, n_retries=0)[0][1]

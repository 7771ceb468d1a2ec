"""What `xinf why` and `xinf route` print of a gateway's answers, and how they fail; a stub answers with real structs.

The gateway's side is proved in tests/gateway/test_admin.py, both together in test_explained.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from typer.testing import Result

from xinf._fast.scan import scan
from xinf.cli.caches import Caches, Followed
from xinf.cli.candidates import milliseconds, runner_up_line
from xinf.cli.dry_run import tail_of
from xinf.cli.why import account, cache_lines
from xinf.core.decision import Attempt, Candidate, Chosen, Cost, Decision, DryRun, Found, Reach, Usage

KEY = "adm-xinf-1"


def cost(prefill_s: float = 0.0, **terms: float) -> Cost:
    return Cost(**{"queued_s": 0.0, "decode_s": 0.0, "full_s": 0.0, **terms, "prefill_s": prefill_s})


def candidate(replica: str, prefill_s: float, **changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "replica": replica,
        "index_state": "approx",
        "picked": None,
        "closed": None,
        "inflight": 0,
        "matched_bytes": 0,
        "matched_tokens": 0,
        "predicted_cached_tokens": 0,
        "prompt_tokens": 600,
        "cost": cost(prefill_s),
    }
    return Candidate(**{**values, **changes})


CANDIDATES = (
    candidate("demo-a", 0.007, picked="prefix", matched_bytes=2170, matched_tokens=558, predicted_cached_tokens=544),
    candidate("demo-b", 0.075),
    candidate("demo-c", 0.001, closed="full"),
)
DECISION = Decision(
    request_id="req-1-ecca0c-2",
    worker=1,
    at_s=1000.0,
    path="/v1/chat/completions",
    asked="alias",
    deployment="demo",
    outcome="done",
    status=200,
    error=None,
    waited_s=0.00018,
    first_byte_s=0.0363,
    duration_s=1.25,
    earlier=(Attempt(replica="demo-z", reason="load", error="engine_died"),),
    chosen=Chosen(
        replica="demo-a",
        reason="prefix",
        index_state="approx",
        matched_bytes=2170,
        matched_tokens=558,
        predicted_cached_tokens=544,
        prompt_tokens=601,
        queued_tokens=57,
        cost=cost(0.007, queued_s=0.002),
    ),
    usage=Usage(prompt_tokens=600, cached_tokens=592, completion_tokens=8),
    candidates=CANDIDATES,
    n_candidates=3,
)
REACH = (Reach(worker=1, size=4096, n_kept=1, oldest_s=1000.0),)


class Gateway:
    """Answers every path with what it was given, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 200
        self.answer: Any = Found(decisions=(DECISION,), reach=REACH)
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                gateway.asked.append((self.command, self.path, headers, self.rfile.read(length)))
                body = msgspec.json.encode(gateway.answer)
                self.send_response(gateway.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


@pytest.fixture
def ask(xinf: Callable[..., Result], gateway: Gateway) -> Callable[..., Result]:
    """Type a command at the stub."""
    return lambda *args, **options: xinf(*args, "--url", gateway.url, "--admin-key", KEY, **options)


def test_why_tells_the_whole_account(ask: Callable[..., Result], gateway: Gateway) -> None:
    done = ask("why", "req-1-ecca0c-2")
    assert done.exit_code == 0, done.output
    (method, path, headers, _), (_, other_path, other_headers, _) = gateway.asked
    assert (method, path, headers["authorization"]) == ("GET", "/admin/decisions/req-1-ecca0c-2", f"Bearer {KEY}")
    assert (other_path, "authorization" in other_headers) == ("/metrics", False)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("req-1-ecca0c-2  POST /v1/chat/completions  ")
    assert lines[1:10] == [
        "  model      alias, served by demo",
        "  before     demo-z (load) ended with engine_died; moved on",
        "  replica    demo-a, chosen after 0.18 ms",
        "  because    the cheapest, with part of the prompt in its cache (prefix)",
        "  predicted  544 of 601 prompt tokens cached (2170 bytes of text matched, 558 tokens, view approx)",
        "  cost       9.00 ms = queued 2.00 ms + prefill 7.00 ms",
        "  queue      57 tokens of prefill there",
        "  came true  592 of 600 prompt tokens cached, 48 more than predicted; 8 tokens generated",
        "  outcome    done 200, first byte after 36.3 ms, 1.250 s in all",
    ]
    assert [line.split()[0] for line in lines[11:]] == ["REPLICA", "demo-a", "demo-b", "demo-c", "demo-b"]
    assert lines[12].endswith("picked (prefix)")
    assert lines[13].endswith("runner-up")
    assert lines[14].endswith("at its limit")
    assert lines[15] == "demo-b comes second, 68.0 ms behind"


def test_why_says_how_the_cache_is_known_by_now() -> None:
    caches = Caches({"demo-a": {"exact": 2}}, {"demo-a": Followed(n_losses=1, lag_mean_s=0.003, lag_max_s=0.02)})
    assert cache_lines(DECISION, caches) == ["  cache now  exact; events 3 ms old on average, 20 at most; lost once"]
    assert cache_lines(DECISION, Caches({"demo-b": {"exact": 2}}, {})) == []
    assert cache_lines(msgspec.structs.replace(DECISION, chosen=None), caches) == []


def test_why_says_that_candidates_were_not_kept(ask: Callable[..., Result], gateway: Gateway) -> None:
    lone = msgspec.structs.replace(DECISION, candidates=None, n_candidates=0)
    gateway.answer = Found(decisions=(lone, DECISION), reach=REACH)
    done = ask("why", "x")
    assert "the other replicas were not kept" in done.stdout
    assert "1 earlier with the same id" in done.stdout


def test_why_of_what_got_no_replica() -> None:
    refused = msgspec.structs.replace(
        DECISION,
        chosen=None,
        usage=None,
        status=429,
        outcome="failed",
        error="no_capacity",
        first_byte_s=None,
        earlier=(),
    )
    assert account(refused, 1001.0)[2:] == [
        "  replica    none could take it",
        "  outcome    failed 429 (no_capacity), 1.250 s in all",
    ]


def test_why_without_an_id_lists_the_last(ask: Callable[..., Result], gateway: Gateway) -> None:
    done = ask("why", "-n", "3")
    assert gateway.asked[0][1] == "/admin/decisions?last=3"
    header, row = done.stdout.splitlines()
    assert header.split()[:3] == ["REQUEST", "AGE", "MODEL"]
    assert row.split()[-10:] == ["demo-a", "prefix", "592", "544", "600", "36.3", "ms", "1.250", "s", "200"]
    gateway.answer = Found(decisions=(), reach=REACH)
    assert ask("why").stdout == "no request has ended yet\n"
    gateway.answer = Found(decisions=(), reach=(msgspec.structs.replace(REACH[0], size=0),))
    assert ask("why").stdout == "gateway.recent_decisions is 0\n"


def test_why_as_json_is_the_gateways_answer(ask: Callable[..., Result]) -> None:
    told = json.loads(ask("why", "x", "--json").stdout)
    assert msgspec.convert(told, type=Found) == Found(decisions=(DECISION,), reach=REACH)


def test_why_quotes_the_id(ask: Callable[..., Result], gateway: Gateway) -> None:
    ask("why", "a/b?c=d e")
    assert gateway.asked[0][1] == "/admin/decisions/a%2Fb%3Fc%3Dd%20e"


def test_errors_of_the_gateway_are_told_in_its_words(ask: Callable[..., Result], gateway: Gateway) -> None:
    gateway.status = 404
    gateway.answer = {"error": {"message": "no decision for 'x' is kept; the last 50", "code": "not_found"}}
    done = ask("why", "x")
    assert done.exit_code == 1
    assert "error: no decision for 'x' is kept; the last 50" in done.output
    gateway.answer = ["nonsense"]
    assert "the gateway answered 404" in ask("why", "x").output


def test_key_of_the_installation_goes_to_no_other_gateway(
    xinf: Callable[..., Result], gateway: Gateway, short_dir: Path
) -> None:
    from xinf.core.paths import Paths

    paths = Paths(short_dir / "data")
    paths.make_runtime_dir()
    paths.admin_key_file.write_text(KEY)
    done = xinf("why", "--url", gateway.url)
    assert done.exit_code == 1
    assert "need its admin key" in done.output
    assert gateway.asked == []


def test_gateway_that_is_away_is_said(xinf: Callable[..., Result]) -> None:
    done = xinf("why", "--url", "http://127.0.0.1:1", "--admin-key", KEY)
    assert done.exit_code == 1
    assert "gave no answer" in done.output


BODY = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "You are careful. " * 20},
        {"role": "user", "content": "Wo ist mein Päckchen? Und\nwarum?"},
    ],
}


def dry_run(candidates: tuple[Candidate, ...]) -> DryRun:
    return DryRun(
        worker=0,
        asked="demo",
        deployment="demo",
        policy="auto",
        order=0,
        chunk_bytes=64,
        text_bytes=400,
        prompt_tokens=100,
        candidates=candidates,
    )


def test_route_shows_the_candidates_and_the_file_s_own_text(
    ask: Callable[..., Result], gateway: Gateway, tmp_path: Path
) -> None:
    end = len("system") + 17 * 20 + len("user") + len("Wo ist mein P")
    gateway.answer = dry_run((candidate("demo-a", 0.001, picked="prefix", matched_bytes=end), candidate("demo-b", 0.1)))
    file = tmp_path / "request.json"
    file.write_bytes(orjson.dumps(BODY, option=orjson.OPT_INDENT_2))
    done = ask("route", "--explain", str(file), "--model", "other", "--session", "anna")
    assert done.exit_code == 0, done.output
    ((method, path, headers, body),) = gateway.asked
    assert (method, path, body) == ("POST", "/admin/route", file.read_bytes())
    assert (headers["x-xinf-model"], headers["x-session-id"]) == ("other", "anna")
    assert done.stdout.splitlines()[:2] == [
        "model demo, policy auto, as gateway process 0 sees it now",
        "prompt of 400 bytes in chunks of 64, about 100 tokens",
    ]
    assert "demo-b comes second, 99.0 ms behind" in done.stdout
    assert done.stdout.splitlines()[-1] == f"  {end} bytes (demo-a): …ul. You are careful. <user>Wo ist mein P|"


def test_route_reads_standard_input_and_prints_json(ask: Callable[..., Result], gateway: Gateway) -> None:
    gateway.answer = dry_run(CANDIDATES)
    done = ask("route", "--explain", "-", "--json", input=b'{"prompt": "x"}')
    assert gateway.asked[0][3] == b'{"prompt": "x"}'
    assert msgspec.convert(json.loads(done.stdout), type=DryRun) == dry_run(CANDIDATES)


def test_route_without_a_file_or_replicas(ask: Callable[..., Result], gateway: Gateway, tmp_path: Path) -> None:
    assert "cannot be read" in ask("route", "--explain", str(tmp_path / "none")).output
    gateway.answer = dry_run(())
    done = ask("route", "--explain", "-", input=b"{}")
    assert "no replica of it is known" in done.stdout


@pytest.mark.parametrize("end", range(1, 400))
def test_tail_ends_where_the_match_ends(end: int) -> None:
    """Whatever the byte, also inside a character or header; long tails are cut, control characters shown."""
    pieces = scan(orjson.dumps(BODY)).canonical()
    total = sum(len(data) for _, data in pieces)
    tail = tail_of(pieces, min(end, total))
    assert tail.endswith("|")
    assert tail.isprintable()
    assert len(tail) <= 40 + 3
    joined = b"".join(data for kind, data in pieces if kind != "role")
    text = tail.strip("…|").rpartition(">")[2].partition("<")[0].replace("\\n", "\n")
    assert text.encode() in joined


def test_tail_of_token_ids_and_payloads() -> None:
    pieces = scan(b'{"prompt": [1, 2, 777]}').canonical()
    assert tail_of(pieces, 8) == " 1 2|"
    part = {"type": "image_url", "image_url": {"url": "data:x"}}
    pieces = scan(orjson.dumps({"messages": [{"role": "user", "content": [part]}]})).canonical()
    assert tail_of(pieces, 10**6) == "<user><payload><payload><assistant>|"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0, "0.00 ms"), (0.00012, "0.12 ms"), (0.0345, "34.5 ms"), (1.25, "1.250 s")]
)
def test_milliseconds(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


def test_runner_up_line_says_ties_and_policies() -> None:
    first = candidate("a", 0.5, picked="session")
    assert runner_up_line((first,)) is None
    assert "exactly the same" in str(runner_up_line((first, candidate("b", 0.5))))
    assert runner_up_line((candidate("b", 0.1), first)) == "b would cost 400.0 ms less; the policy goes by session"

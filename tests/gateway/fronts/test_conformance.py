"""What a well-behaved HTTP/1.1 client may expect, of every front."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import DEADLINE_S, GatewayStack
from tests.gateway.raw_http import AnswerReader, RawResponse, chat, post
from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc

pytestmark = pytest.mark.usefixtures("unharmed")

CHAT = "/v1/chat/completions"


def exchange(stack: GatewayStack, request: bytes) -> RawResponse:
    raw = stack.connect()
    raw.sendall(request)
    answer = AnswerReader(raw).answer()
    raw.close()
    return answer


def without_time(body: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b'"created":0', body)


def told_by_engine(stack: GatewayStack, body: bytes, request_id: str) -> bytes:
    """What the engine itself answers, without any gateway."""
    submit = pb.Submit(method="POST", path=CHAT, body=body, request_id=request_id)
    with grpc.insecure_channel(stack.engines["m-0"].record.address or "") as channel:
        events = pb_grpc.EngineServiceStub(channel).Generate(submit, timeout=DEADLINE_S)
        return b"".join(event.chunk for event in events)


@pytest.mark.parametrize("is_stream", [False, True])
def test_answer_is_byte_for_byte_the_engines(stack: GatewayStack, is_stream: bool) -> None:
    body = chat("m", max_tokens=40, stream=is_stream, stream_options={"include_usage": True})
    answer = exchange(stack, post(CHAT, body, "x-request-id: same"))
    assert answer.status == 200
    assert without_time(answer.body) == without_time(told_by_engine(stack, body, "same"))


def test_whole_answer_has_a_length_and_its_headers(stack: GatewayStack) -> None:
    answer = exchange(stack, post(CHAT, chat("m", max_tokens=3), "x-request-id: mine"))
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine"


def test_stream_is_chunked_and_its_events_come_as_they_are_made(stack: GatewayStack) -> None:
    answer = exchange(stack, post(CHAT, chat("m", max_tokens=30, stream=True)))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert len(answer.chunks) > 10  # 30 steps of 5 ms: not gathered into one
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_many_small_events_arrive_whole_and_in_order(stack: GatewayStack, scripted: ScriptedReplica) -> None:
    body = chat("scripted", messages=[{"role": "user", "content": "events 500"}], stream=True)
    answer = exchange(stack, post(CHAT, body))
    assert answer.body == b"".join(b'data: {"n":%d}\n\n' % n for n in range(500)) + b"data: [DONE]\n\n"


def test_body_reaches_the_engine_as_it_was_sent(stack: GatewayStack, scripted: ScriptedReplica) -> None:
    body = b' { "model" : "scripted", "messages":[{"role":"user","content":"mirror"}],"x":"\xc3\xa9\\u00e9","y":1e2 }\n'
    assert exchange(stack, post(CHAT, body)).body == body


def test_connection_is_kept_over_answers_streams_pages_and_refusals(stack: GatewayStack) -> None:
    requests = [
        (post(CHAT, chat("m", max_tokens=2)), 200),
        (post(CHAT, chat("m", max_tokens=2, stream=True)), 200),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (post(CHAT, b"{"), 400),
        (post(CHAT, chat("unknown")), 404),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    ]
    raw = stack.connect()
    reader = AnswerReader(raw)
    for request, status in requests * 3:
        raw.sendall(request)
        answer = reader.answer()
        assert (answer.status, answer.headers.get("connection", "keep-alive")) == (status, "keep-alive")
    raw.close()


@pytest.mark.parametrize("is_stream", [False, True])
def test_connection_is_closed_when_asked(stack: GatewayStack, is_stream: bool) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, chat("m", max_tokens=2, stream=is_stream), "connection: close"))
    reader = AnswerReader(raw)
    assert reader.answer().status == 200
    assert reader.is_closed()


@pytest.mark.parametrize("is_stream", [False, True])
def test_http_1_0_client_gets_no_chunks(stack: GatewayStack, is_stream: bool) -> None:
    raw = stack.connect()
    request = post(CHAT, chat("m", max_tokens=2, stream=is_stream), "x-request-id: old").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    )
    raw.sendall(request)
    answer = AnswerReader(raw).answer()
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n" if is_stream else b"}")


def test_pipelined_requests_are_answered_in_order(stack: GatewayStack) -> None:
    raw = stack.connect()
    # The first takes longest; pages, refusals and streams come in between.
    parts = [
        post(CHAT, chat("m", max_tokens=30, stream=True), "x-request-id: r0"),
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-request-id: r1\r\n\r\n",
        post(CHAT, chat("m", max_tokens=1), "x-request-id: r2"),
        post(CHAT, b"{", "x-request-id: r3"),
        post(CHAT, chat("m", max_tokens=3, stream=True), "x-request-id: r4"),
    ]
    raw.sendall(b"".join(parts))
    reader = AnswerReader(raw)
    answers = [reader.answer() for _ in parts]
    raw.close()
    assert [answer.headers["x-request-id"] for answer in answers] == ["r0", "r1", "r2", "r3", "r4"]
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 200]
    assert answers[0].body.endswith(b"data: [DONE]\n\n")


def test_many_pipelined_requests_are_all_answered(stack: GatewayStack) -> None:
    raw = stack.connect()
    n = 200
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(raw.sendall, post(CHAT, chat("m", max_tokens=1)) * n)
        reader = AnswerReader(raw)
        assert [reader.answer().status for _ in range(n)] == [200] * n
        sent.result(DEADLINE_S)
    raw.close()


def test_request_in_the_smallest_pieces_is_read(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.setsockopt(6, 1, 1)  # TCP_NODELAY: each byte in a segment of its own
    for byte in post(CHAT, chat("m", max_tokens=1)):
        raw.sendall(bytes([byte]))
    assert AnswerReader(raw).answer().status == 200
    raw.close()


# ---- pages and routes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /healthz", 200),
        ("GET /healthz?x=1", 200),
        ("GET /readyz/m", 200),
        ("GET /v1/models", 200),
        ("GET /v1/models/m", 200),
        ("GET /metrics", 200),
        ("GET /", 404),
        ("GET /v1/chat/completions", 404),
        ("DELETE /v1/models/m", 404),
        ("PUT /v1/chat/completions", 404),
        ("PATCH /v1/chat/completions", 404),
        ("POST /healthz", 404),
        ("POST /sleep", 403),
        ("GET http://x/healthz", 200),  # a target in absolute form
        ("GET //healthz", 404),
        ("GET /%68ealthz", 200),
    ],
)
def test_page_or_refusal(stack: GatewayStack, line: str, status: int) -> None:
    raw = stack.connect()
    reader = AnswerReader(raw)
    for _ in range(2):  # and the connection is good afterwards
        raw.sendall(f"{line} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        answer = reader.answer()
        assert answer.status == status
        assert answer.headers["x-request-id"]
    raw.close()


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/readyz/m", 200), ("/nothing", 404)])
def test_head_has_the_status_and_no_body(stack: GatewayStack, path: str, status: int) -> None:
    raw = stack.connect()
    raw.sendall(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    reader = AnswerReader(raw)
    assert reader.answer(is_head=True).status == status
    assert reader.answer().json == {"status": "ok"}
    raw.close()


def test_path_is_percent_decoded(stack: GatewayStack) -> None:
    assert exchange(stack, post("/models/%6d/v1/chat/completions?a=%C3%A9", chat("m", max_tokens=1))).status == 200


def test_cors_preflight_and_answer(stack: GatewayStack) -> None:
    asked = "origin: https://app.example\r\naccess-control-request-method: POST\r\n"
    preflight = exchange(stack, f"OPTIONS {CHAT} HTTP/1.1\r\nhost: x\r\n{asked}\r\n".encode())
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for body, status in ((chat("m", max_tokens=1), 200), (chat("m", max_tokens=1, stream=True), 200), (b"{", 400)):
        answer = exchange(stack, post(CHAT, body, "origin: https://app.example"))
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://app.example")
        stranger = exchange(stack, post(CHAT, body, "origin: https://evil.example"))
        assert (stranger.status, stranger.headers.get("access-control-allow-origin")) == (status, None)


# ---- bodies ------------------------------------------------------------------------------------------------------


def chunked(body: bytes, *headers: str, size: int = 1, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "host: x", "transfer-encoding: chunked", *headers]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    parts = [b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_chunked_body_is_read(stack: GatewayStack, scripted: ScriptedReplica, size: int) -> None:
    body = chat("scripted", messages=[{"role": "user", "content": "mirror"}], filler="x" * (size * 2))
    raw = stack.connect()
    reader = AnswerReader(raw)
    for _ in range(2):
        raw.sendall(chunked(body, size=size))
        assert reader.answer().body == body
    raw.close()


def test_chunk_extensions_and_trailers_are_skipped(stack: GatewayStack) -> None:
    request = chunked(chat("m", max_tokens=1), size=10, extension=b";a=b", trailer=b"x-sum: 1\r\n")
    raw = stack.connect()
    raw.sendall(request + post(CHAT, chat("m", max_tokens=1)))
    reader = AnswerReader(raw)
    assert [reader.answer().status for _ in range(2)] == [200, 200]
    raw.close()


@pytest.mark.parametrize("n_bytes", [60_000, 140_000, 1_000_000])
def test_long_body_arrives_whole(stack: GatewayStack, scripted: ScriptedReplica, n_bytes: int) -> None:
    body = chat("scripted", messages=[{"role": "user", "content": "mirror"}], filler="x" * n_bytes)
    answer = exchange(stack, post(CHAT, body))
    assert answer.body == body


def test_body_of_the_greatest_length_is_read_and_one_byte_more_is_not(stack: GatewayStack) -> None:
    limit = stack.config.gateway.max_body_bytes
    body = chat("m", max_tokens=1)
    assert exchange(stack, post(CHAT, body + b" " * (limit - len(body)))).status == 200
    assert exchange(stack, post(CHAT, b"", length=limit + 1)).status == 413


def test_expect_is_answered_before_the_body_is_sent(stack: GatewayStack) -> None:
    body = chat("m", max_tokens=1)
    raw = stack.connect()
    raw.sendall(post(CHAT, b"", "expect: 100-continue", length=len(body)))
    reader = AnswerReader(raw)
    assert reader.interim().status == 100
    raw.sendall(body)
    assert reader.answer().status == 200
    raw.close()


def test_expect_with_too_long_a_body_is_refused_instead(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, b"", "expect: 100-continue", length=64 << 20))
    assert AnswerReader(raw).interim().status == 413
    raw.close()


def test_header_names_have_no_case_and_values_no_margin(stack: GatewayStack) -> None:
    body = chat("m", max_tokens=1)
    request = (
        f"POST {CHAT} HTTP/1.1\r\nHOST: x\r\nCONTENT-LENGTH:\t {len(body)} \r\nX-Request-ID:   upper  \r\n\r\n"
    ).encode() + body
    answer = exchange(stack, request)
    assert (answer.status, answer.headers["x-request-id"]) == (200, "upper")


def test_concurrent_connections_get_their_own_answers(stack: GatewayStack, scripted: ScriptedReplica) -> None:
    def one(number: int) -> bool:
        body = chat("scripted", messages=[{"role": "user", "content": "mirror"}], number=number)
        raw = stack.connect()
        reader = AnswerReader(raw)
        for _ in range(20):
            raw.sendall(post(CHAT, body, f"x-request-id: c{number}"))
            answer = reader.answer()
            assert (answer.body, answer.headers["x-request-id"]) == (body, f"c{number}")
        raw.close()
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(16)))

"""Answers that a server refuses to send: the delivery raises, is logged, and hurts no other request of its Link."""

from __future__ import annotations

import pytest

from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import AnswerReader, post, read_all, scripted_chat

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("header", ["x-bad: a\r\nx-injected: 1", "x-bad: a\x00b", "x bad: y", ": y"])
def test_headers_that_cannot_be_sent_hurt_nobody_else(
    stack: GatewayStack, scripted: ScriptedReplica, header: str
) -> None:
    workers = {process.pid for process in stack.workers()}
    n_before = scripted.n_open
    others = [stack.connect() for _ in range(4)]
    for raw in others:
        raw.sendall(post(CHAT, scripted_chat("open")))
    wait_for(lambda: scripted.n_open == n_before + 4, what="the other streams")
    n_links = len(scripted.hellos)

    raw = stack.connect()
    raw.sendall(post(CHAT, scripted_chat(f"start {header}"), "connection: close"))
    answer = read_all(raw)  # which ends: the client is not left waiting
    raw.close()
    assert b"x-injected" not in answer
    assert answer == b"" or answer.split(b" ")[1] in (b"200", b"500", b"502")

    scripted.end_open()
    for raw in others:
        assert AnswerReader(raw).answer().body.endswith(b"data: [DONE]\n\n")
        raw.close()
    assert len(scripted.hellos) == n_links  # the Link did not go down
    assert {process.pid for process in stack.workers()} == workers
    wait_for(lambda: stack.metric("xinf_requests_in_flight", model="scripted") == 0, what="nothing in flight")

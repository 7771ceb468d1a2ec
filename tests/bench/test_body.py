"""Bodies: what of the settings, the session and the answers ends up in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xinf.bench.body import BodyWriter
from xinf.bench.target import Endpoint
from xinf.bench.workload import Session, Turn
from xinf.core.errors import InvalidRequest

TALK = Session(name="s-1", turns=(Turn(prompt="one", max_tokens=5), Turn(prompt="two", max_tokens=6)))


def write(
    endpoint: Endpoint, session: Session = TALK, turn: int = 0, answers: tuple[str, ...] = (), **wish: Any
) -> Any:
    settings = {"is_stream": True, "ignore_eos": False, "extra_body": None} | wish
    return json.loads(BodyWriter(endpoint, "m", **settings).write(session, turn, answers))


def test_chat_carries_the_conversation_so_far() -> None:
    assert write(Endpoint.CHAT, turn=1, answers=("1!",)) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 6,
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1!"},
            {"role": "user", "content": "two"},
        ],
        "user": "s-1",
    }


def test_completion_carries_it_as_text() -> None:
    assert write(Endpoint.COMPLETIONS, turn=1, answers=("1!",))["prompt"] == "one1!\ntwo"


def test_embedding_has_no_answer_to_ask_for() -> None:
    body = write(Endpoint.EMBEDDINGS, Session(name=None, turns=TALK.turns), ignore_eos=True)
    assert body == {"model": "m", "input": "one"}


def test_without_stream_there_are_no_stream_options() -> None:
    body = write(Endpoint.CHAT, is_stream=False, ignore_eos=True)
    assert "stream" not in body
    assert "stream_options" not in body
    assert body["ignore_eos"] is True


def test_extra_body_lies_on_top_and_null_takes_away() -> None:
    body = write(Endpoint.CHAT, extra_body='{"temperature": 0, "stream_options": null, "max_tokens": 1}')
    assert body["temperature"] == 0
    assert body["max_tokens"] == 1
    assert "stream_options" not in body


def test_request_of_a_file_keeps_its_fields_but_not_its_model() -> None:
    turn = Turn(fields=b'{"model":"other","messages":[],"top_p":0.5}', max_tokens=4)
    body = write(Endpoint.CHAT, Session(name=None, turns=(turn,)))
    assert (body["model"], body["messages"], body["top_p"], body["max_tokens"]) == ("m", [], 0.5, 4)


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_extra_body_must_be_an_object(text: str) -> None:
    with pytest.raises(InvalidRequest, match="extra body"):
        write(Endpoint.CHAT, extra_body=text)

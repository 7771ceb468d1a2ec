"""Server-sent events, however they are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.bench.stream import MAX_EVENT_BYTES, EventStream

STREAM = (
    b': comment\n\ndata: {"a": 1}\n\nevent: x\ndata: one\ndata:two\n\n'
    b"id: 7\n\ndata:\n\ndata: w\xc3\xa9ll\n\ndata: [DONE]\n\n"
)
PAYLOADS = [b'{"a": 1}', b"one\ntwo", "wéll".encode(), b"[DONE]"]


def feed(pieces: list[bytes]) -> list[bytes]:
    stream = EventStream()
    return [payload for piece in pieces for payload in stream.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % len(data) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@given(st.lists(st.integers(min_value=0), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_payloads_do_not_depend_on_where_it_is_cut(places: list[int], end: bytes) -> None:
    assert feed(cut(STREAM.replace(b"\n", end) + b" ", places)) == PAYLOADS


def test_byte_by_byte() -> None:
    assert feed([bytes([byte]) for byte in STREAM]) == PAYLOADS


def test_rest_is_an_event_that_has_not_ended() -> None:
    stream = EventStream()
    assert stream.feed(b"data: a\n\ndata: b") == [b"a"]
    assert stream.has_rest
    assert stream.feed(b"\n\n") == [b"b"]
    assert not stream.has_rest


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="no field"):
        EventStream().feed(b"<html>\n\n")


def test_event_without_end_is_refused() -> None:
    stream = EventStream()
    with pytest.raises(ValueError, match="longer than"):
        stream.feed(b"data: " + b"a" * MAX_EVENT_BYTES)

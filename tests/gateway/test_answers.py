"""Errors become HTTP in one place."""

from __future__ import annotations

import orjson
import pytest

from xinf.core.errors import BodyTooLarge, EngineError, Overloaded, Unauthenticated, XinfError, all_errors
from xinf.gateway.answers import error_answer, error_of_code


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.code)
def test_every_error_has_a_status_and_openais_shape(cls: type[XinfError]) -> None:
    answer = error_answer(cls("what happened", param="p", detail=3))
    error = orjson.loads(answer.body)["error"]
    assert answer.status == cls.http_status
    assert error["code"] == cls.code
    assert error["message"] == "what happened"
    assert {"type", "param", "detail"} <= set(error)


def test_overload_says_when_to_come_back() -> None:
    assert (b"retry-after", b"7") in error_answer(Overloaded("full", retry_after_s=7)).headers


def test_connection_ends_after_a_body_that_was_not_read() -> None:
    assert (b"connection", b"close") in error_answer(BodyTooLarge("big")).headers


def test_unauthenticated_names_the_scheme() -> None:
    assert any(name == b"www-authenticate" for name, _ in error_answer(Unauthenticated("no")).headers)


def test_error_of_code_restores_the_class() -> None:
    assert error_of_code("no_capacity", "full").http_status == 429
    assert isinstance(error_of_code("never_heard_of", ""), EngineError)

"""The error tree: codes are unique and stable, every class survives the wire, every class is documented."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from xinf.core import errors
from xinf.core.errors import XinfError, all_errors, from_wire, openai_body, to_wire


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in all_errors()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_wire_restores_class_and_values(cls: type[XinfError]) -> None:
    error = cls("cannot place qwen", remedy="free some memory", param="model", needed_bytes=17, node=None)
    back = from_wire(to_wire(error))
    assert type(back) is cls
    assert (back.message, back.remedy, back.param, back.fields) == (
        error.message,
        error.remedy,
        error.param,
        error.fields,
    )


def test_from_wire_unknown_code_is_still_an_error() -> None:
    assert type(from_wire(b'{"code":"of_the_future","message":"m"}')) is XinfError


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_every_error_maps_to_http_and_grpc(cls: type[XinfError]) -> None:
    assert 400 <= cls.http_status < 600
    assert cls.grpc_status in grpc.StatusCode.__members__


@pytest.mark.parametrize("cls", all_errors()[1:], ids=lambda cls: cls.__name__)
def test_every_error_is_in_the_tree_and_in_the_docs(cls: type[XinfError], checkout: Path) -> None:
    assert errors.__doc__ is not None
    assert re.search(rf"── {cls.__name__} +{cls.http_status}  {cls.code}\b", errors.__doc__), "drawn in errors.py"
    assert f"`{cls.code}`" in (checkout / "docs" / "reference" / "errors.md").read_text(), "in docs/reference/errors.md"


def test_openai_body_has_the_shape_and_the_values() -> None:
    body = openai_body(errors.MalformedJson("expected ',' at byte 17", offset=17))
    assert body == {
        "error": {
            "message": "expected ',' at byte 17",
            "type": "invalid_request_error",
            "param": None,
            "code": "malformed_json",
            "offset": 17,
        }
    }

"""URLs and heads of requests."""

from __future__ import annotations

import pytest

from xinf.bench.target import Target
from xinf.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://localhost:8000", "localhost:8000", ""),
        ("localhost:8000", "localhost:8000", ""),
        ("http://localhost/v1", "localhost", ""),
        ("https://api.example.com/v1/", "api.example.com", ""),
        ("http://h:1/tenant/a/v1", "h:1", "/tenant/a"),
        ("http://[::1]:9", "[::1]:9", ""),
        ("https://h:80", "h:80", ""),
    ],
)
def test_url_is_read(url: str, authority: str, prefix: str) -> None:
    target = Target.parse(url)
    assert (target.authority, target.prefix) == (authority, prefix)


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:b", "http://a?x=1", "http://u:p@a", "http://a/x y"])
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Target.parse(url)


def test_head_has_what_http_needs() -> None:
    target = Target.parse("http://h:1/p", headers=(("authorization", "Bearer k"),))
    assert target.head("POST", "/v1/x").split(b"\r\n") == [
        b"POST /p/v1/x HTTP/1.1", b"host: h:1", b"authorization: Bearer k", b"content-type: application/json",
        b"content-length: ",
    ]  # fmt: skip


@pytest.mark.parametrize("header", [("a", "b\r\nc: d"), ("a b", "c"), ("", "c"), ("a", "\u2028")])
def test_header_cannot_smuggle_another(header: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        Target.parse("http://h", headers=(header,))

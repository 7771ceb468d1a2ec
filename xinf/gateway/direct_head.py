"""The head of an HTTP/1 request: bytes to `Shape`. llhttp judges the syntax, this file what llhttp leaves open.

A client that keeps talking sends the same head again and again, but for its content-length. So a head is known by what
stands around those digits, and one that is known is not parsed: that costs 5 us with the headers of OpenAI's client.

    POST /v1/chat/completions HTTP/1.1 ┐
    host: x                            ├─ before ┐
    authorization: Bearer ...          │         │
    content-length:                    ┘         ├─ key of the cache ──▶ Shape
                    512   digits only ──▶ length │
                       CRLF CRLF         ─ after ┘

Anything else between the two goes to llhttp as it is, which says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

END = b"\r\n\r\n"
MAX_HEAD_BYTES = 128 << 10
MAX_TARGET_BYTES = 8 << 10
MAX_HEADERS = 100  # as hyper, so that both fronts take the same requests
# Heads that are remembered. Both bound the memory: 1024 heads of 2 KiB, with their parsed form about 5 MiB.
CACHED_HEADS = 1024
CACHED_HEAD_BYTES = 2048
MAX_DIGITS = 18
_UNKNOWN_METHOD = re.compile(rb"[A-Za-z-]{1,20} [/*]")


class BadHead(Exception):
    """A head that cannot be served; `status` is the answer's. Where the next request begins is not known."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Shape:
    """A parsed head without its content-length. Shared: its `headers` are copied for each request.

    `length`: of the body, where it is no part of what varies: 0 for none, None for a chunked one.
    `before`, `after`: what stands around the digits of the content-length, None where there are no such digits.
    """

    __slots__ = (
        "after",
        "before",
        "expects_continue",
        "headers",
        "is_http10",
        "is_keep_alive",
        "is_plain",
        "length",
        "method",
        "n_around",
        "path",
        "query",
    )

    after: bytes
    before: bytes | None
    expects_continue: bool
    headers: dict[bytes, bytes]
    is_http10: bool
    is_keep_alive: bool
    is_plain: bool  # kept alive, HTTP/1.1, not HEAD: nothing odd about its answer
    length: int | None
    method: str
    n_around: int  # bytes of `before` and `after`
    path: str
    query: bytes


class Found:
    """A head that was read: what it is, and its content-length if that varies."""

    __slots__ = ("digits", "shape")

    def __init__(self, shape: Shape, digits: bytes | None) -> None:
        self.shape = shape
        self.digits = digits

    @property
    def length(self) -> int | None:
        """Of the body; 0 for none, None for a chunked one."""
        return self.shape.length if self.digits is None else int(self.digits)

    def headers(self) -> dict[bytes, bytes]:
        """All headers; the caller's own."""
        headers = self.shape.headers.copy()
        if self.digits is not None:
            headers[b"content-length"] = self.digits
        return headers


class _Callbacks:
    """What httptools calls. A dict takes the headers without a Python frame for each."""

    def __init__(self, on_header: Callable[[bytes, bytes], None]) -> None:
        self.on_header = on_header


class HeadReader:
    """Reads heads; one serves all connections of a process."""

    def __init__(self) -> None:
        self.nothing = Shape()  # before the first request of a connection
        self.nothing.before = None
        self.nothing.is_http10 = self.nothing.is_keep_alive = self.nothing.is_plain = False
        # Two, so that a head whose content-length has no digits is never taken for one whose digits were left out.
        self._cut: dict[tuple[bytes, bytes], Shape] = {}
        self._whole: dict[bytes, Shape] = {}
        self._raw: dict[bytes, bytes] = {}
        self._callbacks = _Callbacks(self._raw.__setitem__)
        self._parser = httptools.HttpRequestParser(self._callbacks)

    def read(self, block: bytes) -> Found:
        """Read one whole head. `block`: from the first byte of its method to the empty line, which is part of it.

        Raises: BadHead.
        """
        # "\r\nContent-L" is in front of what is looked for; one search for both ways to write it.
        at = block.rfind(b"ength: ")
        if at > 11 and block[at - 11 : at].lower() == b"\r\ncontent-l":
            begin, end = at + 7, block.find(b"\r", at)
            digits = block[begin:end]
            if digits.isdigit() and len(digits) <= MAX_DIGITS:
                return Found(self._find(block[:begin], block[end:]), digits)
        shape = self._whole.get(block)
        if shape is None:
            shape = self._whole[block] = self._parse(block, has_length=False)
            _trim(self._whole, len(block))
        return Found(shape, None)

    def _find(self, before: bytes, after: bytes) -> Shape:
        key = (before, after)
        shape = self._cut.get(key)
        if shape is None:
            name_at = before.rfind(b"\r\n")
            shape = self._cut[key] = self._parse(before[:name_at] + after, has_length=True)
            shape.before, shape.after, shape.n_around = before, after, len(before) + len(after)
            _trim(self._cut, len(before) + len(after))
        return shape

    def check(self, part: bytes) -> None:
        """Look whether `part` can be the beginning of a head. Raises: BadHead."""
        if len(part) > MAX_HEAD_BYTES:
            raise BadHead(431, f"the headers have more than {MAX_HEAD_BYTES} bytes")
        if len(part) > MAX_TARGET_BYTES and part.find(b"\r\n", 0, MAX_TARGET_BYTES + 64) < 0:
            raise BadHead(414, f"the request line has more than {MAX_TARGET_BYTES} bytes")
        self._feed(part)

    def _feed(self, data: bytes) -> dict[bytes, bytes]:
        parser, raw = self._parser, self._raw
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer that is not taken up; raised at the end of the head
        except httptools.HttpParserInvalidMethodError as error:
            if _UNKNOWN_METHOD.match(data) is None:
                raise BadHead(400, "this is not HTTP/1.1: it does not begin with a method") from error
            raise BadHead(501, "no server of HTTP/1.1 knows this method") from error
        except httptools.HttpParserError as error:
            raise BadHead(400, f"this is not HTTP/1.1: {error}") from error
        finally:
            headers = dict(raw)
            raw.clear()
            # The only way to begin anew: what follows the head never reaches this parser.
            parser.__init__(self._callbacks)  # type: ignore[misc]
        return headers

    def _parse(self, block: bytes, *, has_length: bool) -> Shape:
        if len(block) > MAX_HEAD_BYTES:
            raise BadHead(431, f"the headers have {len(block)} bytes, the limit is {MAX_HEAD_BYTES}")
        line = block[: block.find(b"\r\n")]
        if len(line) > MAX_TARGET_BYTES:
            raise BadHead(414, f"the request line has {len(line)} bytes, the limit is {MAX_TARGET_BYTES}")
        if line.startswith(b"PRI * HTTP/2"):
            raise BadHead(400, "HTTP/2 is not spoken here; use HTTP/1.1")
        n_headers = block.count(b"\n") - 2
        if n_headers > MAX_HEADERS:
            raise BadHead(431, f"the request has {n_headers} headers, the limit is {MAX_HEADERS}")
        # llhttp leaves the white space behind a value.
        headers = {name.lower(): value.rstrip(b" \t") for name, value in self._feed(block).items()}
        if len(headers) != n_headers:
            _check_duplicates(block)
        shape = Shape()
        shape.before = None
        shape.headers = headers
        _set_line(shape, line)
        _set_framing(shape, has_length=has_length)
        return shape


def _trim(shapes: dict[Any, Shape], n_bytes: int) -> None:
    """Keep the bounds after an insertion of a head of `n_bytes`."""
    if n_bytes > CACHED_HEAD_BYTES:
        shapes.popitem()
    elif len(shapes) > CACHED_HEADS:
        del shapes[next(iter(shapes))]


def _check_duplicates(block: bytes) -> None:
    lowered = block.lower()
    for name in (b"host", b"transfer-encoding"):
        if lowered.count(b"\r\n%b:" % name) > 1:
            raise BadHead(400, f"the request has several {name.decode()} headers")


def _set_line(shape: Shape, line: bytes) -> None:
    """Set what the request line says; llhttp has seen that its characters are possible."""
    # llhttp lets several spaces pass.
    parts = line.split(b" ")
    if len(parts) != 3:
        raise BadHead(400, "the request line is not method, target and version with one space between them")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        is_http = version.startswith(b"HTTP/")
        raise BadHead(505 if is_http else 400, f"{version.decode('latin-1')} is not spoken here; use HTTP/1.1")
    if method == b"CONNECT":
        raise BadHead(405, "CONNECT is for proxies; this is none")
    shape.method = method.decode("ascii")
    shape.is_http10 = version == b"HTTP/1.0"
    if target.startswith(b"*"):
        if target != b"*" or method != b"OPTIONS":
            raise BadHead(400, "* is a target for OPTIONS only")
    elif not target.startswith(b"/"):
        target = _without_authority(target)
    path, _, shape.query = target.partition(b"?")
    shape.path = (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace")


def _without_authority(target: bytes) -> bytes:
    """Give the path and query of `http://host/path?query`, which clients send to proxies."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadHead(400, "the target is neither a path nor an http URL")
    authority_end = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
    path = rest[authority_end:]
    return path if path.startswith(b"/") else b"/" + path


def _set_framing(shape: Shape, *, has_length: bool) -> None:
    """Set where the body ends and what happens after the answer."""
    headers = shape.headers
    if not shape.is_http10 and b"host" not in headers:
        raise BadHead(400, "the request has no host header")
    coding = headers.get(b"transfer-encoding")
    # llhttp refuses what it sees both of or twice; of the one that was cut out it saw nothing.
    if has_length and (coding is not None or b"content-length" in headers):
        raise BadHead(400, "the request has two lengths: content-length twice, or with transfer-encoding")
    if coding is not None:
        if shape.is_http10:
            raise BadHead(400, "HTTP/1.0 has no transfer-encoding")
        if coding.lower() != b"chunked":
            raise BadHead(501, "the only transfer-encoding of a request that is understood is chunked")
    # One that was not cut out is written in an unusual way; llhttp has judged it.
    shape.length = None if coding is not None else int(headers.get(b"content-length", b"0"))
    tokens = {token.strip() for token in headers.get(b"connection", b"").lower().split(b",")}
    shape.is_keep_alive = b"close" not in tokens and (not shape.is_http10 or b"keep-alive" in tokens)
    shape.is_plain = shape.is_keep_alive and not shape.is_http10 and shape.method != "HEAD"
    shape.expects_continue = not shape.is_http10 and headers.get(b"expect", b"").lower() == b"100-continue"

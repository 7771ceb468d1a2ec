"""The JSON grammar naively: one byte after the other, Python numbers for Python questions.

`first_error` gives the byte that cannot be right, by these rules: a byte that no JSON text could have here is named
itself; an ill-formed UTF-8 sequence, a lone surrogate and a number that rounds to infinity are named by their first
byte, a `\\u` without four digits by the first of the four. A bracket beyond the depth limit is named itself.
"""

from __future__ import annotations

import re

SPACE = b" \t\r\n"
ESCAPES = b'"\\/bfnrt'
LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class JsonError(Exception):
    """`args[0]` is the offset."""


def first_error(body: bytes, max_depth: int) -> int | None:
    """The offset of the byte that cannot be right, None for valid JSON."""
    try:
        at = skip_space(body, read_value(body, skip_space(body, 0), max_depth))
    except JsonError as error:
        return int(error.args[0])
    return None if at == len(body) else at


def skip_space(body: bytes, at: int) -> int:
    while at < len(body) and body[at] in SPACE:
        at += 1
    return at


def read_value(body: bytes, at: int, max_depth: int) -> int:
    """Read a value at `at`, containers by a list of what closes them; gives the offset behind it."""
    closers: list[int] = []
    while True:
        opened = at < len(body) and body[at] in b"[{"
        if opened:
            if len(closers) == max_depth:
                raise JsonError(at)
            closers.append(ord("]") if body[at] == ord("[") else ord("}"))
            at = skip_space(body, at + 1)
        else:
            at = read_scalar(body, at)
        while closers:
            if not opened:
                at = skip_space(body, at)
            if at < len(body) and body[at] == closers[-1]:
                closers.pop()
                at += 1
                opened = False
                continue
            if not opened:
                expect(body, at, ord(","))
                at = skip_space(body, at + 1)
                if at < len(body) and body[at] == closers[-1]:
                    raise JsonError(at)
            if closers[-1] == ord("}"):
                at = read_key(body, at)
            break
        if not closers:
            return at


def expect(body: bytes, at: int, wanted: int) -> None:
    if at >= len(body) or body[at] != wanted:
        raise JsonError(at)


def read_key(body: bytes, at: int) -> int:
    expect(body, at, ord('"'))
    at = skip_space(body, read_string(body, at))
    expect(body, at, ord(":"))
    return skip_space(body, at + 1)


def read_scalar(body: bytes, at: int) -> int:
    if at >= len(body):
        raise JsonError(at)
    if body[at] == ord('"'):
        return read_string(body, at)
    if body[at] in LITERALS:
        for wanted in LITERALS[body[at]]:
            expect(body, at, wanted)
            at += 1
        return at
    return read_number(body, at)


def read_number(body: bytes, at: int) -> int:
    """The longest number; then what it lacks, if it ends in the middle of something; then its size."""
    found = NUMBER.match(body, at)
    if found is None:
        raise JsonError(at + (body[at] == ord("-")))
    end = found.end()
    rest = body[end : end + 3].ljust(3, b"\0")
    if found[3] is None and rest[0] in b"eE":
        raise JsonError(end + (2 if rest[1] in b"+-" else 1))
    if found[2] is None and found[3] is None:
        if rest[0] == ord("."):
            raise JsonError(end + 1)
        if found[1] == b"0" and rest[0] in b"0123456789":
            raise JsonError(end)
    if abs(float(found[0])) == float("inf"):
        raise JsonError(at)
    return end


def read_string(body: bytes, at: int) -> int:
    at += 1
    while True:
        if at >= len(body) or body[at] < 0x20:
            raise JsonError(at)
        if body[at] == ord('"'):
            return at + 1
        if body[at] == ord("\\"):
            at += read_escape(body, at)
        elif body[at] < 0x80:
            at += 1
        else:
            at += read_character(body, at)


def read_escape(body: bytes, at: int) -> int:
    """Gives the bytes of the escape, of both for a pair of surrogates."""
    if at + 1 < len(body) and body[at + 1] in ESCAPES:
        return 2
    expect(body, at + 1, ord("u"))
    code = hexadecimal(body[at + 2 : at + 6])
    if code is None:
        raise JsonError(at + 2)
    if not 0xD800 <= code < 0xE000:
        return 6
    low = hexadecimal(body[at + 8 : at + 12]) if body[at + 6 : at + 8] == b"\\u" else None
    if code >= 0xDC00 or low is None or not 0xDC00 <= low < 0xE000:
        raise JsonError(at)
    return 12


def hexadecimal(digits: bytes) -> int | None:
    return int(digits, 16) if re.fullmatch(rb"[0-9a-fA-F]{4}", digits) else None


def read_character(body: bytes, at: int) -> int:
    for width in (2, 3, 4):
        try:
            if len(body[at : at + width].decode("utf-8")) == 1:
                return width
        except UnicodeDecodeError:
            continue
    raise JsonError(at)

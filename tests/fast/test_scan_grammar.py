"""The scanner accepts and rejects exactly what orjson does: a table, number limits, and differential fuzzing."""

from __future__ import annotations

import random
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fast.json_cases import ACCEPTED, LEFT_OPEN, REJECTED
from tests.fast.json_suite import ACCEPTED_OPEN, DEVIATIONS, SUITE
from tests.model.requests import random_request, write, write_escaped
from xinf._fast.scan import ScanError, scan

DEEPEST = 1024  # orjson's own limit
# 2^1024 - 2^970, the least integer that rounds to infinity.
LIMIT = 2**1024 - 2**970


def orjson_accepts(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def scan_accepts(body: bytes) -> bool:
    try:
        scan(body, DEEPEST)
    except ScanError as error:
        offset = error.offset
    else:
        return True
    assert 0 <= offset <= len(body)
    return False


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_json_is_accepted(name: str) -> None:
    assert scan_accepts(ACCEPTED[name])
    assert orjson_accepts(ACCEPTED[name])


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_json_is_rejected(name: str) -> None:
    assert not scan_accepts(REJECTED[name])
    assert not orjson_accepts(REJECTED[name])


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_open_cases_are_decided_as_orjson_does(name: str) -> None:
    assert scan_accepts(LEFT_OPEN[name]) == orjson_accepts(LEFT_OPEN[name])


@pytest.mark.parametrize("name", SUITE)
def test_the_public_suite_is_decided_as_it_says_and_as_orjson_does(name: str) -> None:
    is_valid = name in ACCEPTED_OPEN if name.startswith("i_") else name.startswith("y_") != (name in DEVIATIONS)
    assert scan_accepts(SUITE[name]) == is_valid
    assert orjson_accepts(SUITE[name]) == is_valid


def test_the_public_suite_is_complete() -> None:
    counts = {kind: sum(name.startswith(kind) for name in SUITE) for kind in ("y_", "n_", "i_")}
    assert counts == {"y_": 95, "n_": 193, "i_": 35}
    assert SUITE.keys() >= DEVIATIONS | ACCEPTED_OPEN


@pytest.mark.parametrize("name", [*ACCEPTED, *REJECTED, *LEFT_OPEN, *SUITE])
def test_cases_inside_a_request_are_decided_alike(name: str) -> None:
    case = (ACCEPTED | REJECTED | LEFT_OPEN | SUITE)[name]
    for template in (
        b'{"x":%b}',
        b'{"messages":[{"role":"user","content":[{"y":%b}]}]}',
        b'{"prompt":[%b]}',
        b'{"%b":1}',
    ):
        body = template.replace(b"%b", case)
        assert scan_accepts(body) == orjson_accepts(body), body[:200]


@pytest.mark.parametrize(
    ("body", "offset"),
    [
        (b"", 0), (b"  ", 2), (b'{"a":tru}', 8), (b'{"a":1,}', 7), (b"[1 2]", 3), (b'{"a" 1}', 5), (b'"ab\x01"', 3),
        (b'"a\xffb"', 2), (b'["\\x"]', 3), (b"[01]", 2), (b"[1.]", 3), (b"{1:2}", 1), (b"[]]", 2), (b'{"a":"b', 7),
        (b"[1e999]", 1), (b'"\\ud800x"', 1),
    ],
)  # fmt: skip
def test_error_names_the_first_byte_that_cannot_be_right(body: bytes, offset: int) -> None:
    with pytest.raises(ScanError) as caught:
        scan(body)
    assert caught.value.offset == offset
    assert f"at byte {offset}" in str(caught.value)


def spellings(value: int) -> list[bytes]:
    digits = str(value)
    return [
        digits.encode(), b"-" + digits.encode(), digits.encode() + b".0", digits.encode() + b"e0",
        f"{digits[0]}.{digits[1:]}e{len(digits) - 1}".encode(), f"0.{digits}e{len(digits)}".encode(),
        f"0.000{digits}E+{len(digits) + 3}".encode(), digits.encode() + b"000e-3", digits.encode() + b".9999",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT // 10, LIMIT * 10, 10**308, 10**309, 2**1024])
def test_numbers_around_the_largest_double_are_decided_as_orjson_does(value: int) -> None:
    for number in spellings(value):
        assert scan_accepts(number) == orjson_accepts(number), number


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**320), st.integers(-700, 700), st.integers(0, 40))
def test_random_numbers_are_decided_as_orjson_does(digits: int, exponent: int, point: int) -> None:
    text = str(digits)
    number = f"{text[: point + 1]}.{text[point + 1 :] or '0'}e{exponent}".encode()
    assert scan_accepts(number) == orjson_accepts(number)


ALPHABET = [bytes([i]) for i in range(256)] + [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"0",
    b"-",
    b".",
    b"e",
    b" ",
    b"\n",
    b"\\u",
    b"\\ud83d",
    b"\\ude00",
    b"\\n",
    b"true",
    b"false",
    b"null",
    b"1e308",
    b"1e309",
    b"\xc3\xa9",
    b"\xe2\x82\xac",
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80",
    b"NaN",
    b"[[",
    b"]]",
    b'"a":',
    b'{"a":1}',
    b"-0",
    b"00",
    b"\xef\xbb\xbf",
    b'"messages":[',
    b'"content":',
    b'"prompt":[',
    b'"text":"x"',
] * 4


def mutate(body: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        at, n = rng.randrange(len(body) + 1), rng.randrange(4)
        pick = rng.randrange(4)
        if pick == 0:
            body = body[:at] + rng.choice(ALPHABET) + body[at:]
        elif pick == 1:
            body = body[:at] + body[at + n :]
        elif pick == 2:
            body = body[:at] + rng.choice(ALPHABET) + body[at + n :]
        else:
            other = rng.randrange(len(body) + 1)
            body = body[:at] + body[other : other + rng.randrange(20)] + body[at:]
    return body


def test_mutated_requests_are_decided_as_orjson_does() -> None:
    """Differential fuzzing for two seconds; `make fuzz` is the long run."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    n_accepted = n_rejected = 0
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline or n_rejected < 100:
        request = random_request(rng)
        original = rng.choice([write, write_escaped])(request, rng)[: rng.choice([100, 1000, 10**6])]
        for _ in range(20):
            body = mutate(original, rng)
            is_valid = orjson_accepts(body)
            assert scan_accepts(body) == is_valid, body
            n_accepted += is_valid
            n_rejected += not is_valid
            if is_valid:
                scan(body, DEEPEST).chain(1)
    assert n_accepted > 0

from __future__ import annotations

import pytest

from xinf.core.errors import InvalidRequest
from xinf.core.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4096", 4096), ("32MiB", 32 << 20), ("1.5 GB", 1_500_000_000), ("2k", 2000), ("1TiB", 1 << 40), ("7b", 7)],
)
def test_parse_bytes_reads_units(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "-1", "1 parsec", "MiB", "1e9", "nan"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("30s", 30), ("5m", 300), ("7d", 604800), ("1.5", 1.5)])
def test_parse_seconds_reads_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (19_220_000_000, "17.9 GiB"), (1 << 40, "1.0 TiB")],
)
def test_format_bytes(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4s"),
        (12.3, "12s"),
        (59.6, "1m 0s"),
        (185, "3m 5s"),
        (7620, "2h 7m"),
        (90_000, "1d 1h"),
        (864_000, "10d 0h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

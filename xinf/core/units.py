"""Bytes and durations as people write and read them. In the model everything is bytes and seconds."""

from __future__ import annotations

import re

from xinf.core.errors import InvalidRequest

_DECIMAL = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "tb": 10**12}
_BYTES = _DECIMAL | {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read `32MiB`, `1.5 GB` or `4096` as bytes. Raises: InvalidRequest."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in _BYTES:
        raise InvalidRequest(f"{text!r} is not a size: write for example 32MiB, 1.5GB or 4096")
    return int(float(match[1]) * _BYTES[match[2].lower()])


def parse_seconds(text: str) -> float:
    """Read `250ms`, `30s`, `5m`, `12h`, `7d` or `1.5` as seconds. Raises: InvalidRequest."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in _SECONDS:
        raise InvalidRequest(f"{text!r} is not a duration: write for example 250ms, 30s, 5m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2].lower()]


def format_bytes(n_bytes: int) -> str:
    """Write bytes with a binary unit and at most one decimal: `17.9 GiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Write a duration in the two largest units that matter: `0.4s`, `12s`, `3m 5s`, `2h 7m`, `4d 1h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for big, small, size, sub in (("m", "s", 60, 1), ("h", "m", 3600, 60), ("d", "h", 86400, 3600)):
        if whole < size * (60 if big == "m" else 24) or big == "d":
            return f"{whole // size}{big} {whole % size // sub}{small}"
    raise AssertionError("unreachable")

"""Service level objectives: what a request must keep to count as goodput."""

from __future__ import annotations

import re

import msgspec

from xinf.core.errors import InvalidRequest
from xinf.core.units import parse_seconds

_NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "e2el": "e2e_s"}
_PART = re.compile(r"\s*(\w+)\s*([=:])\s*([0-9.]+)\s*(\w*)\s*")


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds in seconds; None does not bind."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def is_kept(self, *, ttft_s: float | None, tpot_s: float | None, e2e_s: float) -> bool:
        """Whether a good answer was also quick enough. One without a token has no TTFT and cannot keep one.

        TPOT exists from the second token on: an answer of one token keeps it.
        """
        return (
            (self.ttft_s is None or (ttft_s is not None and ttft_s <= self.ttft_s))
            and (self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s)
            and (self.e2e_s is None or e2e_s <= self.e2e_s)
        )


def parse_slo(text: str) -> Slo:
    """Read `ttft=200ms,tpot=30ms,e2e=2s`, or vLLM's `ttft:200 tpot:30 e2el:2000` in milliseconds.

    Raises: InvalidRequest.
    """
    found: dict[str, float] = {}
    for part in re.split(r"[,\s]+(?=\w+\s*[=:])", text.strip()):
        match = _PART.fullmatch(part)
        if match is None or match[1].lower() not in _NAMES:
            raise InvalidRequest(
                f"{part!r} is not an objective", remedy="write for example ttft=200ms,tpot=30ms,e2e=2s"
            )
        name, sign, value, unit = match.groups()
        if not unit and sign == "=":
            raise InvalidRequest(f"{part!r} has no unit", remedy=f"write {name}={value}ms or {name}={value}s")
        seconds = parse_seconds(f"{value}{unit or 'ms'}")
        if _NAMES[name.lower()] in found:
            raise InvalidRequest(f"{name} is given twice in {text!r}")
        found[_NAMES[name.lower()]] = seconds
    return Slo(**found)

"""Objectives: how they are written and when they are kept."""

from __future__ import annotations

import pytest

from xinf.bench.slo import Slo, parse_slo
from xinf.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=200ms", Slo(ttft_s=0.2)),
        ("ttft=200ms,tpot=30ms,e2e=2s", Slo(ttft_s=0.2, tpot_s=0.03, e2e_s=2.0)),
        ("TTFT = 1.5s, e2el = 1m", Slo(ttft_s=1.5, e2e_s=60.0)),
        ("ttft:200 tpot:30 e2el:2000", Slo(ttft_s=0.2, tpot_s=0.03, e2e_s=2.0)),  # as vLLM writes it
    ],
)
def test_slo_is_read(text: str, slo: Slo) -> None:
    found = parse_slo(text)
    assert (found.ttft_s, found.tpot_s, found.e2e_s) == pytest.approx((slo.ttft_s, slo.tpot_s, slo.e2e_s))


@pytest.mark.parametrize("text", ["", "ttft", "ttft=200", "itl=3ms", "ttft=1s,ttft=2s", "ttft=3parsecs", "ttft=1.2.3s"])
def test_slo_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_slo(text)


def test_bounds_are_inclusive_and_all_must_hold() -> None:
    slo = Slo(ttft_s=0.2, tpot_s=0.03, e2e_s=2.0)
    assert slo.is_kept(ttft_s=0.2, tpot_s=0.03, e2e_s=2.0)
    assert not slo.is_kept(ttft_s=0.21, tpot_s=0.03, e2e_s=2.0)
    assert not slo.is_kept(ttft_s=0.2, tpot_s=0.031, e2e_s=2.0)
    assert not slo.is_kept(ttft_s=0.2, tpot_s=0.03, e2e_s=2.1)


def test_answer_without_a_first_token_keeps_no_ttft_but_one_token_keeps_any_tpot() -> None:
    assert not Slo(ttft_s=9.0).is_kept(ttft_s=None, tpot_s=None, e2e_s=1.0)
    assert Slo(tpot_s=0.001).is_kept(ttft_s=0.1, tpot_s=None, e2e_s=1.0)

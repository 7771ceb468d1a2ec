"""Made-up results: small enough to know every figure of the report that comes of them."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.contestant import Family
from benchmarks.sample import Run, Sample, Taker


def taker(name: str, family: Family) -> Taker:
    return Taker(name, family.value, "1.2.3", "as it comes")


XINF = taker("xinf granian", Family.XINF)
AWARE = taker("smg cache_aware", Family.CACHE_AWARE)
ROBIN = taker("smg round_robin", Family.ROUND_ROBIN)
DIRECT = taker("no gateway", Family.NONE)


def samples(name: str, cell: str, values: Iterable[float], field: str = "gateway_us_per_request") -> list[Sample]:
    """One sample a repeat, with `field` set."""
    return [
        Sample(contestant=name, cell=cell, repeat=repeat, seed=1, requests=1000, **{field: value})  # type: ignore[arg-type]
        for repeat, value in enumerate(values)
    ]


def made_run(found: Iterable[Sample], takers: Iterable[Taker] = (XINF, AWARE, ROBIN, DIRECT)) -> Run:
    """A run with these samples."""
    return Run(
        question="peers",
        date="2026-01-02T03:04:05+00:00",
        commit="0123456789",
        command="bench_peers.py",
        cpu_model="A Processor",
        n_cpus=2,
        kernel="6.1.0",
        python="3.11.7",
        background_share=0.01,
        idle_core_share={"smg cache_aware": 0.012},
        gateway_cpu=0,
        load_cpu=1,
        repeats=3,
        is_quick=False,
        duration_s=120.0,
        contestants=tuple(takers),
        samples=tuple(found),
    )

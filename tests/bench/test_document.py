"""Result files: what is refused, and what two of them say of each other."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xinf.bench.collector import Collector
from xinf.bench.compare import compare
from xinf.bench.document import (
    SCHEMA,
    Curves,
    Document,
    Point,
    Result,
    Settings,
    Spread,
    make_points,
    read_document,
    write_document,
)
from xinf.bench.host import Host
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.record import Record
from xinf.bench.report import (
    Caution,
    Distribution,
    ErrorCount,
    Generator,
    Goodput,
    Series,
    Summary,
    make_series,
    summarize,
)
from xinf.bench.slo import Slo
from xinf.bench.target import Endpoint
from xinf.bench.workload import WorkloadSettings
from xinf.core.errors import InvalidRequest, NotFound

Make = Callable[..., Record]
HOST = Host(cpu="a CPU", n_cpus=2, kernel="6", machine="x86_64", versions={})


def made_document(took_s: dict[Load, list[float]], record: Make, **settings: Any) -> Document:
    """A document of runs of one request each."""
    results = []
    for load, repeats in took_s.items():
        for number, took in enumerate(repeats):
            collector = Collector()
            collector.add(record(took=took), array("d", [0.1, 0.2]))
            summary = summarize(collector, load, slo=None, percentiles=(), connections_opened=0, connection_waits=0)
            curves = Curves(ttft=(), tpot=(), itl=(), e2e=())
            results.append(
                Result(load=load, repeat=number, seed=0, started_s=0.0, is_interrupted=False, summary=summary,
                       series=make_series(collector), curves=curves)
            )  # fmt: skip
    given = {"workload": WorkloadSettings(), "n_requests": 1, "duration_s": None, "model": "m"} | settings
    return Document(
        schema=SCHEMA,
        created="2026-01-01T00:00:00+00:00",
        host=HOST,
        settings=Settings(url="http://h", endpoint=Endpoint.CHAT, loads=tuple(took_s), **given),
        is_interrupted=False,
        results=tuple(results),
        points=make_points(results),
    )


def test_points_give_median_and_extremes(record: Make) -> None:
    document = made_document({ClosedLoop(1): [1.0, 4.0, 2.0]}, record)
    spread = document.points[0].figures["e2e_p50_s"]
    assert (spread.median, spread.min, spread.max) == (2.0, 1.0, 4.0)
    assert "goodput_per_s" not in document.points[0].figures


def test_comparison_gives_ratios_with_what_the_repeats_allow(record: Make) -> None:
    load = ClosedLoop(1)
    comparison = compare(made_document({load: [1.0, 1.0, 2.0]}, record), made_document({load: [2.0, 3.0, 4.0]}, record))
    row = next(row for row in comparison.rows if row.metric == "e2e_p50_s")
    assert (row.ratio, row.lowest, row.highest) == (3.0, 1.0, 4.0)
    assert not row.differs  # 2.0 is in both
    rate = next(row for row in comparison.rows if row.metric == "requests_per_s")
    assert rate.ratio == pytest.approx(1 / 3)
    assert comparison.warnings == ()


def test_comparison_knows_a_difference_beyond_the_spread(record: Make) -> None:
    load = ClosedLoop(1)
    comparison = compare(made_document({load: [1.0, 1.1, 1.2]}, record), made_document({load: [1.3] * 3}, record))
    assert {row.metric for row in comparison.rows if row.differs} >= {"e2e_p50_s", "requests_per_s"}
    assert "ttft_p50_s" not in {row.metric for row in comparison.rows if row.differs}


def test_comparison_warns_of_what_cannot_be_compared(record: Make) -> None:
    a = made_document({ClosedLoop(1): [1.0] * 3, ClosedLoop(2): [1.0] * 3}, record)
    b = made_document({ClosedLoop(1): [1.0]}, record, model="other")
    b = msgspec.structs.replace(b, host=msgspec.structs.replace(HOST, cpu="another CPU"))
    text = "\n".join(compare(a, b).warnings)
    for words in ("only in one of them: concurrency 2", "different machines", "model differs", "fewer than 3 repeats"):
        assert words in text


def test_comparison_without_a_common_load_says_so(record: Make) -> None:
    a, b = (made_document({ClosedLoop(n): [1.0] * 3}, record) for n in (1, 2))
    comparison = compare(a, b)
    assert comparison.rows == ()
    assert "no load is in both: A has concurrency 1, B has concurrency 2" in comparison.warnings


def test_file_of_another_kind_is_refused(tmp_path: Path, record: Make) -> None:
    file = tmp_path / "a.json"
    for text, words in (
        ("{}", "no result of"),
        ("garbage", "no result of"),
        ('{"schema": "xinf-bench/9"}', "of schema 'xinf-bench/9'"),
        (f'{{"schema": "{SCHEMA}"}}', "but is not"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidRequest, match=words):
            read_document(file)
    with pytest.raises(NotFound):
        read_document(tmp_path / "missing.json")
    with pytest.raises(NotFound):
        write_document(made_document({ClosedLoop(1): [1.0]}, record), tmp_path / "missing" / "a.json")


def test_settings_need_an_end() -> None:
    with pytest.raises(InvalidRequest, match="needs an end"):
        Settings(url="", model="", endpoint=Endpoint.CHAT, loads=(), workload=WorkloadSettings(), n_requests=None,
                 duration_s=None)  # fmt: skip


def test_every_field_is_in_the_reference(checkout: Path) -> None:
    page = (checkout / "docs" / "reference" / "bench-result.md").read_text()
    kinds = (Document, Host, Settings, ClosedLoop, OpenLoop, WorkloadSettings, Slo, Result, Summary, ErrorCount,
             Goodput, Generator, Distribution, Caution, Series, Curves, Record, Point, Spread)  # fmt: skip
    for kind in kinds:
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"[`\"]{field.name}[`\"]", page), f"{kind.__name__}.{field.name} is not documented"

"""The routing section says what the file says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.bench_route import command_of, read_options
from benchmarks.route_table import is_no_worse, newest_routing, render_routing
from benchmarks.route_trace import write_trace
from benchmarks.sample import of_peers
from tests.bench.test_virtual_fleet import settings_of
from xinf.bench import (
    GatewaySettings,
    RouteDocument,
    RouteKind,
    RouteWorkloadSettings,
    Spread,
    VirtualSite,
    parse_slo,
    run_route,
    write_route_document,
)
from xinf.bench.mooncake import read_trace


@pytest.fixture(scope="module")
def document() -> RouteDocument:
    chat = RouteWorkloadSettings(kind=RouteKind.CHAT)
    settings = settings_of(workloads=(chat,), pools_pct=(50.0,), n_repeats=2, slo=parse_slo("ttft=1s"))
    return run_route(settings, VirtualSite(GatewaySettings()), lambda _: None)


def test_section_has_a_row_for_each_case(document: RouteDocument) -> None:
    section = render_routing(document, "2026-01-02-route-0123456789.json")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "50 %" in line]
    assert [row[:3] for row in rows] == [["chat", "50 %", name] for name in ("auto", "least_load", "prefix")]
    hits = next(point for point in document.points if point.case.policy == "auto").figures["hit_share"]
    assert rows[0][3] == f"{hits.median * 100:.1f} ({hits.min * 100:.1f}-{hits.max * 100:.1f})"
    assert "results/2026-01-02-route-0123456789.json" in section
    assert "in virtual time" in section
    assert "ttft ≤ 1 s" in section


def test_results_of_routing_are_none_of_peers(document: RouteDocument, tmp_path: Path) -> None:
    assert newest_routing(tmp_path) is None
    path = tmp_path / "2026-01-02-route-0123456789.json"
    write_route_document(document, path)
    assert newest_routing(tmp_path) == path
    assert of_peers(tmp_path) == []


def test_no_worse_means_better_or_overlapping() -> None:
    low, middle, high = Spread(median=2, min=1, max=3), Spread(median=3, min=2.5, max=4), Spread(median=9, min=8, max=9)
    assert is_no_worse(low, high, is_larger_better=False)
    assert is_no_worse(middle, low, is_larger_better=False)
    assert not is_no_worse(high, low, is_larger_better=False)
    assert is_no_worse(high, low, is_larger_better=True)
    assert not is_no_worse(low, high, is_larger_better=True)


def test_made_trace_is_deterministic_and_a_mooncake_trace(tmp_path: Path) -> None:
    one, other = (write_trace(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert one.read_bytes() == other.read_bytes()
    assert read_trace(one, seed=1).n_sessions == len(one.read_text().splitlines()) > 1000


@pytest.mark.parametrize("arguments", [[], ["--quick"], ["--simulate"], ["--workloads", "trace", "--repeats", "7"]])
def test_command_is_one_that_xinf_has(arguments: list[str], tmp_path: Path) -> None:
    import click
    import typer.main

    from xinf.cli.app import app

    options: argparse.Namespace = read_options(arguments)
    words = command_of(options, tmp_path / "t.jsonl", tmp_path / "r.json")[3:]
    command = typer.main.get_command(app)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert ("--trace" in words) == ("trace" in words[words.index("--workload") + 1])

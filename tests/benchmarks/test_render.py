"""The report says what the results say."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.render import REPORT, render, whole_report
from benchmarks.sample import RESULTS, Sample, of_peers, read, write
from tests.benchmarks.runs import made_run, samples

SMALL = "requests-0.5k-c64"


def rows(report: str, title: str) -> dict[str, list[str]]:
    """The table below a title, by its first column."""
    table = report.split(f"{title}\n", 1)[1].lstrip("\n").split("\n\n")[0].split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {line[0]: line[1:] for line in cells[2:]}


def test_tables_have_medians_extremes_and_ratios() -> None:
    report = render(
        made_run(
            [*samples("xinf granian", SMALL, [30, 32, 40]), *samples("smg cache_aware", SMALL, [60, 80, 80])],
        ),
        "x.json",
    )
    assert rows(report, "### Gateway CPU per request, µs") == {
        "**xinf granian**": ["32.0 (30.0-40.0)"],
        "smg cache_aware": ["80.0 (60.0-80.0)"],
    }
    assert rows(report, "### Ratio of CPU per request to the best cache-aware Rust router") == {
        "**xinf granian**": ["0.50 (0.40-0.50)"],
        "smg cache_aware": ["1"],
    }
    assert "best round-robin Rust router" not in report.split("## Whole answers")[1].split("## Contestants")[0]


def test_machine_versions_and_source_are_named() -> None:
    report = render(made_run([]), "2026-01-02-0123456789.json")
    for what in ("A Processor", "6.1.0", "0123456789", "results/2026-01-02-0123456789.json", "2 min"):
        assert what in report
    assert rows(report, "## Contestants")["smg cache_aware"] == [
        "cache-aware Rust router",
        "1.2.3",
        "1.2",
        "as it comes",
    ]


def test_a_noisy_machine_and_a_quick_run_are_said_to_be_so() -> None:
    run = made_run([])
    assert "noisy" not in render(run, "x.json")
    assert "others used 40% of its cores" in render(msgspec.structs.replace(run, background_share=0.4), "x.json")
    assert "A quick run" in render(msgspec.structs.replace(run, is_quick=True), "x.json")


def test_missed_targets_are_said_to_be_missed() -> None:
    run = made_run([*samples("xinf granian", SMALL, [90, 90]), *samples("smg cache_aware", SMALL, [100, 100])])
    line = next(line for line in render(run, "x.json").split("\n") if "smg cache_aware | ≤ 0.7 ×" in line)
    assert "0.90 (0.90-0.90) × | **missed** |" in line


def test_unsound_runs_and_a_busy_load_core_are_marked() -> None:
    ours = [
        msgspec.structs.replace(sample, unfinished=1, load_core_share=0.97)
        for sample in samples("xinf granian", "streams-64-10ms", [20.0], "gateway_us_per_chunk")
    ]
    assert rows(render(made_run(ours), "x.json"), "### Gateway CPU per chunk, µs") == {"**xinf granian**": ["20.0 ⚠ †"]}


def test_memory_shows_every_step() -> None:
    mib = 2**20
    (sample,) = samples("xinf granian", "memory", [0])
    grown = msgspec.structs.replace(sample, rss_start_bytes=80 * mib, rss_bytes=(90 * mib, 110 * mib))
    assert rows(render(made_run([grown]), "x.json"), "Resident MiB of a fresh gateway, distinct prompts.") == {
        "xinf granian": ["80", "90", "110", "30"]
    }


def test_failures_are_listed_with_their_reason() -> None:
    failed = Sample(contestant="smg cache_aware", cell=SMALL, repeat=0, seed=0, failure="did not start: no port\nmore")
    assert "- smg cache_aware: did not start: no port\n" in render(made_run([failed]), "x.json")


def test_results_survive_the_file(tmp_path: Path) -> None:
    run = made_run(samples("xinf granian", SMALL, [30, 32, 40]))
    path = write(run, tmp_path)
    assert path.name == "2026-01-02-0123456789.json"
    assert read(path) == run
    assert len(path.read_text().splitlines()) == 5  # one sample a line


def test_results_of_xinf_alone_do_not_take_the_place_of_a_comparison(tmp_path: Path) -> None:
    run = made_run([])
    write(msgspec.structs.replace(run, question="gateway"), tmp_path)
    assert of_peers(tmp_path) == []
    comparison = write(run, tmp_path)
    assert of_peers(tmp_path) == [comparison]


def test_report_in_the_checkout_is_what_its_results_say() -> None:
    found = of_peers(RESULTS)
    assert REPORT.exists() == bool(found), "results and report are committed together: `python -m benchmarks.render`"
    if found:
        assert REPORT.read_text() in {whole_report(path) for path in found}

"""What the micro-benchmarks share. `pytest benchmarks --benchmark-only` measures; without it they only run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.measure import Record, interleaved, record, save, spread

ROUNDS = 9
ROUND_S = 0.03
METHOD = (
    f"{ROUNDS} rounds after a warm-up, each of about {ROUND_S * 1000:.0f} ms per subject; the subjects of a case take "
    "turns in rotated order in one process, garbage collection between rounds; a value is the mean of a round, in CPU "
    "time of the process"
)

Compare = Callable[..., dict[str, list[float]]]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """`--benchmark-only` says what is wanted; pyproject.toml disables benchmarks for the tests' sake."""
    if config.getoption("benchmark_only"):
        config.option.benchmark_enable = True


@pytest.fixture(scope="session")
def is_full(request: pytest.FixtureRequest) -> bool:
    """Whether to measure at full size, not only to run."""
    return bool(request.config.getoption("benchmark_enable"))


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest, is_full: bool) -> Iterator[list[Record]]:
    """The records of a file, written to results/ when its last benchmark is done."""
    kept: list[Record] = []
    yield kept
    if is_full and kept:
        path = save(request.module.__name__.rsplit(".", 1)[-1].removeprefix("bench_"), kept, METHOD)
        print(f"\n{path}")
        for one in kept:
            print(f"  {one['case']:44} {one['subject']:28} {spread(one['values'])} {one['unit']}")


@pytest.fixture
def compare(request: pytest.FixtureRequest, records: list[Record], is_full: bool) -> Compare:
    """Time subjects against each other and keep the values: compare(case, {name: call}, unit=, scale=) -> seconds."""
    question = request.module.__doc__.splitlines()[0]

    def run(
        case: str, subjects: dict[str, Callable[[], object]], unit: str = "us", scale: float = 1e6
    ) -> dict[str, list[float]]:
        rounds, round_s = (ROUNDS, ROUND_S) if is_full else (1, 0.0)
        values = interleaved(subjects, rounds=rounds, round_s=round_s)
        for name, seconds in values.items():
            records.append(record(question, case, name, unit, [value * scale for value in seconds]))
        return values

    return run


@pytest.fixture
def note(request: pytest.FixtureRequest, records: list[Record]) -> Callable[..., None]:
    """Keep values that were measured otherwise: note(case, subject, unit, values)."""
    question = request.module.__doc__.splitlines()[0]

    def keep(case: str, subject: str, unit: str, values: list[float]) -> None:
        records.append(record(question, case, subject, unit, values))

    return keep

"""What records amount to, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.exact.record import Record

_COLUMNS = (
    "template", "block", "mode", "state", "requests", "exact", "≤1", "≤2", "≤1 without lost races", "walk ≤1", "worst",
    "over / lost", "under", "hit", "prompt / answer", "misses by kind",
)  # fmt: skip


class Row(msgspec.Struct, frozen=True):
    """One cell of the experiment. Shares are in percent of all its requests."""

    template: str
    block_tokens: int
    mode: str
    state: str
    n: int
    exact_pct: float
    within_1_pct: float
    within_2_pct: float
    raceless_pct: float  # within one block, requests left out whose race the engine lost
    walk_1_pct: float | None  # within one block, of a walk over token ids
    worst: int  # blocks; the error that is farthest from 0
    n_over: int  # by more than one block
    n_under: int
    n_lost: int  # of those over
    hit_pct: float  # of prompt tokens
    prompt_tokens: float  # mean
    completion_tokens: float  # mean
    misses: dict[str, int]  # by more than one block and no lost race, by kind


def row(records: Sequence[Record]) -> Row:
    """Sum up the records of one cell. There must be one."""
    first, n = records[0], len(records)
    errors = [record.error_blocks for record in records]
    counted = [record for record in records if not record.is_lost]
    walked = [
        abs(record.walked - record.cached) // record.block_tokens for record in records if record.walked is not None
    ]
    states = Counter(record.state for record in records)
    return Row(
        template=first.template,
        block_tokens=first.block_tokens,
        mode=first.mode,
        state="/".join(state for state, _ in states.most_common()),
        n=n,
        exact_pct=_share(errors, 0),
        within_1_pct=_share(errors, 1),
        within_2_pct=_share(errors, 2),
        raceless_pct=_share([record.error_blocks for record in counted], 1),
        walk_1_pct=_share(walked, 1) if walked else None,
        worst=max(errors, key=lambda error: (abs(error), error)),
        n_over=sum(error > 1 for error in errors),
        n_under=sum(error < -1 for error in errors),
        n_lost=sum(record.is_lost for record in records),
        hit_pct=100
        * sum(record.cached for record in records)
        / max(1, sum(record.prompt_tokens for record in records)),
        prompt_tokens=sum(record.prompt_tokens for record in records) / n,
        completion_tokens=sum(record.completion_tokens for record in records) / n,
        misses=dict(Counter(record.kind for record in counted if abs(record.error_blocks) > 1).most_common()),
    )


def _share(errors: Sequence[int], limit: int) -> float:
    return 100 * sum(abs(error) <= limit for error in errors) / len(errors) if errors else 100.0


def markdown(rows: Iterable[Row]) -> str:
    """Show rows as a table."""
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for each in rows:
        walk = "" if each.walk_1_pct is None else f"{each.walk_1_pct:.2f}"
        misses = ", ".join(f"{kind} {count}" for kind, count in each.misses.items())
        lines.append(
            f"| {each.template} | {each.block_tokens} | {each.mode} | {each.state} | {each.n} | {each.exact_pct:.2f}"
            f" | {each.within_1_pct:.2f} | {each.within_2_pct:.2f} | {each.raceless_pct:.2f} | {walk} | {each.worst:+d}"
            f" | {each.n_over} / {each.n_lost} | {each.n_under} | {each.hit_pct:.0f} %"
            f" | {each.prompt_tokens:.0f} / {each.completion_tokens:.0f} | {misses} |"
        )
    return "\n".join(lines)

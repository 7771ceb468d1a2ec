"""Replicas beside each other, as `xinf why` and `xinf route` show them."""

from __future__ import annotations

from collections.abc import Sequence

from xinf.cli.table import print_table
from xinf.core.decision import Candidate, Cost

_COLUMNS = ("REPLICA", "STATE", "MATCHED", "CACHED", "COST", "QUEUED", "PREFILL", "DECODE", "FULL", "HERE", "")
_CLOSED = {
    "not_ready": "not ready",
    "tried": "tried already",
    "no_adapter": "has not the adapter",
    "full": "at its limit",
}


def print_candidates(candidates: Sequence[Candidate], *, n_all: int) -> None:
    """A table, the cheapest first, and who came second."""
    print_table(_COLUMNS, candidate_rows(candidates))
    if n_all > len(candidates):
        print(f"and {n_all - len(candidates)} dearer ones")
    line = runner_up_line(candidates)
    if line is not None:
        print(line)


def candidate_rows(candidates: Sequence[Candidate]) -> list[Sequence[str]]:
    """One row per replica; matched and cached are tokens, costs are times."""
    second = runner_up(candidates)
    return [
        (
            one.replica,
            one.index_state,
            str(one.matched_tokens),
            str(one.predicted_cached_tokens),
            milliseconds(one.cost.total_s),
            milliseconds(one.cost.queued_s),
            milliseconds(one.cost.prefill_s),
            milliseconds(one.cost.decode_s),
            milliseconds(one.cost.full_s),
            str(one.inflight),
            _remark(one, is_second=one is second),
        )
        for one in candidates
    ]


def runner_up(candidates: Sequence[Candidate]) -> Candidate | None:
    """The cheapest that could have been picked and was not."""
    others = [one for one in candidates if one.closed is None and one.picked is None]
    return min(others, key=lambda one: one.cost.total_s, default=None)


def runner_up_line(candidates: Sequence[Candidate]) -> str | None:
    """By how much the second was behind."""
    first = next((one for one in candidates if one.picked is not None), None)
    second = runner_up(candidates)
    if first is None or second is None:
        return None
    by_s = second.cost.total_s - first.cost.total_s
    if by_s == 0:
        return f"{second.replica} costs exactly the same; such ties take turns"
    if by_s < 0:
        return f"{second.replica} would cost {milliseconds(-by_s)} less; the policy goes by {first.picked}"
    return f"{second.replica} comes second, {milliseconds(by_s)} behind"


def cost_text(cost: Cost) -> str:
    """A cost with its terms, in one line."""
    terms = {"queued": cost.queued_s, "prefill": cost.prefill_s, "decode": cost.decode_s, "full": cost.full_s}
    shown = " + ".join(f"{name} {milliseconds(seconds)}" for name, seconds in terms.items() if seconds)
    return f"{milliseconds(cost.total_s)}" + (f" = {shown}" if shown else "")


def milliseconds(seconds: float | None) -> str:
    """A time as it is read best here: 0.12 ms, 34.5 ms, 1.250 s."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.3f} s"
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2f} ms"


def _remark(one: Candidate, *, is_second: bool) -> str:
    if one.picked is not None:
        return f"picked ({one.picked})"
    if one.closed is not None:
        return _CLOSED.get(one.closed, one.closed)
    return "runner-up" if is_second else ""

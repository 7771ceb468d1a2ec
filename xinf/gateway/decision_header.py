"""The `x-xinf-decision` header of an answer: `key=value` pairs with semicolons between them. docs/reference/http.md."""

from __future__ import annotations

from collections.abc import Sequence

from xinf.gateway.client import RawHeaders
from xinf.router import CandidateView, Choice

NAME = b"x-xinf-decision"
MAX_ID_CHARACTERS = 128
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@")


def with_decision(
    headers: RawHeaders,
    choice: Choice,
    candidates: Sequence[CandidateView] | None,
    *,
    n_retries: int,
) -> RawHeaders:
    """The headers of an answer with the decision of its last attempt, at most some 600 bytes of it."""
    cost_s = choice.queued_s + choice.prefill_s + choice.decode_s + choice.full_s
    pairs = [
        ("replica", _safe(choice.replica_id)),
        ("reason", choice.reason),
        ("state", choice.index_state),
        ("matched_bytes", choice.matched_bytes),
        ("matched_tokens", choice.matched_tokens),
        ("predicted_cached_tokens", choice.predicted_cached_tokens),
        ("cost_ms", _ms(cost_s)),
        ("queued_ms", _ms(choice.queued_s)),
        ("prefill_ms", _ms(choice.prefill_s)),
        ("decode_ms", _ms(choice.decode_s)),
        ("full_ms", _ms(choice.full_s)),
    ]
    second = _runner_up(candidates or (), choice.replica_id)
    if second is not None:
        pairs += [("runner_up", _safe(second.replica_id)), ("runner_up_cost_ms", _ms(second.terms.total_s))]
    pairs.append(("retries", n_retries))
    text = ";".join(f"{key}={value}" for key, value in pairs)
    return [*(pair for pair in headers if pair[0] != NAME), (NAME, text.encode("ascii", "replace"))]


def _runner_up(views: Sequence[CandidateView], replica_id: str) -> CandidateView | None:
    """The cheapest of the others that could have taken the request."""
    return next((view for view in views if view.is_open and view.replica_id != replica_id), None)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


def _safe(name: str) -> str:
    """A name as it can stand in a header: no separator, no end of line, not endless."""
    return "".join(character if character in _SAFE else "?" for character in name[:MAX_ID_CHARACTERS])

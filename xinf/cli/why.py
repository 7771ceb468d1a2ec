"""`xinf why`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import quote

import typer

from xinf.cli.admin import AdminClient
from xinf.cli.caches import Caches, cache_text, followed_text, read_caches
from xinf.cli.candidates import cost_text, milliseconds, print_candidates
from xinf.cli.options import AdminKey, ConfigFile, DataDir, GatewayUrl, Json, Server
from xinf.cli.session import open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.decision import Chosen, Decision, Found
from xinf.core.units import format_seconds

_COLUMNS = ("REQUEST", "AGE", "MODEL", "REPLICA", "REASON", "CACHED", "PREDICTED", "PROMPT", "FIRST", "TOOK", "STATUS")


def why(
    request_id: Annotated[
        str | None,
        typer.Argument(metavar="REQUEST_ID", help="The answer's `x-request-id`; without: the last ones."),
    ] = None,
    last: Annotated[
        int, typer.Option("--last", "-n", min=1, max=1000, metavar="N", help="How many of the last ones.")
    ] = 20,
    url: GatewayUrl = None,
    admin_key: AdminKey = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Say why a request went where it went, and what came of it. Without an id: the last requests."""
    session = open_session(config, data_dir, server)
    client = AdminClient(session, url=url, key=admin_key)
    if request_id is None:
        found = client.get(f"/admin/decisions?last={last}", Found)
    else:
        found = client.get(f"/admin/decisions/{quote(request_id, safe='')}", Found)
    if json:
        print_json(found)
    elif request_id is not None:
        print_account(found.decisions, run(read_caches(session, url=url)), time.time())
    elif found.decisions:
        print_table(_COLUMNS, [summary_row(decision, time.time()) for decision in found.decisions])
    else:
        print("no request has ended yet" if any(one.size for one in found.reach) else "gateway.recent_decisions is 0")


def summary_row(decision: Decision, now_s: float) -> Sequence[str]:
    """One request in a line."""
    chosen, usage = decision.chosen, decision.usage
    return (
        decision.request_id,
        format_seconds(max(0.0, now_s - decision.at_s)),
        decision.asked,
        "-" if chosen is None else chosen.replica,
        "-" if chosen is None else chosen.reason,
        "-" if usage is None else str(usage.cached_tokens),
        "-" if chosen is None else str(chosen.predicted_cached_tokens),
        "-" if usage is None else str(usage.prompt_tokens),
        milliseconds(decision.first_byte_s),
        milliseconds(decision.duration_s),
        str(decision.status or "-"),
    )


def print_account(decisions: Sequence[Decision], caches: Caches, now_s: float) -> None:
    """Tell the newest of several requests of one id."""
    decision = decisions[0]
    for line in [*account(decision, now_s), *cache_lines(decision, caches)]:
        print(line)
    if decision.candidates is not None:
        print()
        print_candidates(decision.candidates, n_all=decision.n_candidates)
    else:
        print("\nthe other replicas were not kept: ask with the header `x-xinf-decision: 1`,")
        print("or set gateway.candidates_every (one in so many requests keeps them)")
    if len(decisions) > 1:
        print(f"\n{len(decisions) - 1} earlier with the same id: --json shows them")


def account(decision: Decision, now_s: float) -> list[str]:
    """What was decided, why, and what came true."""
    ago = format_seconds(max(0.0, now_s - decision.at_s))
    at = time.strftime("%H:%M:%S", time.localtime(decision.at_s))
    lines = [
        f"{decision.request_id}  POST {decision.path}  {at}, {ago} ago, gateway process {decision.worker}",
        f"  model      {_model(decision)}",
    ]
    for attempt in decision.earlier:
        lines.append(f"  before     {attempt.replica} ({attempt.reason}) ended with {attempt.error}; moved on")
    chosen = decision.chosen
    if chosen is None:
        lines.append("  replica    none could take it")
    else:
        lines += _chosen_lines(decision, chosen)
    return [*lines, *_outcome_lines(decision)]


def cache_lines(decision: Decision, caches: Caches) -> list[str]:
    """How the chosen replica's cache is known by now: events that come late or are lost explain what was off."""
    replica = None if decision.chosen is None else decision.chosen.replica
    if replica is None or not (views := caches.views.get(replica)):
        return []  # it is gone, or the gateway does not tell
    return [f"  cache now  {cache_text(views)}{followed_text(caches.followed.get(replica))}"]


def _model(decision: Decision) -> str:
    same = decision.asked == decision.deployment
    return decision.asked if same else f"{decision.asked}, served by {decision.deployment}"


def _chosen_lines(decision: Decision, chosen: Chosen) -> list[str]:
    waited = "" if decision.waited_s is None else f", chosen after {milliseconds(decision.waited_s)}"
    known = f"{chosen.matched_bytes} bytes of text matched, {chosen.matched_tokens} tokens, view {chosen.index_state}"
    return [
        f"  replica    {chosen.replica}{waited}",
        f"  because    {_REASONS.get(chosen.reason, chosen.reason)}",
        f"  predicted  {chosen.predicted_cached_tokens} of {chosen.prompt_tokens} prompt tokens cached ({known})",
        f"  cost       {cost_text(chosen.cost)}",
        f"  queue      {chosen.queued_tokens} tokens of prefill there",
    ]


_REASONS = {
    "prefix": "the cheapest, with part of the prompt in its cache (prefix)",
    "load": "the cheapest, with nothing of the prompt known in its cache (load)",
    "session": "it is the favourite of the request's session (session)",
    "round_robin": "it was its turn (round_robin)",
}


def _outcome_lines(decision: Decision) -> list[str]:
    lines = []
    usage, chosen = decision.usage, decision.chosen
    if usage is not None:
        text = f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached"
        if chosen is not None:
            off = usage.cached_tokens - chosen.predicted_cached_tokens
            text += ", as predicted" if off == 0 else f", {abs(off)} {'more' if off > 0 else 'fewer'} than predicted"
        lines.append(f"  came true  {text}; {usage.completion_tokens} tokens generated")
    error = "" if decision.error is None else f" ({decision.error})"
    first = "" if decision.first_byte_s is None else f", first byte after {milliseconds(decision.first_byte_s)}"
    took = "" if decision.duration_s is None else f", {milliseconds(decision.duration_s)} in all"
    status = "" if decision.status is None else f" {decision.status}"
    return [*lines, f"  outcome    {decision.outcome}{status}{error}{first}{took}"]

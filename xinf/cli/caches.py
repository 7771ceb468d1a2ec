"""How well the gateway knows the cache of each replica: it routes by that, and says so in its metrics."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Mapping

import msgspec

from xinf.cli.session import Session, find_gateway
from xinf.core.errors import XinfError

TIMEOUT_S = 1.0  # a list of replicas must not wait for a gateway that hangs
_VIEW = re.compile(r'^xinf_replica_view\{replica="([^"\\]*)",view="(\w+)"\} (\d+)$', re.MULTILINE)

_FOLLOWED = re.compile(
    r"^xinf_(kv_event_losses_total|kv_event_lag_seconds|unbound_prompts_total)"
    r'\{replica="([^"\\]*)"(?:,of="(\w+)")?\} (\S+)$',
    re.MULTILINE,
)

Views = dict[str, dict[str, int]]
"""By replica: how many gateway processes know its cache how ("exact", "approx", "off")."""


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """How the events of one replica's cache come, since its engine began."""

    n_losses: int = 0
    lag_mean_s: float = 0.0
    lag_max_s: float = 0.0
    n_unbound: int = 0  # prompts whose text could not be told


class Caches(msgspec.Struct, frozen=True):
    """What the gateway says of the caches of all replicas."""

    views: Views
    followed: dict[str, Followed]  # by replica; those whose engines say what they hold


async def read_caches(session: Session, *, url: str | None = None) -> Caches:
    """Ask the gateway, this installation's or another. Empty when it does not tell within a second.

    One of another host may want a key for its metrics.
    """
    try:
        metrics = await _read_metrics(url or await find_gateway(session))
    except (XinfError, TimeoutError, OSError):
        return Caches({}, {})
    return Caches(views_of(metrics), followed_of(metrics))


def views_of(metrics: str) -> Views:
    """What a page of metrics, which are summed over all gateway processes, says of caches."""
    found: dict[str, Counter[str]] = {}
    for replica, view, n_processes in _VIEW.findall(metrics):
        found.setdefault(replica, Counter())[view] += int(n_processes)
    return {replica: dict(views) for replica, views in found.items()}


def followed_of(metrics: str) -> dict[str, Followed]:
    """What a page of metrics says of the events that caches are known by."""
    found: dict[str, dict[str, float]] = {}
    for name, replica, of, value in _FOLLOWED.findall(metrics):
        found.setdefault(replica, {})[of or name] = float(value)
    return {
        replica: Followed(
            n_losses=int(values.get("kv_event_losses_total", 0)),
            lag_mean_s=values.get("mean", 0.0),
            lag_max_s=values.get("max", 0.0),
            n_unbound=int(values.get("unbound_prompts_total", 0)),
        )
        for replica, values in found.items()
    }


def followed_text(followed: Followed | None) -> str:
    """Of the events behind a view: how late they come, whether some were lost; empty where none are followed."""
    if followed is None:
        return ""
    parts = [f"events {1000 * followed.lag_mean_s:.0f} ms old on average, {1000 * followed.lag_max_s:.0f} at most"]
    if followed.n_losses:
        parts.append("lost once" if followed.n_losses == 1 else f"lost {followed.n_losses} times")
    if followed.n_unbound:
        parts.append(f"{followed.n_unbound} prompts not told")
    return "; " + "; ".join(parts)


def cache_text(views: Mapping[str, int] | None) -> str:
    """One word, with the number of processes when they differ, which they do for moments; - for not known."""
    if not views:
        return "-"
    if len(views) == 1:
        return next(iter(views))
    return ", ".join(f"{view} {n}" for view, n in sorted(views.items(), key=lambda item: (-item[1], item[0])))


async def _read_metrics(url: str) -> str:
    import httpx

    verify = ssl.create_default_context() if url.startswith("https:") else False
    try:
        async with httpx.AsyncClient(trust_env=False, verify=verify) as client, asyncio.timeout(TIMEOUT_S):
            answer = await client.get(f"{url.rstrip('/').removesuffix('/v1')}/metrics")
    except httpx.HTTPError as error:
        raise OSError(f"the gateway at {url} gave no metrics: {error}") from error
    return answer.text if answer.status_code == 200 else ""

"""How well the gateway knows the cache of each replica: it routes by that, and says so in its metrics."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Mapping

from xinf.cli.session import Session, find_gateway
from xinf.core.errors import XinfError

TIMEOUT_S = 1.0  # a list of replicas must not wait for a gateway that hangs
_VIEW = re.compile(r'^xinf_replica_view\{replica="([^"\\]*)",view="(\w+)"\} (\d+)$', re.MULTILINE)

Views = dict[str, dict[str, int]]
"""By replica: how many gateway processes know its cache how ("exact", "approx", "off")."""


async def read_caches(session: Session) -> Views:
    """Ask the gateway. Empty when none tells within a second: one of another host may want a key for its metrics."""
    try:
        return views_of(await _read_metrics(await find_gateway(session)))
    except (XinfError, TimeoutError, OSError):
        return {}


def views_of(metrics: str) -> Views:
    """What a page of metrics, which are summed over all gateway processes, says of caches."""
    found: dict[str, Counter[str]] = {}
    for replica, view, n_processes in _VIEW.findall(metrics):
        found.setdefault(replica, Counter())[view] += int(n_processes)
    return {replica: dict(views) for replica, views in found.items()}


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

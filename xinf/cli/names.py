"""Completion of names that only the store knows. Quick or nothing: nobody waits for a shell's TAB."""

from __future__ import annotations

_TIMEOUT_S = 1.0


def complete_deployments(incomplete: str) -> list[str]:
    """Names of deployments that start like this."""
    import asyncio

    from xinf.core.config import load
    from xinf.core.errors import XinfError
    from xinf.core.records import DEPLOYMENTS
    from xinf.meta import connect

    async def read() -> list[str]:
        store = connect(load().paths, timeout_s=_TIMEOUT_S)
        try:
            return [kv.key.removeprefix(DEPLOYMENTS) for kv in (await store.list(DEPLOYMENTS + incomplete)).items]
        finally:
            await store.close()

    try:
        return asyncio.run(read())
    except XinfError:
        return []

"""Holds a wish to the commit that its model is now, so that all replicas, restarts and nodes run the same files."""

from __future__ import annotations

import asyncio
import os

import msgspec

from xinf.cli.known import Known
from xinf.core.config import Config
from xinf.core.errors import XinfError
from xinf.core.records import EngineSpec


async def pin_model(config: Config, spec: EngineSpec, known: Known) -> EngineSpec:
    """Add the commit of a hub's model; without one if neither the hub nor this host's cache can tell it.

    `known`: what was read of the model already; its hub is asked only if nobody asked it for that.
    """
    from xinf.registry import find_commit, find_sources, is_commit, reference_of

    reference = reference_of(spec)
    if reference is None or spec.commit is not None:
        return spec
    commit = None if known.facts is None else known.facts.revision
    if commit is None:
        has_failed = known.why is not None
        sources = find_sources({**os.environ, **spec.env}, config.registry, offline=True if has_failed else None)
        try:
            commit = await asyncio.to_thread(find_commit, reference, sources)
        except XinfError:
            return spec  # the node that starts it may be let in, and says what is wrong if not
    return msgspec.structs.replace(spec, commit=commit) if commit is not None and is_commit(commit) else spec

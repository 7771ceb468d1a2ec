"""Writes wishes: a deployment made, changed, left alone or removed."""

from __future__ import annotations

from typing import Literal

import msgspec

from xinf.core.errors import Conflict, NotFound
from xinf.core.records import DeploymentRecord
from xinf.meta import Records

MAX_TRIES = 8
UP_OWNER = "up"  # of deployments that `xinf up` made and removes


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a wish. `updated`: a new generation, replicas are replaced; `adjusted`: only counts or routing."""

    outcome: Literal["created", "unchanged", "adjusted", "updated"]
    record: DeploymentRecord


async def apply_deployment(records: Records, wish: DeploymentRecord, now_s: float) -> Applied:
    """Make the deployment of that name what `wish` says; generation, age and owner follow from what is there.

    Raises: Conflict when another deployment serves one of its names, or it keeps changing.
    """
    await _check_names(records, wish)
    for _ in range(MAX_TRIES):
        found = await records.get(DeploymentRecord, wish.name)
        try:
            if found is None:
                made = msgspec.structs.replace(wish, generation=1, created_s=now_s)
                await records.create(DeploymentRecord, wish.name, made)
                return Applied(outcome="created", record=made)
            applied = merge(found[0], wish)
            if applied.record != found[0]:
                await records.replace(DeploymentRecord, wish.name, applied.record, found[1])
            return applied
        except Conflict:
            continue
    raise Conflict(f"deployment {wish.name} changed {MAX_TRIES} times while it was being written")


def merge(present: DeploymentRecord, wish: DeploymentRecord) -> Applied:
    """What a deployment becomes when it is wished for again."""
    # What an `up` left may be taken over by whoever wishes for it; what somebody launched stays theirs.
    owner = wish.owner if present.owner is not None else None
    merged = msgspec.structs.replace(
        wish,
        spec=wish.spec.held_as(present.spec),
        generation=present.generation,
        created_s=present.created_s,
        owner=owner,
        schema=present.schema,
    )
    if merged.spec != present.spec:
        return Applied(outcome="updated", record=msgspec.structs.replace(merged, generation=present.generation + 1))
    # What is known of the model is no wish.
    is_same = msgspec.structs.replace(merged, model=present.model, model_identity=present.model_identity) == present
    return Applied(outcome="unchanged" if is_same else "adjusted", record=merged)


async def remove_deployment(records: Records, name: str) -> None:
    """Delete a deployment; its replicas are drained and go. Raises: NotFound naming those that exist."""
    if not await records.delete(DeploymentRecord, name):
        names = ", ".join(record.name for record, _ in await records.list(DeploymentRecord))
        raise NotFound(f"there is no deployment {name!r}", remedy=f"these exist: {names}" if names else "none exists")


async def _check_names(records: Records, wish: DeploymentRecord) -> None:
    mine = set(names_of(wish))
    for other, _ in await records.list(DeploymentRecord):
        shared = mine & set(names_of(other))
        if other.name != wish.name and shared:
            raise Conflict(
                f"deployment {other.name} already serves the name {min(shared)!r}",
                remedy=f"choose other names with --name and --served-name, or `xinf stop {other.name}`",
                deployment=other.name,
            )


def names_of(record: DeploymentRecord) -> tuple[str, ...]:
    """What clients may call it."""
    return record.spec.served_names or (record.name,)

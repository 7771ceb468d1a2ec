"""What becomes of a wish: made, left alone, adjusted, or a new generation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from xinf.core.errors import Conflict, NotFound
from xinf.core.ids import DeploymentName
from xinf.core.records import DeploymentRecord, EngineSpec, RoutingPolicy
from xinf.meta import LmdbStore, Records
from xinf.serve import apply_deployment, remove_deployment
from xinf.serve.deployment import UP_OWNER, merge

WISH = DeploymentRecord(name=DeploymentName("a"), spec=EngineSpec(model="m", engine="sim", served_names=("a",)))
PRESENT = replace(WISH, generation=3, created_s=7.0)


@pytest.fixture
async def records(short_dir: Path) -> AsyncIterator[Records]:
    store = LmdbStore.open(short_dir / "meta", max_bytes=64 << 20, history_revisions=1000, history_age_s=60)
    yield Records(store)
    await store.close()


def test_same_wish_changes_nothing() -> None:
    applied = merge(PRESENT, WISH)
    assert applied.outcome == "unchanged"
    assert applied.record == PRESENT


def test_count_and_policy_keep_the_generation() -> None:
    applied = merge(PRESENT, replace(WISH, replicas=4, policy=RoutingPolicy.SESSION))
    assert applied.outcome == "adjusted"
    assert (applied.record.generation, applied.record.replicas, applied.record.created_s) == (3, 4, 7.0)


def test_wish_without_a_commit_keeps_the_one_that_was_meant() -> None:
    spec = EngineSpec(model="org/name", revision="v1")
    pinned = replace(PRESENT, spec=replace(spec, commit="c" * 40))
    assert merge(pinned, replace(WISH, spec=spec)).outcome == "unchanged"
    moved = merge(pinned, replace(WISH, spec=replace(spec, commit="d" * 40)))
    assert (moved.outcome, moved.record.spec.commit) == ("updated", "d" * 40)
    other = merge(pinned, replace(WISH, spec=replace(spec, revision="v2")))
    assert (other.outcome, other.record.spec.commit) == ("updated", None)


def test_another_spec_is_a_new_generation() -> None:
    applied = merge(PRESENT, replace(WISH, spec=replace(WISH.spec, max_model_len=99)))
    assert applied.outcome == "updated"
    assert applied.record.generation == 4


def test_what_somebody_launched_stays_theirs() -> None:
    assert merge(PRESENT, replace(WISH, owner=UP_OWNER)).record.owner is None
    assert merge(replace(PRESENT, owner=UP_OWNER), replace(WISH, owner=UP_OWNER)).record.owner == UP_OWNER
    assert merge(replace(PRESENT, owner=UP_OWNER), WISH).record.owner is None


async def test_apply_creates_and_repeats(records: Records) -> None:
    first = await apply_deployment(records, WISH, 5.0)
    assert (first.outcome, first.record.created_s, first.record.generation) == ("created", 5.0, 1)
    assert (await apply_deployment(records, WISH, 6.0)).outcome == "unchanged"
    changed = await apply_deployment(records, replace(WISH, spec=replace(WISH.spec, dtype="float16")), 7.0)
    assert (changed.outcome, changed.record.generation) == ("updated", 2)
    found = await records.get(DeploymentRecord, "a")
    assert found is not None
    assert found[0] == changed.record


async def test_apply_refuses_a_name_that_another_serves(records: Records) -> None:
    await apply_deployment(records, WISH, 5.0)
    with pytest.raises(Conflict, match="deployment a already serves the name 'a'"):
        await apply_deployment(records, replace(WISH, name=DeploymentName("b")), 6.0)


async def test_remove_names_those_that_exist(records: Records) -> None:
    await apply_deployment(records, WISH, 5.0)
    with pytest.raises(NotFound, match="there is no deployment 'b'; these exist: a"):
        await remove_deployment(records, "b")
    await remove_deployment(records, "a")
    assert await records.list(DeploymentRecord) == []

"""What is held, kept record by record: always as if it had just been counted."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.worlds import GIB, holder
from xinf.core.ids import NodeName
from xinf.core.records import Phase, ReplicaRecord
from xinf.scheduler.claims import CPU, Claims, Draft

A, B = NodeName("a"), NodeName("b")


@st.composite
def replicas(draw: st.DrawFn) -> ReplicaRecord:
    name = draw(st.sampled_from("xyz"))
    record = holder(
        draw(st.sampled_from("ab")),
        *draw(st.lists(st.sampled_from(["G0", "G1"]), max_size=2, unique=True)),
        name=name,
        number=draw(st.integers(0, 3)),
        gib=draw(st.sampled_from([None, 3])),
        shares=draw(st.booleans()),
        devices=draw(st.sampled_from([(), ("cpu",)])),
        phase=draw(st.sampled_from(list(Phase))),
        target=draw(st.sampled_from(["run", "stop"])),
    )
    return msgspec.structs.replace(record, node=None) if draw(st.booleans()) and draw(st.booleans()) else record


@given(steps=st.lists(st.tuples(replicas(), st.booleans()), max_size=40))
@settings(max_examples=300, deadline=None)
def test_claims_that_follow_are_those_that_are_counted_anew(steps: list[tuple[ReplicaRecord, bool]]) -> None:
    followed = Claims()
    present: dict[str, ReplicaRecord] = {}
    for record, is_deleted in steps:
        if is_deleted:
            followed.drop(record.id)
            present.pop(record.id, None)
        else:
            followed.put(record)
            present[record.id] = record
        for node in (A, B):
            followed.on(node)  # so that something is remembered that the next step makes wrong
    counted = Claims(present.values())
    for node in (A, B):
        assert followed.on(node) == counted.on(node)
        assert dict(followed.held_on(node)) == dict(counted.held_on(node))
    for mine, theirs in ((followed.pending, counted.pending), (followed.stopping, counted.stopping)):
        assert sorted(r.id for r in mine) == sorted(r.id for r in theirs)
    assert sorted(followed.deployments) == sorted(counted.deployments)


@given(base=st.lists(replicas(), max_size=8), changes=st.lists(st.tuples(replicas(), st.booleans()), max_size=12))
@settings(max_examples=200, deadline=None)
def test_draft_changes_nothing_below_it(base: list[ReplicaRecord], changes: list[tuple[ReplicaRecord, bool]]) -> None:
    claims = Claims(base)
    before = {node: claims.on(node) for node in (A, B)}
    draft = Draft(claims)
    held = {node: dict(claims.held_on(node)) for node in (A, B)}
    for record, is_added in changes:
        if record.node is None:
            continue
        fork = draft.fork()
        if is_added:
            draft.add(record)
            held[record.node][record.id] = record
        else:
            draft.remove(record)
            held[record.node].pop(record.id, None)
        assert dict(draft.held_on(record.node)) == held[record.node]
        fork.remove(record)
        assert dict(draft.held_on(record.node)) == held[record.node], "a fork is another's"
    assert {node: claims.on(node) for node in (A, B)} == before


def test_use_of_a_device_says_who_how_much_and_whether_another_may_come() -> None:
    claims = Claims(
        [
            holder("a", "G0", name="x", gib=3, shares=True),
            holder("a", "G0", name="y", gib=4, shares=True),
            holder("a", "G1", name="z", gib=5),
            holder("a", devices=("cpu",), name="p", gib=6),
        ]
    )
    tally = claims.on(A)
    assert tally.n_replicas == 4
    assert (tally.uses["G0"].holders, tally.uses["G0"].n_bytes) == (("x-1", "y-1"), 7 * GIB)
    assert [tally.uses[name].is_shareable for name in ("G0", "G1", CPU)] == [True, False, False]
    assert tally.uses[CPU].n_bytes == 6 * GIB


def test_replica_holds_until_it_is_stopped() -> None:
    for phase in Phase:
        tally = Claims([holder("a", "G0", phase=phase, target="stop")]).on(A)
        assert ("G0" in tally.uses) is (phase is not Phase.STOPPED)

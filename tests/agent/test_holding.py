"""What engines hold of the host's memory: pure rules, one case each."""

from __future__ import annotations

import pytest

from xinf.agent.holding import EngineUse, Holding, read_holdings, total_bytes, unplanned_bytes
from xinf.core.ids import ReplicaId
from xinf.device import DeviceProcess

GIB = 1 << 30
OURS = ReplicaId("ours-1")
GROUPS = {7: [7, 8], 9: [9]}


def private(pid: int) -> int:
    """Every process makes the host use a gigabyte."""
    return GIB * (pid > 0)


def engine(
    *uuids: str, need: int | None = None, is_ready: bool = True, is_orphan: bool = False, leader: int = 7
) -> EngineUse:
    return EngineUse(
        replica=OURS,
        leader_pid=leader,
        device_uuids=uuids,
        is_orphan=is_orphan,
        is_ready=is_ready,
        need_bytes=None if need is None else need * GIB,
    )


def held(one: EngineUse, *processes: tuple[int, str, int | None]) -> Holding | None:
    told = [
        DeviceProcess(uuid=uuid, pid=pid, memory_bytes=None if size is None else size * GIB)
        for pid, uuid, size in processes
    ]
    found = read_holdings([one], GROUPS, {"u", "v"}, told, read_private=private)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("one", "processes", "own", "need"),
    [
        (engine(), [], 2, 0),  # on the processor, nobody planned
        (engine(need=3), [], 2, 3),
        (engine(leader=1000, need=3), [], 0, 3),  # its group is beginning, or gone
        (engine("u", need=5), [(8, "u", 4), (9, "u", 30)], 6, 5),
        (engine("u", "v", need=5), [(7, "u", 4), (8, "v", 3)], 9, 10),
        (engine("u", need=5), [], 7, 5),  # the driver tells of nobody: as planned, once it serves
        (engine("u", need=5, is_ready=False), [], None, 5),
        (engine("u"), [], None, 0),
        (engine("u", need=5, is_ready=False), [(7, "u", None)], None, 5),
    ],
)
def test_engine_holds_what_its_processes_and_the_driver_say(
    one: EngineUse, processes: list[tuple[int, str, int | None]], own: int | None, need: int
) -> None:
    expected = Holding(replica=OURS, own_bytes=None if own is None else own * GIB, need_bytes=need * GIB)
    assert held(one, *processes) == expected


@pytest.mark.parametrize("one", [engine("card"), engine(is_orphan=True), engine("u", is_orphan=True)])
def test_engine_that_holds_nothing_of_the_host_by_a_record_is_not_counted(one: EngineUse) -> None:
    """On a card with its own memory; or left over, when nobody's record holds what it has."""
    assert held(one) is None


def test_total_is_not_known_where_one_part_is_not() -> None:
    known = Holding(replica=OURS, own_bytes=GIB, need_bytes=0)
    unknown = Holding(replica=ReplicaId("b"), own_bytes=None, need_bytes=0)
    assert total_bytes([]) == 0
    assert total_bytes([known, known]) == 2 * GIB
    assert total_bytes([known, unknown]) is None


@pytest.mark.parametrize(
    ("own", "need", "before", "told"),
    [
        (4, 0, 0, 4),  # nobody planned for it: all that it holds
        (4, 3, 0, None),  # a step too small
        (6, 3, 0, 3),
        (2, 3, 0, None),  # it keeps to its need
        (5, 0, 4, 4),
        (9, 0, 4, 9),
        (0, 0, 4, None),  # it ends
        (None, 0, 4, 4),  # nobody can tell now
    ],
)
def test_what_is_held_beyond_the_need_is_told_in_steps(
    own: int | None, need: int, before: int, told: int | None
) -> None:
    one = Holding(replica=OURS, own_bytes=None if own is None else own * GIB, need_bytes=need * GIB)
    found = unplanned_bytes([one], {OURS: before * GIB} if before else {}, GIB)
    assert found == ({} if told is None else {OURS: told * GIB})


def test_what_went_away_is_not_told_any_more() -> None:
    assert unplanned_bytes([], {OURS: GIB}, GIB) == {}

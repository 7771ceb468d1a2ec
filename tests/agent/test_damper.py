"""How long illness is believed after it is over: the times, and that nothing that flaps is seen to flap."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.agent.damper import CALM_S, MAX_CALM_S, PEACE_S, WELL, Damper, Mark, Spell
from xinf.core.device import Health

HOT, SILENT, BROKEN = Mark(Health.DEGRADED, "hot"), Mark(Health.SILENT, "no answer"), Mark(Health.FAULTY, "Xid 79")


def calm_after(damper: Damper, since_s: float) -> float:
    """Say `well` each second from `since_s` on; how long until that is believed."""
    now_s = since_s
    while damper.show("a", WELL, now_s).health is not Health.OK:
        now_s += 1
    return now_s - since_s


def test_ill_at_once_and_well_after_a_calm_time() -> None:
    damper = Damper()
    assert damper.show("a", WELL, 0) == WELL
    assert damper.show("a", BROKEN, 1) == BROKEN
    assert calm_after(damper, 2) == CALM_S


def test_calm_time_doubles_with_each_relapse_up_to_its_limit() -> None:
    damper, now_s, times = Damper(), 0.0, []
    for _ in range(8):
        damper.show("a", BROKEN, now_s)
        times.append(calm_after(damper, now_s))
        now_s += times[-1] + 1
    assert times == [60, 120, 240, 480, 960, 1800, 1800, 1800]
    assert times[-1] == MAX_CALM_S


def test_hour_of_peace_is_forgiven() -> None:
    damper = Damper()
    for now_s in (0, 100, 300):
        damper.show("a", BROKEN, now_s)
        end_s = now_s + calm_after(damper, now_s)
    damper.show("a", BROKEN, end_s + PEACE_S)
    assert calm_after(damper, end_s + PEACE_S) == CALM_S


def test_spell_of_a_device_that_stays_well_is_dropped() -> None:
    damper = Damper()
    damper.show("a", BROKEN, 0)
    end_s = calm_after(damper, 0)
    assert damper.spells
    damper.show("a", WELL, end_s + PEACE_S)
    assert not damper.spells


def test_worse_is_shown_at_once_and_better_only_after_calm() -> None:
    damper = Damper()
    damper.show("a", HOT, 0)
    assert damper.show("a", BROKEN, 1) == BROKEN
    assert damper.show("a", HOT, 2) == BROKEN
    assert damper.show("a", WELL, 10) == BROKEN
    assert damper.show("a", WELL, 62) == HOT, "it was hot in that time: that is what is believed first"
    assert damper.show("a", WELL, 63) == HOT
    assert damper.show("a", WELL, 123) == WELL


def test_heat_that_lasts_is_no_relapse() -> None:
    damper = Damper()
    damper.show("a", BROKEN, 0)
    for now_s in range(1, 500):
        damper.show("a", HOT, now_s)
    assert calm_after(damper, 500) == CALM_S


def test_what_flaps_faster_than_the_calm_time_is_ill_all_the_time_and_told_once() -> None:
    damper = Damper()
    shown = {damper.show("a", WELL if n % 2 else HOT, 5.0 * n) for n in range(1000)}
    assert shown == {HOT}


def test_reason_says_in_time_that_it_is_over() -> None:
    damper = Damper()
    damper.show("a", BROKEN, 0)
    damper.show("a", WELL, 5)
    assert damper.show("a", WELL, 25).reason == "Xid 79 (not any more; it is watched for 1m 0s)"


def test_notice_of_a_well_device_is_shown_as_it_is() -> None:
    damper = Damper()
    notice = Mark(Health.OK, "a row of its memory is to be replaced")
    assert damper.show("a", notice, 0) == notice
    damper.show("a", BROKEN, 1)
    assert damper.show("a", notice, 2).health is Health.FAULTY
    assert damper.show("a", notice, 62) == notice


def test_clock_that_is_set_back_does_not_keep_a_device_ill() -> None:
    damper = Damper()
    damper.show("a", HOT, 10_000)
    damper.show("a", WELL, 10_005)
    damper.show("a", WELL, 10)
    assert damper.show("a", WELL, 70) == WELL


def test_spells_go_on_where_an_earlier_agent_left_them() -> None:
    first = Damper()
    for now_s in (0, 100, 300):
        first.show("a", BROKEN, now_s)
        end_s = now_s + calm_after(first, now_s)
    first.show("a", BROKEN, end_s)
    left = msgspec.json.decode(msgspec.json.encode(first.spells), type=dict[str, Spell])
    damper = Damper(left)
    assert damper.show("a", WELL, end_s + 30) == BROKEN
    assert calm_after(damper, end_s + 30) == 480


@pytest.mark.parametrize("period_s", [1, 10, 61, 90, 119, 121, 300, 600, 1900])
def test_flips_that_others_see_are_few_whatever_the_period(period_s: int) -> None:
    damper, flips, before = Damper(), 0, Health.OK
    for now_s in range(0, 86_400, 5):
        said = BROKEN if (now_s // period_s) % 2 else WELL
        now = damper.show("a", said, now_s).health
        flips += (before is Health.OK) != (now is Health.OK)
        before = now
    assert flips <= 2 * 86_400 / 1800, "no more than one spell in half an hour, over a day"


@given(st.lists(st.tuples(st.sampled_from([WELL, HOT, SILENT, BROKEN]), st.floats(0, 4000)), max_size=60))
def test_nothing_is_shown_better_than_it_is_said(steps: list[tuple[Mark, float]]) -> None:
    damper, now_s = Damper(), 0.0
    for said, wait_s in steps:
        now_s += wait_s
        assert damper.show("a", said, now_s).severity >= said.severity
    for n in range(12):  # each degree takes its own calm time
        damper.show("a", WELL, now_s + n * MAX_CALM_S)
    assert damper.show("a", WELL, now_s + 12 * MAX_CALM_S) == WELL

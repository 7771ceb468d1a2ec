"""The order of an event stream: what is next, seen, ahead, and when another publisher has taken over."""

from __future__ import annotations

from xinf.engine.kv_event_order import RECENT, EventOrder, Place


def content(number: int) -> bytes:
    return b"batch %d" % number


def passed(count: int) -> EventOrder:
    """An order to which this many messages came live."""
    order = EventOrder()
    for number in range(count):
        assert order.judge_live(number, content(number)) is Place.NEXT
        order.pass_on(number, content(number))
    return order


def test_messages_are_next_seen_or_ahead() -> None:
    order = passed(3)
    assert order.judge_replayed(2, content(2)) is Place.SEEN
    assert order.judge_replayed(3, content(3)) is Place.NEXT
    assert order.judge_replayed(4, content(4)) is Place.AHEAD
    assert order.judge_live(4, content(4)) is Place.AHEAD


def test_live_message_that_was_replayed_is_seen() -> None:
    order = EventOrder()
    for number in range(5):
        order.pass_on(number, content(number))
    assert [order.judge_live(number, content(number)) for number in (3, 4, 5)] == [Place.SEEN, Place.SEEN, Place.NEXT]


def test_live_message_that_goes_back_is_of_another_publisher_unless_it_is_a_copy() -> None:
    order = passed(3)
    assert order.judge_live(1, content(1)) is Place.SEEN
    assert order.judge_live(1, b"other") is Place.STARTED_OVER
    order.start_over()
    assert order.judge_live(1, b"other") is Place.AHEAD
    assert order.next == 0


def test_live_message_that_goes_back_behind_a_gap_is_of_another_publisher() -> None:
    order = passed(1)
    assert order.judge_live(5, content(5)) is Place.AHEAD
    assert order.judge_live(3, content(3)) is Place.STARTED_OVER


def test_other_content_under_a_known_number_is_of_another_publisher() -> None:
    order = passed(3)
    assert order.judge_replayed(2, b"other") is Place.STARTED_OVER
    order = EventOrder()
    order.pass_on(0, content(0))
    assert order.judge_live(0, b"other") is Place.STARTED_OVER


def test_what_is_skipped_is_not_expected_any_more() -> None:
    order = passed(1)
    order.pass_on(5, content(5))
    assert order.next == 6
    assert order.judge_replayed(3, content(3)) is Place.SEEN


def test_only_the_last_messages_are_remembered() -> None:
    order = passed(RECENT + 1)
    assert order.judge_replayed(1, b"other") is Place.STARTED_OVER
    assert order.judge_replayed(0, b"other") is Place.SEEN

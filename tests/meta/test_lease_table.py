"""Deadlines of leases: from the moment one is over nobody may renew it, taken by the writer yet or not."""

from __future__ import annotations

import pytest

from xinf.core.errors import LeaseExpired
from xinf.core.ids import LeaseId
from xinf.meta.lease_table import LeaseTable

A, B = LeaseId(1), LeaseId(2)


def test_lease_that_is_over_is_not_renewed_even_before_it_is_taken() -> None:
    table = LeaseTable()
    table.add(A, 10.0, 0.0)
    assert table.renew(A, 9.9) == 10.0
    with pytest.raises(LeaseExpired):
        table.renew(A, 19.9)


def test_due_leases_are_taken_again_until_removed() -> None:
    table = LeaseTable()
    table.add(A, 10.0, 0.0)
    table.add(B, 20.0, 0.0)
    assert table.next_due_s() == 10.0
    assert table.take_due(9.0) == []
    assert table.take_due(10.0) == [A]
    assert table.take_due(11.0) == [A]  # its ending failed: once more
    table.remove(A)
    assert table.take_due(11.0) == []
    assert table.next_due_s() == 20.0


def test_lease_that_is_ending_is_not_renewed() -> None:
    table = LeaseTable()
    table.add(A, 10.0, 0.0)
    table.take_due(10.0)
    with pytest.raises(LeaseExpired):
        table.renew(A, 5.0)  # a clock that went back does not bring it back

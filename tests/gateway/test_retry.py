"""The retry budget."""

from __future__ import annotations

from xinf.gateway.retry import RESERVE, RetryBudget


def test_budget_has_a_reserve_then_a_share() -> None:
    budget = RetryBudget(20)
    assert all(budget.take() for _ in range(int(RESERVE)))
    assert not budget.take()
    for _ in range(5):
        budget.earn()
    assert budget.take()
    assert not budget.take()


def test_budget_of_zero_allows_none() -> None:
    budget = RetryBudget(0)
    budget.earn()
    assert not budget.take()

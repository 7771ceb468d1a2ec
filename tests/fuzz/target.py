"""What the driver runs: a target makes cases and checks them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

Case = Sequence[Any]  # bytes, or a list of operations; any part of one is a case too, so that it can be minimized


class Disagreement(AssertionError):
    """An extension and its model differ, or an invariant is broken."""


class Target(Protocol):
    """A subject with its model. Cases are a function of the generator alone, so that a number names one."""

    name: str
    n_rejected: int  # of the cases checked; says whether both sides of the grammar are met

    def make(self, rng: random.Random) -> Case:
        """Make a case."""
        ...

    def check(self, case: Any) -> None:
        """Run a case. Raises: Disagreement."""
        ...

    def exercise(self, case: Any) -> None:
        """Run a case on the extension; what models and their libraries keep must not look like a leak of ours."""
        ...


def expect(holds: bool, *what: object) -> None:
    """Raise a Disagreement that shows `what`."""
    if not holds:
        raise Disagreement(" ".join(str(item)[:500] for item in what))


def same(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise Disagreement(f"{what}: got {str(got)[:500]}, expected {str(expected)[:500]}")

"""How requests are let loose: in a closed loop or at a rate."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import msgspec

from xinf.core.errors import InvalidRequest


class ClosedLoop(msgspec.Struct, frozen=True, tag="closed", tag_field="loop"):
    """So many clients, each sending its next request when it has the answer to its last."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InvalidRequest(f"concurrency is {self.concurrency}, must be at least 1")

    @property
    def label(self) -> str:
        """What a table calls it."""
        return f"concurrency {self.concurrency}"


class OpenLoop(msgspec.Struct, frozen=True, kw_only=True, tag="open", tag_field="loop"):
    """Requests at a rate that does not care how the server is doing.

    `burstiness` is the shape of the gamma distribution of the gaps: 1 is a Poisson process, less is burstier, more is
    more regular; None is one request every 1/rate. `max_concurrency`: more than these wait in the generator, and their
    wait counts.
    """

    rate: float
    burstiness: float | None = 1.0
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate < float("inf"):
            raise InvalidRequest(f"rate is {self.rate:g} requests/s, must be above 0 and finite")
        if self.burstiness is not None and not 0 < self.burstiness < float("inf"):
            raise InvalidRequest(f"burstiness is {self.burstiness:g}, must be above 0 and finite")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise InvalidRequest(f"max concurrency is {self.max_concurrency}, must be at least 1")

    @property
    def label(self) -> str:
        """What a table calls it."""
        return f"{self.rate:g} req/s"


Load = ClosedLoop | OpenLoop


def arrivals(load: OpenLoop, seed: int) -> Iterator[float]:
    """Give the intended send times, in seconds from the start, ascending and without end."""
    shape = load.burstiness
    if shape is None:
        for number in itertools.count():
            yield number / load.rate
        return
    draw = random.Random(f"arrivals {seed}").gammavariate
    scale = 1.0 / (load.rate * shape)
    at_s = 0.0
    while True:
        at_s += draw(shape, scale)
        yield at_s

"""Which sessions begin when: the part of a routing run that is the same for every policy."""

from __future__ import annotations

import itertools
import math

import msgspec

from xinf.bench.fleet import FleetSettings
from xinf.bench.load import OpenLoop, arrivals
from xinf.bench.route_session import RouteWorkload
from xinf.bench.working_set import WorkingSet, measure
from xinf.core.errors import InvalidRequest

_PROBED_REQUESTS = 300  # from which the mean sizes are taken, where the length of a run follows from them


class RouteLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests, how fast. At most one of `rate` and `share`; neither: as a trace says, which must be one.

    `share` is of what the fleet can do without any cache (see `FleetSettings.capacity_per_s`). Exactly one of
    `n_requests` and `duration_s`.
    """

    rate: float | None = None
    share: float | None = None
    n_requests: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--rate", self.rate), ("--load", self.share), ("--duration", self.duration_s)):
            if value is not None and not 0 < value < math.inf:
                raise InvalidRequest(
                    f"{option} is {value:g}, must be above 0 and finite",
                    remedy=f"write for example {_EXAMPLES[option]}",
                )
        if self.rate is not None and self.share is not None:
            raise InvalidRequest("--rate and --load say the same thing", remedy="give one of them")
        if (self.n_requests is None) == (self.duration_s is None):
            raise InvalidRequest("a run needs one end: a number of requests or a duration")


_EXAMPLES = {"--rate": "--rate 20", "--load": "--load 0.7", "--duration": "--duration 30s"}


class RoutePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions by number with their times, ascending. `rate`: requests per second on average."""

    workload: RouteWorkload
    working_set: WorkingSet
    starts_s: tuple[float, ...]
    rate: float

    @property
    def n_requests(self) -> int:
        return self.working_set.n_requests


def make_plan(workload: RouteWorkload, load: RouteLoad, fleet: FleetSettings, seed: int) -> RoutePlan:
    """Take as many whole sessions as have the requests asked for. Raises: InvalidRequest."""
    own_times = load.rate is None and load.share is None
    if own_times and workload.at_s(0) is None:
        raise InvalidRequest("this workload has no times of its own", remedy="give --rate or --load")
    if own_times:
        working_set = measure(workload, n_requests=load.n_requests or _due_within(workload, load), fleet=fleet)
        starts_s = [workload.at_s(number) or 0.0 for number in range(working_set.n_sessions)]
        rate = working_set.n_requests / max(starts_s[-1], 1e-3)
        return RoutePlan(workload=workload, working_set=working_set, starts_s=tuple(starts_s), rate=rate)
    n_requests = load.n_requests
    if n_requests is None:
        probe = measure(workload, n_requests=_PROBED_REQUESTS, fleet=fleet)
        n_requests = max(1, round((load.duration_s or 0.0) * _rate(load, fleet, probe)))
    working_set = measure(workload, n_requests=n_requests, fleet=fleet)
    rate = _rate(load, fleet, working_set)
    return RoutePlan(
        workload=workload, working_set=working_set, starts_s=_starts(workload, working_set, rate, seed), rate=rate
    )


def _starts(workload: RouteWorkload, working_set: WorkingSet, rate: float, seed: int) -> tuple[float, ...]:
    n_sessions = working_set.n_sessions
    last_s = workload.at_s(n_sessions - 1)
    if last_s:
        # A trace at another rate than its own keeps its bursts: its time is stretched.
        stretch = working_set.n_requests / rate / last_s
        return tuple((workload.at_s(number) or 0.0) * stretch for number in range(n_sessions))
    session_rate = rate * n_sessions / working_set.n_requests
    return tuple(itertools.islice(arrivals(OpenLoop(rate=session_rate), seed), n_sessions))


def _rate(load: RouteLoad, fleet: FleetSettings, sizes: WorkingSet) -> float:
    if load.rate is not None:
        return load.rate
    n = sizes.n_requests
    return (load.share or 0.0) * fleet.capacity_per_s(sizes.prompt_tokens / n, sizes.answer_tokens / n)


def _due_within(workload: RouteWorkload, load: RouteLoad) -> int:
    """Count the requests of a workload with times of its own that come within the duration."""
    numbers = range(workload.n_sessions or 0)
    return sum((workload.at_s(number) or 0.0) < (load.duration_s or 0.0) for number in numbers) or 1

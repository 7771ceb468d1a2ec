"""What a shim says of how it follows its engine's events: all that it counts, and only when something changed."""

from __future__ import annotations

from typing import cast

import msgspec

from xinf._fast.frame import decode_engine_frame
from xinf._pb import engine_service_pb2 as pb
from xinf.engine.adapter import Adapter, LoadReport
from xinf.engine.following import Following
from xinf.engine.intake import Intake
from xinf.engine.kv_event_client import KvCounters, KvEventClient
from xinf.engine.link import Link
from xinf.engine.prompts import Canon, Prompts
from xinf.engine.residency import Residency, State


def following_of() -> tuple[KvEventClient, Prompts, Following]:
    client = KvEventClient("ipc://nowhere", on_batch=lambda batch: None, on_reset=lambda reason: None)
    prompts = Prompts(Canon("m", 0, 64), Residency(None, State.EXACT))
    return client, prompts, Following(client, prompts)


def test_all_that_is_counted_is_told() -> None:
    client, prompts, following = following_of()
    names = [field.name for field in msgspec.structs.fields(KvCounters)]
    for number, name in enumerate(names, 1):
        setattr(client.counters, name, number)
    client.lag.add(0.5)
    client.lag.add(0.1)
    prompts.n_unbound = 77
    told = pb.Following.FromString(following.serialized())
    assert [getattr(told, name) for name in names] == list(range(1, len(names) + 1))
    assert (told.lag_mean_s, told.lag_max_s) == (client.lag.mean_s, client.lag.max_s)
    assert told.unbound == 77
    assert {field.name for field in told.DESCRIPTOR.fields} == {*names, "lag_mean_s", "lag_max_s", "unbound"}


def test_before_the_first_batch_there_is_nothing_to_tell() -> None:
    _, _, following = following_of()
    assert following.serialized() == b""


class Idle:
    """As much of an adapter, and of a stream, as a Link asks where no request comes."""

    def __init__(self) -> None:
        self.told = Residency(None, State.EXACT)

    def residency(self) -> Residency:
        return self.told

    def load(self) -> LoadReport:
        return LoadReport()

    def wake(self) -> None: ...

    def finish(self, status: str, message: str) -> None: ...


async def test_a_link_tells_it_when_it_changed() -> None:
    idle = Idle()
    client, _, idle.told.account = following_of()
    client.counters.events = 3
    link = Link(cast(Intake, None), cast(Adapter, idle), b"", idle)

    def heard() -> pb.Following | None:
        told = decode_engine_frame(link.take()).following
        return None if told is None else pb.Following.FromString(told)

    assert heard() == pb.Following(events=3)
    client.counters.events = 4
    link.load_changed()
    assert heard() is None  # not with each step
    link.repeat_load()
    assert heard() == pb.Following(events=4)
    link.repeat_load()
    assert heard() is None
    link.close()


async def test_a_link_tells_nothing_where_no_events_are_followed() -> None:
    link = Link(cast(Intake, None), cast(Adapter, idle := Idle()), b"", idle)
    assert decode_engine_frame(link.take()).following is None
    link.close()

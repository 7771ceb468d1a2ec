"""What engines that said hello make of names, forms and the router; the rest is tested through a gateway."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from xinf._fast.scan import TOOLS_FIRST, scan
from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import PermissionDenied, UnknownModel
from xinf.core.ids import KeyId
from xinf.core.records import KeyRecord, Phase, RoutingPolicy
from xinf.core.seed import chain_seed, lora_seed
from xinf.gateway.keys import check_model
from xinf.gateway.table import Model, Table, _Place
from xinf.router import ReplicaView, ResidencyUpdate, Router, RouterSettings

BODY = scan(orjson.dumps({"messages": [{"role": "user", "content": "some words " * 100}]}))


class StandInLink:
    """A Link that is up, with what its engine said; notes when the residency is asked for anew."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.info: Any = None
        self.is_up = True
        self.n_resyncs = 0

    def resync(self, now_s: float) -> None:
        self.n_resyncs += 1

    async def close(self, reason: str) -> None:
        self.is_up = False


class Fixture:
    """A table with a real router, and Links that say what the test wants; no store."""

    def __init__(self) -> None:
        self.router = Router(RouterSettings(), turn=0)
        self.table = Table(None, self.router, None, gateway="g", on_ready=lambda _: None)  # type: ignore[arg-type]
        self.table.is_read = True
        self.links: dict[str, StandInLink] = {}

    def deploy(self, name: str, *served: str, created_s: float = 1.0) -> None:
        spec = SimpleNamespace(model=name, served_names=served)
        record = SimpleNamespace(
            name=name, spec=spec, policy=RoutingPolicy.AUTO, max_waiting=None, created_s=created_s, replicas=1
        )
        self.table._deployments.items[name] = record, 1  # type: ignore[assignment]
        self.table._replace_deployments()

    def connect(self, replica: str, deployment: str = "m", **info: Any) -> StandInLink:
        link = self.links[replica] = StandInLink(replica)
        record: Any = SimpleNamespace(
            id=replica, deployment=deployment, block_tokens=16, phase=Phase.READY, target="run"
        )
        self.table._places[replica] = _Place(link, (None, None, None), record)  # type: ignore[arg-type]
        self.table._aim(replica)
        link.info = pb.EngineInfo(**info)
        self.table.on_link_up(link)  # type: ignore[arg-type]
        return link

    def say(self, replica: str, **info: Any) -> None:
        self.links[replica].info = pb.EngineInfo(**info)
        self.table.on_info(self.links[replica])  # type: ignore[arg-type]

    def tell(self, replica: str, **update: Any) -> None:
        self.table.on_residency(self.links[replica], ResidencyUpdate(**update))  # type: ignore[arg-type]

    def tell_all(self, replica: str, model: Model, tokens: int = 300) -> None:
        """The replica holds all of BODY."""
        form = model.form
        last = BODY.chain(form.seed, form.order, form.chunk_bytes)[-8:]
        self.tell(replica, cleared=True, added=last, tokens=array("I", [tokens]).tobytes(), state="exact")

    def view(self, replica: str) -> ReplicaView:
        return next(view for view in self.router.snapshot().replicas if view.replica_id == replica)

    def predicted(self, model: Model) -> dict[str, int]:
        form = model.form
        views = self.router.explain(
            model.deployment, BODY, seed=form.seed, order=form.order, chunk_bytes=form.chunk_bytes
        )
        return {view.replica_id: view.predicted_cached_tokens for view in views}


@pytest.fixture
def world() -> Fixture:
    made = Fixture()
    made.deploy("m", "model-m")
    return made


FORM = {"chunk_bytes": 32, "chain_seed": chain_seed("org/m"), "segment_order": ["tools", "messages"]}


def test_the_form_is_the_engine_s(world: Fixture) -> None:
    model = world.table.find("model-m")
    before = model.form.seed
    world.connect("r1", residency="exact", **FORM)
    assert (model.form.seed, model.form.order, model.form.chunk_bytes) == (chain_seed("org/m"), TOOLS_FIRST, 32)
    world.tell_all("r1", model)
    assert world.view("r1").index_state == "exact"
    assert world.predicted(model) == {"r1": 288}
    assert before != model.form.seed


def test_an_engine_that_says_nothing_is_chained_as_configured(world: Fixture) -> None:
    world.connect("r1")
    form = world.table.find("model-m").form
    assert (form.order, form.chunk_bytes) == (0, 64)
    world.deploy("other")
    assert world.table.find("other").form.seed != form.seed
    assert world.view("r1").index_state == "approx"


@pytest.mark.parametrize(
    "other", [{"chunk_bytes": 64}, {"chain_seed": 5}, {"segment_order": ["system", "tools"]}, {"chunk_bytes": 7}]
)
def test_who_chains_otherwise_is_off_and_told_of_once(
    world: Fixture, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = world.table.find("model-m")
    world.connect("r1", residency="exact", **FORM)
    world.connect("r2", residency="exact", **{**FORM, **other})
    world.tell_all("r1", model)
    world.tell_all("r2", model)
    for _ in range(3):
        world.table._aim("r2")
    assert [world.view(name).index_state for name in ("r1", "r2")] == ["exact", "off"]
    assert world.view("r2").index_cause == "form"
    assert world.predicted(model) == {"r1": 288, "r2": 0}
    assert [record.getMessage() for record in caplog.records] == [
        "replica chains prompts in another form than its deployment, its residency is off"
    ]


async def test_the_form_of_who_is_left_counts_when_the_first_is_gone(world: Fixture) -> None:
    model = world.table.find("model-m")
    world.connect("r1", residency="exact", **FORM)
    second = world.connect("r2", residency="exact", **{**FORM, "chunk_bytes": 64})
    world.table._drop("r1", "the test says so")
    assert model.form.chunk_bytes == 64
    assert second.n_resyncs == 1
    world.tell_all("r2", model)
    assert world.view("r2").index_state == "exact"


def test_a_form_that_nobody_can_chain_in_never_counts(world: Fixture) -> None:
    world.connect("r1", **{**FORM, "chunk_bytes": 5000})
    assert world.table.find("model-m").form.chunk_bytes == 64
    assert world.view("r1").index_state == "off"
    world.connect("r2", **FORM)
    assert world.table.find("model-m").form.chunk_bytes == 32
    assert world.view("r2").index_state == "approx"


def test_an_engine_that_says_off_is_not_looked_at(world: Fixture) -> None:
    world.connect("r1", residency="off", **FORM)
    assert (world.view("r1").index_state, world.view("r1").index_cause) == ("off", "engine")
    world.tell_all("r1", world.table.find("model-m"))  # it has thought better of it
    assert world.view("r1").index_state == "exact"
    world.tell("r1", state="off")
    assert world.view("r1").index_state == "off"
    world.table._aim("r1")  # the hello was not the last word
    assert (world.view("r1").index_state, world.view("r1").told_chunks) == ("off", 0)


def test_adapters_are_names_with_chains_of_their_own(world: Fixture) -> None:
    world.connect("r1", residency="exact", loras=["tuned"], **FORM)
    base, tuned = world.table.find("model-m"), world.table.find("tuned")
    assert world.table.names() == ["model-m", "tuned"]
    assert tuned.deployment == "m"
    assert tuned.form.seed == lora_seed(base.form.seed, "tuned")
    world.tell_all("r1", tuned)
    assert world.predicted(tuned) == {"r1": 288}
    assert world.predicted(base) == {"r1": 0}
    assert [model.deployment for model in world.table.models()] == ["m"]


def test_a_key_for_the_deployment_is_one_for_its_adapters(world: Fixture) -> None:
    world.connect("r1", loras=["tuned"])
    base, tuned = world.table.find("model-m"), world.table.find("tuned")

    def key(*models: str) -> KeyRecord:
        return KeyRecord(id=KeyId("k"), sha256="", models=models)

    check_model(key("model-m"), tuned.names)
    check_model(key("tuned"), tuned.names)
    with pytest.raises(PermissionDenied):
        check_model(key("tuned"), base.names)
    with pytest.raises(PermissionDenied):
        check_model(key("other"), tuned.names)


def test_adapters_come_and_go_with_a_new_hello(world: Fixture) -> None:
    world.connect("r1", **FORM)
    world.connect("r2", **FORM)
    world.say("r1", loras=["tuned"], **FORM)
    assert world.table.find("tuned").lacking == {"r2"}
    world.say("r2", loras=["tuned", "more"], **FORM)
    assert world.table.find("tuned").lacking == frozenset()
    assert world.table.find("more").lacking == {"r1"}
    world.say("r1", **FORM)
    world.say("r2", **FORM)
    with pytest.raises(UnknownModel):
        world.table.find("tuned")


async def test_adapters_go_with_their_replica(world: Fixture) -> None:
    world.connect("r1", loras=["tuned"])
    world.table._drop("r1", "the test says so")
    assert world.table.names() == ["model-m"]


def test_a_new_hello_is_no_news_of_the_state(world: Fixture) -> None:
    """It says what was at the first one."""
    world.connect("r1", residency="exact", **FORM)
    world.tell_all("r1", world.table.find("model-m"))
    world.tell("r1", state="approx")
    world.say("r1", residency="exact", loras=["tuned"], **FORM)
    assert (world.view("r1").index_state, world.view("r1").is_told) == ("approx", True)


def test_a_deployment_s_name_beats_an_adapter_s(world: Fixture) -> None:
    world.connect("r1", loras=["other", "shared"])
    world.deploy("other", created_s=2.0)
    world.deploy("third", created_s=3.0)
    world.connect("r3", "third", loras=["shared"])
    assert world.table.find("other").deployment == "other"
    assert world.table.find("shared").deployment == "m"


def test_a_link_that_flaps_keeps_what_it_said_until_its_snapshot(world: Fixture) -> None:
    model = world.table.find("model-m")
    link = world.connect("r1", residency="exact", **FORM)
    world.tell_all("r1", model)
    link.is_up = False
    world.table.on_link_down(link)  # type: ignore[arg-type]
    assert world.predicted(model) == {"r1": 288}
    link.is_up = True
    world.table.on_link_up(link)  # type: ignore[arg-type]
    assert world.predicted(model) == {"r1": 288}
    world.tell("r1", cleared=True, state="exact")
    assert world.predicted(model) == {"r1": 0}
    assert world.view("r1").index_state == "exact"


def test_what_an_earlier_link_says_is_not_heard(world: Fixture) -> None:
    old = world.connect("r1", residency="exact", **FORM)
    world.connect("r1", residency="exact", **FORM)
    world.links["r1"] = old
    world.tell_all("r1", world.table.find("model-m"))
    assert world.view("r1").told_chunks == 0


def test_residency_said_while_nobody_wished_for_it_is_asked_for_again(world: Fixture) -> None:
    link = world.connect("r1", residency="exact", **FORM)
    world.table._deployments.items.clear()
    world.table._replace_deployments()
    world.deploy("m", "model-m")
    assert link.n_resyncs == 1

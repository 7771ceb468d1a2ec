"""What can be asked for and where it runs: deployments by served name, replicas with their Links.

Fed by mirrors of the store, so it goes on with what it has while the control process is away. Level-triggered: a change
of any record makes the state of that deployment or replica what the records say, whatever it was before.

    replica record: phase ready, target run    Link open, gets new requests while the Link is up
                    ready, target stop         Link stays for the requests on it, gets no new ones
                    draining
                    anything else, deleted     Link closed, what was on it is lost (and moves if it can)

The engines of a deployment also say in which form its prompts are chained, and which adapters they have loaded. The
form is that of the engine that said so first; one that says otherwise is routed to by load alone. An adapter is a name
more of the deployment, with chains of its own, on the replicas that have it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from xinf._fast.scan import SYSTEM_TOOLS_REST, order_of
from xinf.core.errors import NotFound, Unavailable, UnknownModel
from xinf.core.ids import ReplicaId
from xinf.core.records import (
    DEPLOYMENTS,
    KEYS,
    REPLICAS,
    DeploymentRecord,
    KeyRecord,
    Phase,
    ReplicaRecord,
)
from xinf.core.seed import lora_seed
from xinf.gateway.keys import KeyRing
from xinf.gateway.link import Link
from xinf.gateway.routes import is_engine_path
from xinf.meta import Mirror, Store
from xinf.router import LoadView, ResidencyUpdate, Router

logger = logging.getLogger("xinf.gateway")

TICK_S = 1.0


CHUNK_BYTES = range(16, 4097)  # what a chain can be made in


class Form(msgspec.Struct):
    """How prompts are chained. A deployment's changes in place, so that requests that wait go by the present one."""

    seed: int  # equal chains of two models are not equal
    order: int  # of the segments, for `Scan.chain`
    chunk_bytes: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment, or an adapter on it, as the hot path needs it."""

    deployment: str
    names: tuple[str, ...]  # what a key may name it by, the canonical one first; of a deployment, what clients call it
    form: Form
    max_waiting: int | None
    created_s: float
    lacking: frozenset[str] = frozenset()  # replicas that do not have the adapter


class _Place(msgspec.Struct):
    """A Link with what it was made from: a change of it is another engine process with an empty cache."""

    link: Link
    process: tuple[str | None, int | None, int | None]
    record: ReplicaRecord
    adapters: frozenset[str] = frozenset()  # that its engine has loaded
    residency: str = ""  # how well its engine says that it knows its cache
    is_misformed: bool = False
    is_routed: bool = False  # the router knows it


class Table:
    """One per gateway process. `on_ready(deployment)` is called when a replica may take requests again."""

    def __init__(
        self,
        store: Store,
        router: Router,
        keys: KeyRing,
        *,
        gateway: str,
        on_ready: Callable[[str], None],
    ) -> None:
        self._router = router
        self._keys = keys
        self._gateway = gateway
        self._on_ready = on_ready
        self._deployments: Mirror[DeploymentRecord] = Mirror(store, DEPLOYMENTS, DeploymentRecord)
        self._replicas: Mirror[ReplicaRecord] = Mirror(store, REPLICAS, ReplicaRecord)
        self._key_records: Mirror[KeyRecord] = Mirror(store, KEYS, KeyRecord)
        self._key_records.listen(lambda _: self._replace_keys())
        self._deployments.listen(lambda _: self._replace_deployments())
        self._replicas.listen(self._on_replica)
        # Keys come first: no request may pass before they are known.
        self._unread: list[Any] = [self._key_records, self._deployments, self._replicas]
        self._by_name: dict[str, Model] = {}
        self._by_deployment: dict[str, Model] = {}
        self._places: dict[str, _Place] = {}
        self._forms: dict[str, Form] = {}
        self._said: dict[str, dict[str, Form | None]] = {}  # deployment -> replica -> form, None: none of ours
        self._paths: dict[str, frozenset[str]] = {}  # deployment -> paths that its engines answer to a POST
        self._closing: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self.is_read = False  # whether the store has been read once; before that nothing may be refused as unknown

    async def start(self) -> None:
        """Read the store and follow it; may be called again after it raised.

        Raises: Unavailable, StoreError.
        """
        while self._unread:
            await self._unread[0].start()
            self._unread.pop(0)
        self.is_read = True
        self._ticker = asyncio.get_running_loop().create_task(self._tick(), name="link ticks")

    async def stop(self) -> None:
        """Close every Link and stop following the store."""
        if self._ticker is not None:
            self._ticker.cancel()
        for mirror in (self._replicas, self._deployments, self._key_records):
            await mirror.stop()
        places, self._places = self._places, {}
        await asyncio.gather(*(place.link.close("the gateway stops") for place in places.values()), *self._closing)

    # ---- questions ---------------------------------------------------------------------------------------------

    def find(self, name: str) -> Model:
        """Find the deployment that serves `name`. Raises: UnknownModel naming those that exist; Unavailable."""
        model = self._by_name.get(name)
        if model is not None:
            return model
        self.check_read()
        names = self.names()
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UnknownModel(
            f"model {name[:200]!r} does not exist",
            remedy=f"these do: {shown}" if names else "none is deployed: `xinf launch --model ...`",
            param="model",
            models=shown,
        )

    def check_read(self) -> None:
        """Raises: Unavailable until the store has been read."""
        if not self.is_read:
            raise Unavailable("the gateway has not read the store yet", remedy="is the control process running?")

    def names(self) -> list[str]:
        """All names that clients may use, sorted."""
        return sorted(self._by_name)

    def models(self) -> list[Model]:
        """All deployments, sorted by name."""
        return [self._by_deployment[name] for name in sorted(self._by_deployment)]

    def link(self, replica: str) -> Link | None:
        """The Link to a replica, None if it is gone meanwhile."""
        place = self._places.get(replica)
        return place.link if place is not None else None

    def links(self) -> list[Link]:
        return [place.link for place in self._places.values()]

    def ready(self, deployment: str, *, exclude: Collection[str] = ()) -> list[str]:
        """Ids of the replicas that may take requests of a deployment."""
        return [
            replica
            for replica, place in self._places.items()
            if place.record.deployment == deployment and replica not in exclude and _is_ready(place)
        ]

    def check_path(self, model: Model, path: str) -> None:
        """Raises: NotFound when the model's engines have told their routes and `path` is not one of them."""
        paths = self._paths.get(model.deployment)
        if paths and path not in paths:
            open_paths = sorted(known for known in paths if is_engine_path(known))
            raise NotFound(
                f"model {model.names[0]!r} has no route POST {path}",
                remedy=f"it serves {', '.join(open_paths) or 'nothing that clients may use'}",
                param="model",
            )

    def why_not_ready(self, deployment: str) -> str:
        """Say in one sentence where the replicas of a deployment stand."""
        records = [record for record, _ in self._replicas.items.values() if record.deployment == deployment]
        if not records:
            wish = self._deployments.get(deployment)
            if wish is not None and wish.replicas == 0:
                return f"{deployment} is scaled to 0 replicas"
            return f"{deployment} has no replica yet"
        return "; ".join(_standing(record, self._places.get(record.id)) for record in records[:8])

    # ---- following the store -----------------------------------------------------------------------------------

    def _replace_keys(self) -> None:
        self._keys.replace(record for record, _ in self._key_records.items.values())

    def _replace_deployments(self) -> None:
        by_deployment: dict[str, Model] = {}
        records = sorted(
            (record for record, _ in self._deployments.items.values()), key=lambda r: (r.created_s, r.name)
        )
        for record in records:
            model = Model(
                deployment=record.name,
                # What the engine itself answers to; it refuses other names.
                names=record.spec.served_names or (record.spec.model,),
                form=self._form(record.name),
                max_waiting=record.max_waiting,
                created_s=record.created_s,
            )
            by_deployment[record.name] = model
        self._by_deployment = by_deployment
        self._replace_names()
        told: dict[str, Any]
        for told in (self._forms, self._said, self._paths):
            for name in [name for name in told if name not in by_deployment]:
                del told[name]
        for replica in list(self._places):
            self._aim(replica)

    def _replace_names(self) -> None:
        by_name: dict[str, Model] = {}
        models = self._by_deployment.values()
        for model in models:
            for name in model.names:
                # The oldest keeps a name that two claim: a new deployment must not take traffic by accident.
                by_name.setdefault(name, model)
        for model in models:
            for adapter in self._adapters(model):
                by_name.setdefault(adapter.names[0], adapter)
        self._by_name = by_name

    def _on_replica(self, name: str) -> None:
        record = self._replicas.get(name)
        place = self._places.get(name)
        wants_link = record is not None and record.address is not None and record.phase in (Phase.READY, Phase.DRAINING)
        if record is None or not wants_link:
            if place is not None:
                self._drop(name, "its replica was removed" if record is None else f"it is {record.phase}")
            if record is None:
                self._router.remove_replica(ReplicaId(name))
            return
        process = (record.address, record.pid, record.pid_start_ticks)
        if place is not None and place.process != process:
            self._drop(name, "it was restarted")
            # A new process has an empty cache.
            self._router.remove_replica(ReplicaId(name))
            place = None
        if place is None:
            link = Link(
                name,
                record.address or "",
                gateway=self._gateway,
                listener=self,
                wants_residency=self._router.wants_residency,
            )
            self._places[name] = _Place(link, process, record)
            link.start()
        else:
            place.record = record
        self._aim(name)

    def _drop(self, replica: str, reason: str) -> None:
        place = self._places.pop(replica)
        task = asyncio.get_running_loop().create_task(place.link.close(reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._tell_router(place, is_ready=False)
        self._said.get(place.record.deployment, {}).pop(replica, None)
        self._agree(place.record.deployment)
        if place.adapters:
            self._replace_names()

    def _aim(self, replica: str) -> None:
        """Tell the router what this replica is now."""
        place = self._places[replica]
        is_ready = _is_ready(place)
        self._tell_router(place, is_ready=is_ready)
        if is_ready:
            self._on_ready(place.record.deployment)

    def _tell_router(self, place: _Place, *, is_ready: bool) -> None:
        record, info = place.record, place.link.info
        wish = self._deployments.get(record.deployment)
        if wish is None:
            self._router.remove_replica(record.id)
            place.is_routed = False
            return
        self._router.set_replica(
            record.id,
            model=record.deployment,
            policy=wish.policy,
            block_tokens=record.block_tokens or (info.block_tokens if info is not None else 0) or 16,
            is_ready=is_ready,
            max_running=(info.max_running or None) if info is not None else None,
        )
        self._router.on_hello(record.id, place.residency, is_misformed=place.is_misformed)
        if not place.is_routed and info is not None:
            place.link.resync(time.monotonic())  # what it said before was to nobody
        place.is_routed = True

    # ---- what Links tell ---------------------------------------------------------------------------------------

    def on_link_up(self, link: Link) -> None:
        place = self._place_of(link)
        if place is not None:
            place.residency = link.info.residency
            self._learn(place)
        self._aim_link(link)

    def on_info(self, link: Link) -> None:
        place = self._place_of(link)
        if place is not None:
            self._learn(place)
            self._aim(link.replica)

    def _learn(self, place: _Place) -> None:
        """Take in what an engine says that it is."""
        deployment, info = place.record.deployment, place.link.info
        posts = (route.removeprefix("POST ") for route in info.routes if route.startswith("POST "))
        self._paths[deployment] = frozenset(posts)
        self._said.setdefault(deployment, {})[place.record.id] = self._form_said(deployment, info)
        self._agree(deployment)
        had, place.adapters = place.adapters, frozenset(info.loras)
        if had or place.adapters or any(self._places[replica].adapters for replica in self._said[deployment]):
            self._replace_names()

    def on_link_down(self, link: Link) -> None:
        self._aim_link(link)

    def on_load(self, link: Link, load: LoadView) -> None:
        if self._place_of(link) is not None:
            self._router.on_load(ReplicaId(link.replica), load)

    def on_residency(self, link: Link, update: ResidencyUpdate) -> None:
        place = self._place_of(link)
        if place is not None:
            place.residency = update.state or place.residency
            self._router.on_residency(ReplicaId(link.replica), update)

    def _place_of(self, link: Link) -> _Place | None:
        """The place of a Link that is not an earlier one of its replica."""
        place = self._places.get(link.replica)
        return place if place is not None and place.link is link else None

    def _aim_link(self, link: Link) -> None:
        if self._place_of(link) is not None:
            self._aim(link.replica)

    # ---- forms and adapters ------------------------------------------------------------------------------------

    def _form(self, deployment: str) -> Form:
        form = self._forms.get(deployment)
        if form is None:
            form = self._forms[deployment] = self._default_form(deployment)
        return form

    def _default_form(self, deployment: str) -> Form:
        """What holds until an engine says otherwise."""
        return Form(_seed(deployment), SYSTEM_TOOLS_REST, self._router.settings.chunk_bytes)

    def _form_said(self, deployment: str, info: Any) -> Form | None:
        """The form that an engine wants. None: one that nobody here can chain in."""
        form = self._default_form(deployment)
        if info.segment_order:
            form.order = order_of(tuple(info.segment_order))
        form.seed = info.chain_seed or form.seed
        form.chunk_bytes = info.chunk_bytes or form.chunk_bytes
        return form if form.chunk_bytes in CHUNK_BYTES else None

    def _agree(self, deployment: str) -> None:
        """Let the form of a deployment be that of the engine that said one first, and say who differs."""
        said = self._said.get(deployment, {})
        form = self._form(deployment)
        first = next((one for one in said.values() if one is not None), None)
        if first is not None:
            form.seed, form.order, form.chunk_bytes = first.seed, first.order, first.chunk_bytes
        for replica, one in said.items():
            place = self._places.get(replica)
            if place is None or place.is_misformed == (one != form):
                continue
            place.is_misformed = one != form
            if place.is_misformed:
                text = "replica chains prompts in another form than its deployment, its residency is off"
                logger.warning(text, extra={"kv": {"replica": replica, "deployment": deployment}})
            self._tell_router(place, is_ready=_is_ready(place))
            if not place.is_misformed:
                place.link.resync(time.monotonic())

    def _adapters(self, model: Model) -> list[Model]:
        """A model for each adapter that an engine of the deployment has loaded."""
        said = self._said.get(model.deployment, {})
        loaded = {replica: self._places[replica].adapters for replica in said if replica in self._places}
        form = model.form
        return [
            msgspec.structs.replace(
                model,
                names=(name, *model.names),
                form=Form(lora_seed(form.seed, name), form.order, form.chunk_bytes),
                lacking=frozenset(replica for replica, names in loaded.items() if name not in names),
            )
            for name in sorted(frozenset[str]().union(*loaded.values()))
        ]

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            for place in list(self._places.values()):
                place.link.tick(now_s)


def _is_ready(place: _Place) -> bool:
    return place.link.is_up and place.record.phase == Phase.READY and place.record.target == "run"


def _standing(record: ReplicaRecord, place: _Place | None) -> str:
    if place is not None and record.phase == Phase.READY:
        return f"{record.id} is ready" + ("" if place.link.is_up else " and cannot be reached")
    text = f"{record.id} is {record.phase}"
    if record.phase == Phase.FAILED and record.failure is not None:
        text += f" ({record.failure.cause}: {record.failure.message})"
    return text


def _seed(deployment: str) -> int:
    return int.from_bytes(hashlib.sha256(deployment.encode()).digest()[:8], "little")

"""The records of the store: what is wished for, what is placed, what runs. msgspec structs, JSON in the store.

    nodes/<node>         NodeRecord        written by the agent, kept alive by its lease
    deployments/<name>   DeploymentRecord  the wish; written by the command line
    replicas/<id>        ReplicaRecord     made and aimed by the scheduler, moved through its phases by the agent
    keys/<id>            KeyRecord         API keys, hashed
    measured/<digest>    MeasuredRecord    what a load really took; written by the agent when a replica is ready
    cordons/<node>       CordonRecord      a node that takes no new replicas; written by the command line
    events/<time>-<id>   EventRecord       what happened, for people; the oldest are removed by the scheduler

Life of a replica (`phase`), and who moves it:

    pending ──scheduler──▶ placed ──agent──▶ starting ──▶ loading ──▶ warming ──▶ ready
                             ▲                  │            │           │          │
                             └── back-off ── failed ◀────────┴───────────┴──────────┤
                                                        target = stop: draining ◀───┘──▶ stopped ──▶ (deleted)

The scheduler alone writes `target`, `node` and `devices`; the agent of `node` alone writes everything else. Both write
with a compare on the record's revision, so neither overwrites the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeVar

import msgspec

from xinf.core.device import Device, Topology
from xinf.core.errors import StoreCorrupt
from xinf.core.ids import DeploymentName, KeyId, NodeName, ReplicaId
from xinf.core.model import ModelFacts

SCHEMA_VERSION = 1

NODES = "nodes/"
DEPLOYMENTS = "deployments/"
REPLICAS = "replicas/"
KEYS = "keys/"
MEASURED = "measured/"
CORDONS = "cordons/"
EVENTS = "events/"

ArgValue = str | int | float | bool


class Phase(StrEnum):
    """Where a replica is in its life; see the drawing above."""

    PENDING = "pending"
    PLACED = "placed"
    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class RoutingPolicy(StrEnum):
    """How a gateway chooses among the replicas of a deployment."""

    AUTO = "auto"
    LEAST_LOAD = "least_load"
    ROUND_ROBIN = "round_robin"
    SESSION = "session"
    PREFIX = "prefix"


class PlacementPolicy(StrEnum):
    """Which of the places that fit a replica gets."""

    SPREAD = "spread"  # away from its siblings, on devices and nodes that do least
    PACK = "pack"  # where least is left over, so that large places stay free


class EngineEnvironment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A Python environment on a node that can run engine shims."""

    name: str  # "vllm-cpu", "vllm-cuda", "builtin"
    python: str  # path of its interpreter
    engines: tuple[str, ...]  # ("vllm",), ("sim",)
    device_kinds: tuple[str, ...]  # ("cpu",), ("cuda",); empty: any
    version: str | None = None  # of the engine: "0.32.0"


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One host with an agent on it."""

    name: NodeName
    address: str  # where its shims can be reached from other hosts
    devices: tuple[Device, ...]
    environments: tuple[EngineEnvironment, ...]
    topology: Topology = Topology()
    # Memory that others than our engines use, by device UUID, as last seen; left out: none, or not known.
    foreign_bytes: dict[str, int] = {}
    # Memory of the host that our engines there hold beyond what they were placed with, all of it where nobody could
    # plan for them; left out: none that is worth a word, or not known.
    unplanned_bytes: dict[ReplicaId, int] = {}
    labels: dict[str, str] = {}
    models: tuple[str, ...] = ()  # whole on its disk: directories, Org/Name and Org/Name@COMMIT, modelscope://...
    version: str = ""
    agent_pid: int = 0
    started_s: float = 0.0
    schema: int = SCHEMA_VERSION


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to run: everything that makes two engine processes the same or different.

    A change here is a new generation of the deployment; its replicas are replaced. Counts and routing are not in it.
    """

    model: str  # a path, or a model of a hub without its revision: Org/Name (Hugging Face), modelscope://Org/Name
    revision: str | None = None  # of a hub's model, as the user gave it: a branch, a tag, a commit
    commit: str | None = None  # that this was at the launch: all replicas run these files; None: no hub could be asked
    engine: str = "vllm"  # "vllm", "sim"
    served_names: tuple[str, ...] = ()  # names clients may use; the first is canonical
    device: str = "auto"  # "cuda:0", "cuda", "cpu", a UUID, "auto", comma-separated
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    trust_remote_code: bool = False
    engine_args: dict[str, ArgValue] = {}
    env: dict[str, str] = {}

    @property
    def files(self) -> str:
        """Name the model's very files, as NodeRecord.models does."""
        at = self.commit or self.revision
        return self.model if at is None else f"{self.model}@{at}"

    def held_as(self, before: EngineSpec) -> EngineSpec:
        """The same at the commit that the same words meant before: a hub that cannot be asked has not changed it."""
        if self.commit is not None:
            return self
        held = msgspec.structs.replace(self, commit=before.commit)
        return held if held == before else self


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one replica takes of each device that it is spread over, in bytes: see `xinf plan`.

    Of devices of one kind: another kind takes another batch, other types, another runtime. A processor is one device,
    however many ranks live on it.
    """

    weights_bytes: int
    kv_bytes: int  # of one sequence of the longest context, at least; of a replica in a host's memory, its whole cache
    overhead_bytes: int  # activations, graphs, the runtime's own
    is_measured: bool = False  # by an earlier load; False: estimated from the model's files
    # The cache that it would like on a processor, while none was granted. None: `kv_bytes` is what its engine is told
    # to make, or, on an accelerator, the least of what that finds free.
    kv_wanted_bytes: int | None = None

    @property
    def device_bytes(self) -> int:
        """The least that must be free on each device."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The wish: so many replicas of this engine spec."""

    name: DeploymentName
    spec: EngineSpec
    replicas: int = 1
    generation: int = 1  # grows when `spec` changes
    policy: RoutingPolicy = RoutingPolicy.AUTO
    max_waiting: int | None = None  # bound of the waiting room per gateway process; None: the configured default
    created_s: float = 0.0
    owner: str | None = None  # an `xinf up` that removes it when it ends
    # What is known of the model, for the plan on each kind of device. None: nobody could tell, or whoever forced it
    # knows better; then the engine's own check is the only one.
    model: ModelFacts | None = None
    model_identity: str | None = None  # its exact files, as measured loads name them; None: they cannot be told
    priority: int = 0  # a higher one may take the devices of a lower one, which waits; equal ones never
    labels: dict[str, str] = {}  # a node must have all of them
    placement: PlacementPolicy = PlacementPolicy.SPREAD
    shares: bool = False  # its replicas may share a device with others that may, each within its need
    schema: int = SCHEMA_VERSION


class ReplicaFailure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a replica is not running, for a person and for a program."""

    cause: str  # "out_of_memory", "model_not_found", "killed", ...: docs/reference/errors.md
    message: str
    remedy: str
    exit_status: int | None = None  # negative: the signal that ended it
    log_tail: tuple[str, ...] = ()
    at_s: float = 0.0


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine process, from the moment somebody wants it."""

    id: ReplicaId
    deployment: DeploymentName
    generation: int
    spec: EngineSpec
    target: Literal["run", "stop"] = "run"
    node: NodeName | None = None
    devices: tuple[str, ...] = ()  # selectors on that node: ("cuda:0",)
    device_uuids: tuple[str, ...] = ()
    placement_note: str | None = None  # why it is (not) placed where it is
    need: MemoryNeed | None = None  # as planned for the devices that it has; None: not placed, or nobody could tell
    shares: bool = False  # its devices may have others on them; its engine must keep to `need`
    phase: Phase = Phase.PENDING
    phase_since_s: dict[str, float] = {}  # phase -> wall-clock second it was first entered in this start
    detail: str | None = None  # how the phase is going, for people: "fetching 12 %, ..."
    address: str | None = None  # gRPC target of the shim: "unix:/run/.../x.sock", "10.0.0.2:7001"
    pid: int | None = None  # of the guard process, the leader of the group
    pid_start_ticks: int | None = None  # field 22 of /proc/<pid>/stat: tells a reused pid apart
    log_path: str | None = None
    restarts: int = 0
    retry_at_s: float | None = None  # when a failed replica starts again
    failure: ReplicaFailure | None = None  # the last one, kept while the replica runs again
    block_tokens: int | None = None  # tokens in a KV block, told by the engine when ready
    kv_blocks: int | None = None
    max_model_len: int | None = None
    created_s: float = 0.0
    schema: int = SCHEMA_VERSION


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API key; the key itself is shown once and never stored."""

    id: KeyId
    sha256: str  # hex digest of the whole key; keys carry 160 random bits, so no salt or slow hash is needed
    label: str = ""
    models: tuple[str, ...] = ()  # empty: all
    created_s: float = 0.0
    expires_s: float | None = None
    schema: int = SCHEMA_VERSION


class MeasuredRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one load took of each of its devices: the next plan of the same load starts from it.

    Which loads are the same says the fingerprint (xinf/registry/fingerprint.py); what it repeats of that is for people.
    """

    fingerprint: str
    model: str
    engine: str
    engine_version: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    arch: str | None = None  # of the devices
    device_bytes: int  # of the fullest device once ready, the KV pool included
    kv_bytes: int  # of that the KV pool
    fixed_bytes: int  # what it needs however small the pool is; with `has_peak` at its busiest moment
    has_peak: bool = False  # the engine profiled its largest step, and `fixed_bytes` has room for it
    kv_blocks: int
    block_tokens: int
    start_s: float | None = None  # seconds from start to ready
    at_s: float = 0.0
    schema: int = SCHEMA_VERSION


class CordonRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """No new replicas for this node, whatever its agent reports."""

    node: NodeName
    is_draining: bool = False  # those that are there move to other nodes
    reason: str = ""
    at_s: float = 0.0
    schema: int = SCHEMA_VERSION


class EventRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened to a replica, a device or a node."""

    at_s: float  # the last time
    kind: str  # "placed", "not_placed", "preempted", "moved", "ready", "failed", "node_joined", ..., or a DeviceEvent's
    object: str  # id of a replica, selector of a device, name of a node
    message: str
    node: NodeName | None = None
    deployment: DeploymentName | None = None  # of the replica
    device_uuid: str | None = None  # of the device; `object` is what it is called on its node now
    count: int = 1  # how often it happened, in a row
    schema: int = SCHEMA_VERSION


Record = NodeRecord | DeploymentRecord | ReplicaRecord | KeyRecord | MeasuredRecord | CordonRecord | EventRecord
R = TypeVar("R", NodeRecord, DeploymentRecord, ReplicaRecord, KeyRecord, MeasuredRecord, CordonRecord, EventRecord)


def encode_record(record: Record) -> bytes:
    """Encode a record as JSON."""
    return msgspec.json.encode(record)


def decode_record(data: bytes, kind: type[R], *, key: str = "?") -> R:
    """Decode a record; fields of a newer version are ignored.

    Raises: StoreCorrupt naming `key` when the bytes are not such a record.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"record {key} is not a {kind.__name__}: {error}", key=key) from error

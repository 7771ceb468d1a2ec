"""How an engine is to load a model: from what a deployment asks for to what changes the memory that it takes.

The defaults are those that vLLM chooses by the size of the device and those that xinf gives it on the processor
(xinf/engine/vllm_args.py). An argument whose effect on memory is not known here makes a plan impossible rather than
wrong: with it the engine's own check is the only one.
"""

from __future__ import annotations

import msgspec

from xinf.core.device import Device, Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.records import ArgValue, EngineSpec
from xinf.registry.sockets import Sockets, sockets_of

# Arguments of vLLM that take weights or cache off a device, or put something else on it.
_UNPLANNED = frozenset({
    "additional_config", "compilation_config", "cpu_offload_gb", "data_parallel_size", "decode_context_parallel_size",
    "enable_expert_parallel", "enable_lora", "hf_overrides", "kv_transfer_config", "offload_backend",
    "offload_group_size", "pipeline_parallel_size", "quantization_config", "speculative_config", "worker_cls",
    "worker_extension_cls",
})  # fmt: skip
_FULL_BATCH_BYTES = 70 << 30
# Such devices are mostly in systems with a switch for their links, and of the smaller ones these.
_SWITCHED_BYTES, _SWITCHED_NAMES = 70 << 30, ("A100-SXM",)
_LEAN_GRAPHS_DRIVER = 550
_LARGE_BYTES = 160 << 30
_CPU_BLOCK_TOKENS, _BLOCK_TOKENS = 32, 16
_CPU_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_CACHE_SIZES = ("kv_cache_memory_bytes", "num_gpu_blocks_override")
_COUNT_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All that changes how much memory a model takes on a device of a kind."""

    vendor: Vendor
    dtype: str = "auto"  # long names: "bfloat16"
    quantization: str | None = None
    kv_dtype: str = "auto"
    tensor_parallel_size: int = 1
    max_model_len: int | None = None  # None: the model's own
    max_num_seqs: int = 256
    max_batched_tokens: int = 2048  # computed in one step
    block_tokens: int = _BLOCK_TOKENS
    is_eager: bool = False  # no graphs are captured
    is_text_only: bool = False  # of a model for images too, which is told to take none
    max_graph_tokens: int = 512  # the largest batch that a graph is captured for
    is_switched: bool = True  # its devices are linked by a switch, where buffers of collectives are larger
    is_old_driver: bool = False  # of NVIDIA's before CUDA 12.4, which keep three times as much for graphs
    cache_bytes: int | None = None  # that the engine is told to make, on each rank; None: it sizes its cache itself
    device_share: float | None = None  # of a device that the engine is told to take at most; None: nobody told it
    cache_blocks: int | None = None  # the same in blocks, whatever else it is told
    sockets: Sockets | None = None  # of a processor of several NUMA nodes, where each rank has one


def choose_options(spec: EngineSpec, device: Device) -> LoadOptions:
    """Read how `spec` loads its model on such a device.

    Raises: InvalidRequest naming an argument whose effect on memory is not known, or one that is no number.

    Source: vLLM 0.32, engine/arg_utils.py, `get_batch_defaults` (OPENAI_API_SERVER) and
    `_set_default_max_num_seqs_and_batched_tokens_args`.
    """
    given = {_plain(name): value for name, value in spec.engine_args.items()}
    if unknown := sorted(name for name in given if name.partition(".")[0] in _UNPLANNED):
        raise InvalidRequest(
            f"engine argument {unknown[0]!r} changes what memory is needed in a way that is not planned",
            remedy="the engine checks it itself when it starts",
            param="engine_arg",
        )
    is_cpu = device.vendor is Vendor.CPU
    tensor_parallel_size = _count(given, "tensor_parallel_size") or spec.tensor_parallel_size
    max_model_len = _count(given, "max_model_len") or spec.max_model_len
    n_tokens, n_sequences = _batch_defaults(device, tensor_parallel_size)
    sequences = _count(given, "max_num_seqs") or n_sequences
    tokens = _count(given, "max_num_batched_tokens")
    if tokens is None:
        tokens = n_tokens if max_model_len is None else min(n_tokens, sequences * max_model_len)
    dtype = str(given.get("dtype", spec.dtype)).lower()
    quantization = given.get("quantization", spec.quantization)
    return LoadOptions(
        vendor=device.vendor,
        dtype=ALIASES.get(dtype, dtype),
        quantization=None if quantization is None else str(quantization).lower(),
        kv_dtype=str(given.get("kv_cache_dtype", "auto")).lower(),
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        max_num_seqs=sequences,
        max_batched_tokens=tokens,
        block_tokens=_count(given, "block_size") or (_CPU_BLOCK_TOKENS if is_cpu else _BLOCK_TOKENS),
        is_eager=_is_eager(given, default=is_cpu or device.vendor is Vendor.APPLE),
        is_text_only=_is_text_only(given),
        max_graph_tokens=_max_graph_tokens(device),
        is_switched=is_switched(device),
        is_old_driver=_is_old_driver(device),
        cache_bytes=_cache_bytes(spec, given, is_cpu=is_cpu),
        device_share=None if is_cpu else _share(given),
        cache_blocks=_count(given, "num_gpu_blocks_override"),
        sockets=sockets_of(device),
    )


def size_class(device: Device) -> tuple[object, ...]:
    """What of a device, beside its architecture, changes what a load takes that is no cache: cards of one architecture
    are of several sizes and links, and larger ones take larger batches and buffers; old drivers keep more.
    """
    return (*_batch_defaults(device, 1), is_switched(device), _is_old_driver(device))


def is_switched(device: Device) -> bool:
    """Whether several such devices are taken to be linked by a switch; also one of which nobody knows how large it is.

    Seen of a collective's buffers: H100 3.6 GiB; A100-SXM4-40GB 2.1 GiB (a p4d of eight, vLLM 0.7.1); 0.1 to 0.4 GiB of
    cards on PCIe, up to eight of them.
    """
    if device.vendor is Vendor.CPU:
        return False
    is_large = device.memory_bytes is None or device.memory_bytes >= _SWITCHED_BYTES
    return is_large or any(name in device.name for name in _SWITCHED_NAMES)


def _batch_defaults(device: Device, tensor_parallel_size: int) -> tuple[int, int]:
    """Tokens of a step and sequences at once, when nobody says."""
    if device.vendor is Vendor.CPU:
        return 2048 * tensor_parallel_size, 128 * tensor_parallel_size
    memory_bytes = device.memory_bytes or 0
    if memory_bytes >= _LARGE_BYTES:
        return 16384, 1024
    if memory_bytes >= _FULL_BATCH_BYTES and "a100" not in device.name.lower():
        return 8192, 1024
    return 2048, 256


def _max_graph_tokens(device: Device) -> int:
    """Source: vLLM 0.32, config/vllm.py, `_set_cudagraph_sizes`: more on Blackwell of data centres."""
    return 1024 if device.vendor is Vendor.NVIDIA and (device.arch or "").startswith("sm_10") else 512


def _is_old_driver(device: Device) -> bool:
    """A version is 535.247.01; CUDA 12.4 came with 550."""
    major = (device.driver or "").partition(".")[0]
    return device.vendor is Vendor.NVIDIA and major.isdecimal() and int(major) < _LEAN_GRAPHS_DRIVER


def _cache_bytes(spec: EngineSpec, given: dict[str, ArgValue], *, is_cpu: bool) -> int | None:
    """The cache that somebody asks for by its size.

    Source: vLLM 0.32, platforms/cpu.py, `check_and_update_config`: the variable (GiB) replaces the argument (bytes).
    """
    space = spec.env.get(_CPU_CACHE_VARIABLE, "") if is_cpu else ""
    if space.isdecimal():
        return int(space) << 30
    return _count(given, "kv_cache_memory_bytes")


def device_share(spec: EngineSpec) -> float | None:
    """The share of a device that its engine is told to take at most; None also for one that cannot be.

    With that no plan is made either: `choose_options` refuses it.
    """
    try:
        return _share({_plain(name): value for name, value in spec.engine_args.items()})
    except InvalidRequest:
        return None


def is_cache_told(spec: EngineSpec) -> bool:
    """Whether its engine is told how large its cache is to be, in bytes or in blocks."""
    return not {_plain(name) for name in spec.engine_args}.isdisjoint(_CACHE_SIZES)


def _share(given: dict[str, ArgValue]) -> float | None:
    """Source: vLLM 0.32, config/cache.py: `gpu_memory_utilization` is above 0 and at most 1."""
    name = "gpu_memory_utilization"
    if name not in given:
        return None
    try:
        share = float(given[name])
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InvalidRequest(
            f"engine argument {name}={given[name]!r} is no share of a device: above 0, at most 1", param="engine_arg"
        )
    return share


def _is_eager(given: dict[str, ArgValue], *, default: bool) -> bool:
    if "no_enforce_eager" in given:
        return not given["no_enforce_eager"]
    return bool(given.get("enforce_eager", default))


def _is_text_only(given: dict[str, ArgValue]) -> bool:
    """Source: vLLM 0.32, config/multimodal.py: a kind that no limit names may come as often as it likes."""
    if given.get("language_model_only") is True:
        return True
    name = "limit_mm_per_prompt"
    limits: dict[str, object] = {
        key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{name}.")
    }
    try:
        whole = msgspec.json.decode(str(given.get(name, "{}")))
    except msgspec.DecodeError:
        return False  # the engine says what is wrong with it
    if isinstance(whole, dict):
        limits = whole | limits
    return all(str(limits.get(kind)) == "0" for kind in ("image", "video"))


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _count(given: dict[str, ArgValue], name: str) -> int | None:
    """Read a number of tokens, blocks or sequences; vLLM takes `32k` (1000s) and `32K` (1024s) as well."""
    value = given.get(name)
    if value is None:
        return None
    text = str(value)
    unit = _COUNT_UNITS.get(text[-1:], 1)
    try:
        number = int(float(text.rstrip("kKmMgG")) * unit)
    except (ValueError, OverflowError):  # `nan`, `inf`
        number = 0
    if number <= 0:
        raise InvalidRequest(f"engine argument {name}={value!r} is no number to plan with", param="engine_arg")
    return number

"""From the options of `launch` and `up` to a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from xinf.core.config import Config
from xinf.core.device import check_selector
from xinf.core.errors import InvalidRequest
from xinf.core.ids import DeploymentName, check_name, name_from_model
from xinf.core.own_arguments import INSTEAD, own_argument
from xinf.core.records import ArgValue, DeploymentRecord, EngineSpec, PlacementPolicy, RoutingPolicy

ENGINES = ("vllm", "sim")
# With one of these an engine takes what it is told, whatever its share of a device is.
_COMPUTED_IN = ("auto", "bfloat16", "bf16", "float16", "fp16", "half", "float32", "fp32", "float")
_OWN_SIZE = ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override")


class Found(msgspec.Struct, frozen=True):
    """The model of a wish, as an EngineSpec has it."""

    model: str
    revision: str | None = None


def find_model(config: Config, model: str, engine: str) -> Found:
    """What the engine is to load; the scripted model is written if need be. No hub is asked.

    Raises: UnknownModel, InvalidRequest.
    """
    from xinf.registry import is_directory, resolve_model

    if engine == "sim" and not is_directory(Path(model).expanduser()):
        # It simulates; a name is enough.
        return Found(model)
    source = resolve_model(model, models_dir=config.paths.models_dir, config=config.registry)
    return Found(source.location, source.revision)


def check_types(engine: str, dtype: str, quantization: str | None) -> tuple[str, str | None]:
    """What to compute in and how weights are packed, as engines write it. Raises: InvalidRequest."""
    from xinf.registry import check_method

    if engine not in ENGINES:
        raise InvalidRequest(f"engine {engine!r} is not known: use {' or '.join(ENGINES)}", param="engine")
    dtype = dtype.lower()
    if engine == "sim":
        return dtype, quantization
    if dtype not in _COMPUTED_IN:
        raise InvalidRequest(
            f"--dtype {dtype[:100]!r} is no type that an engine computes in: use auto, bfloat16, float16 or float32",
            remedy="weights are packed with --quantization (fp8, awq, gptq, ...)",
            param="dtype",
        )
    return dtype, None if quantization is None else check_method(engine, quantization)


def make_spec(
    config: Config,
    *,
    model: str,
    engine: str,
    name: DeploymentName,
    served_names: Sequence[str],
    device: str,
    dtype: str,
    quantization: str | None,
    tensor_parallel_size: int,
    max_model_len: int | None,
    trust_remote_code: bool,
    engine_args: Sequence[str],
    env: Sequence[str],
) -> EngineSpec:
    """Check and assemble. Raises: InvalidRequest, UnknownModel."""
    dtype, quantization = check_types(engine, dtype, quantization)
    for each in served_names:
        if each != each.strip() or not each or not each.isprintable():
            raise InvalidRequest(f"--served-name {each!r} is no name that a client could ask for", param="served_name")
    found = find_model(config, model, engine)
    # Clients may use the hub id as well; a path on this host is nobody's business.
    default_names = (name, model) if model == found.model and not _is_address(model) and model != name else (name,)
    arguments = parse_engine_args(engine_args)
    if engine != "sim":
        _check_own(arguments)
    revision = found.revision
    if not Path(found.model).is_absolute() and engine != "sim":
        given = arguments.pop("revision", None)  # as vLLM has it; one at the end of the model beats it
        revision = revision or (None if given is None else str(given))
    if engine != "sim":
        # As many devices are looked for: only the option says that to whoever places it.
        tensor_parallel_size = _size(arguments.pop("tensor_parallel_size", tensor_parallel_size))
    return EngineSpec(
        model=found.model,
        revision=revision,
        engine=engine,
        served_names=tuple(served_names) or default_names,
        device=check_selector(device) if device != "auto" else device,
        dtype=dtype,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        trust_remote_code=trust_remote_code,
        engine_args=arguments,
        env=dict(_pairs("--env", env)),
    )


def _check_own(arguments: Mapping[str, ArgValue]) -> None:
    """Refuse what the engine would refuse a minute later. Raises: InvalidRequest."""
    for name in arguments:
        if (own := own_argument(name)) is not None:
            raise InvalidRequest(
                f"engine argument {name!r} is set by xinf itself",
                remedy=INSTEAD.get(own, "leave it out: clients reach the gateway, not the engine"),
                param="engine_arg",
            )


def make_deployment(
    spec: EngineSpec,
    *,
    name: DeploymentName,
    replicas: int,
    policy: str,
    labels: Sequence[str] = (),
    placement: str = PlacementPolicy.SPREAD,
    priority: int = 0,
    shares: bool = False,
) -> DeploymentRecord:
    """The wish itself. Raises: InvalidRequest."""
    if policy not in tuple(RoutingPolicy):
        raise InvalidRequest(f"policy {policy!r} is not known: use {', '.join(RoutingPolicy)}", param="policy")
    if placement not in tuple(PlacementPolicy):
        known = " or ".join(PlacementPolicy)
        raise InvalidRequest(f"placement {placement!r} is not known: use {known}", param="placement")
    if shares and (own := next((name for name in _OWN_SIZE if name in spec.engine_args), None)):
        raise InvalidRequest(
            f"--share and --engine-arg {own} contradict each other: who shares a device keeps to the memory plan",
            remedy="leave one of them out",
            param="engine_arg",
        )
    return DeploymentRecord(
        name=name,
        spec=spec,
        replicas=replicas,
        policy=RoutingPolicy(policy),
        labels=dict(_pairs("--label", labels)),
        placement=PlacementPolicy(placement),
        priority=priority,
        shares=shares,
    )


def choose_name(name: str | None, model: str) -> DeploymentName:
    """The given name, or one made from the model. Raises: InvalidRequest."""
    return DeploymentName(check_name(name, what="name")) if name else name_from_model(model)


def parse_engine_args(texts: Sequence[str]) -> dict[str, ArgValue]:
    """Read what --engine-arg was given. Raises: InvalidRequest."""
    return {key.replace("-", "_"): _value(text) for key, text in _pairs("--engine-arg", texts)}


def _is_address(model: str) -> bool:
    return "://" in model or Path(model).is_absolute()


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InvalidRequest(f"{option} {text!r} is not KEY=VALUE", param=option)
        pairs.append((key.strip().removeprefix("--"), value))
    return pairs


def _size(given: ArgValue) -> int:
    if type(given) is not int or given < 1:  # `true` is none either
        raise InvalidRequest(
            f"engine argument tensor_parallel_size={given} is no number of devices", param="engine_arg"
        )
    return given


def _value(text: str) -> ArgValue:
    """`true`, `8` and `0.9` as what they look like, everything else as text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Configuration: configs/default.toml, then a file, then XINF_* variables, then flags; each beats the one before.

The structs below say which keys exist and of what type; `configs/default.toml` says what they mean and their defaults,
and is itself loaded as the lowest layer, so that neither can drift from the other. Sizes and durations are written as
text with a unit and arrive here as bytes and seconds.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from xinf.core.errors import ConfigError, InvalidRequest
from xinf.core.paths import Paths, default_data_dir
from xinf.core.units import parse_bytes, parse_seconds

Bytes = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes"})]
Seconds = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "seconds"})]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
FRONTS = ("granian", "granian-rsgi", "direct")
HUBS = ("huggingface", "modelscope")
Rate = Annotated[float, msgspec.Meta(gt=0)]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str
    port: Port
    front: str
    workers: Annotated[int, msgspec.Meta(ge=0, le=512)]
    insecure: bool
    tls_cert: str
    tls_key: str
    max_body_bytes: Bytes
    max_json_depth: Annotated[int, msgspec.Meta(ge=4, le=1024)]
    request_read_timeout: Seconds
    request_timeout: Seconds
    max_waiting: Annotated[int, msgspec.Meta(ge=0)]
    max_inflight_per_replica: Positive
    waiting_timeout: Seconds
    stream_buffer_bytes: Bytes
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=10)]
    retry_budget_pct: Annotated[float, msgspec.Meta(ge=0, le=100)]
    access_log_sample: Share
    recent_decisions: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    candidates_every: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    backlog: Positive
    drain_timeout: Seconds
    cors_origins: str


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    index_max_bytes: Bytes
    exact_index_max_bytes: Bytes
    chunk_bytes: Annotated[int, msgspec.Meta(ge=16, le=4096)]
    prior_prefill_tokens_per_s: Rate
    prior_bytes_per_token: Rate


class ControlConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    listen: str
    resync_interval: Seconds
    share_headroom: Bytes
    events_kept: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_bytes: Bytes
    history_revisions: Positive
    history_age: Seconds
    no_sync: bool


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    node: str
    address: str
    labels: str
    lease_ttl: Seconds
    start_timeout: Seconds
    drain_timeout: Seconds
    backoff_initial: Seconds
    backoff_max: Seconds
    backoff_reset: Seconds
    engines_dir: str
    stop_engines: bool
    sample_interval: Seconds
    measured_kept: Annotated[int, msgspec.Meta(ge=1, le=1 << 14)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    watchdog_timeout: Seconds
    warmup_timeout: Seconds


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    huggingface_endpoint: str
    modelscope_endpoint: str
    offline: bool
    timeout: Seconds
    download_workers: Annotated[int, msgspec.Meta(ge=1, le=64)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one xinf installation, complete and validated."""

    data_dir: str
    log_level: str
    gateway: GatewayConfig
    routing: RoutingConfig
    control: ControlConfig
    store: StoreConfig
    agent: AgentConfig
    engine: EngineConfig
    registry: RegistryConfig

    @property
    def paths(self) -> Paths:
        return Paths(Path(self.data_dir) if self.data_dir else default_data_dir())


def configs_dir() -> Path:
    """The directory of the shipped configuration: inside an installed package, or the checkout's own.

    Raises: ConfigError if neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package.parent / "configs", package / "_data" / "configs"):
        if (candidate / "default.toml").is_file():
            return candidate
    raise ConfigError(f"the shipped configuration is missing below {package}", remedy="reinstall xinf")


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Config:
    """Build the configuration from all four layers.

    `file`: a TOML file, None for $XINF_CONFIG or nothing. `overrides`: dotted keys from flags, such as
    `{"gateway.port": 9000}`; a value of None means that the flag was not given.

    Raises: ConfigError naming the key, where it came from and the nearest known key.
    """
    env = os.environ if environ is None else environ
    values = _flatten(_read_toml(configs_dir() / "default.toml"))
    known = dict(_known_keys())
    if missing := sorted(set(known) - set(values)):
        raise ConfigError(f"configs/default.toml lacks {', '.join(missing)}")
    chosen = file or (Path(env["XINF_CONFIG"]) if env.get("XINF_CONFIG") else None)
    layers: list[tuple[str, dict[str, object]]] = [("configs/default.toml", dict(values))]
    if chosen is not None:
        layers.append((str(chosen), _flatten(_read_toml(chosen))))
    layers.append(("the environment", _from_environ(env, known)))
    layers.append(("the command line", {key: value for key, value in (overrides or {}).items() if value is not None}))
    for source, layer in layers:
        for key, value in layer.items():
            if key not in known:
                raise _unknown_key(key, source, list(known))
            values[key] = _convert(key, value, known[key], source)
    return _build(values)


def to_environ(config: Config) -> str:
    """Encode a configuration for a child process; `from_environ` reads it back. For xinf's own processes only."""
    return msgspec.json.encode(config).decode()


def from_environ(text: str) -> Config:
    """Read what `to_environ` wrote."""
    return msgspec.json.decode(text, type=Config)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file {path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error


def _flatten(tree: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def _known_keys() -> list[tuple[str, Any]]:
    """Every dotted key with its annotated type."""
    keys: list[tuple[str, Any]] = []
    for name, kind in get_type_hints(Config, include_extras=True).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            keys += [(f"{name}.{field}", sub) for field, sub in get_type_hints(kind, include_extras=True).items()]
        else:
            keys.append((name, kind))
    return keys


def _from_environ(env: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, object]:
    by_variable = {"XINF_" + key.replace(".", "_").upper(): key for key in known}
    sections = {"XINF_" + key.split(".", 1)[0].upper() + "_" for key in known if "." in key}
    found: dict[str, object] = {}
    for variable, text in env.items():
        if variable in by_variable:
            found[by_variable[variable]] = text
        elif any(variable.startswith(section) for section in sections):
            raise _unknown_key(variable, "the environment", list(by_variable))
    return found


def _convert(key: str, value: object, kind: Any, source: str) -> object:
    base, unit = _base_and_unit(kind)
    try:
        if isinstance(value, str):
            if unit == "bytes":
                return parse_bytes(value)
            if unit == "seconds":
                return parse_seconds(value)
            # Text from the environment or a flag: msgspec turns "8080" and "true" into what the key wants.
            return msgspec.convert(value, type=kind, strict=base is str)
        return msgspec.convert(value, type=kind)
    except (InvalidRequest, msgspec.ValidationError) as error:
        raise ConfigError(f"{key} = {value!r} from {source} is not valid: {error}", key=key) from error


def _base_and_unit(kind: Any) -> tuple[Any, str | None]:
    base = getattr(kind, "__origin__", kind)
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.extra:
            return base, str(meta.extra.get("unit"))
    return base, None


def _unknown_key(key: str, source: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return ConfigError(
        f"unknown key {key!r} in {source}",
        remedy=f"the nearest known key is {near[0]!r}; `xinf config show` lists all",
        key=key,
        nearest=near[0],
    )


def _build(values: Mapping[str, object]) -> Config:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    if tree["log_level"] not in ("debug", "info", "warning", "error"):
        raise ConfigError(
            f"log_level = {tree['log_level']!r} is not one of debug, info, warning, error", key="log_level"
        )
    if (front := tree["gateway"]["front"]) not in FRONTS:
        raise ConfigError(f"gateway.front = {front!r} is not one of {', '.join(FRONTS)}", key="gateway.front")
    if (hub := tree["registry"]["source"]) not in HUBS:
        raise ConfigError(f"registry.source = {hub!r} is not one of {', '.join(HUBS)}", key="registry.source")
    if bool(tree["gateway"]["tls_cert"]) != bool(tree["gateway"]["tls_key"]):
        raise ConfigError(
            "gateway.tls_cert and gateway.tls_key go together: one of them is empty", key="gateway.tls_cert"
        )
    return msgspec.convert(tree, type=Config)

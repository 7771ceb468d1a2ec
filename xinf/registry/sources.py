"""Where models come from besides this host: which hub, which mirror, which cache, whether the network may be used.

Org/Name                  the hub that `registry.source` names, Hugging Face if nothing else is said
hf://Org/Name             Hugging Face
modelscope://Org/Name     ModelScope
Org/Name@REVISION         a branch, a tag or a commit, in any of them
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from xinf.core.config import RegistryConfig, load
from xinf.core.errors import ConfigError, InvalidRequest
from xinf.core.records import EngineSpec

MAX_NAME = 96  # characters of an organisation or a model, as Hugging Face has it
HUB_ID = re.compile(rf"[A-Za-z0-9][\w.-]{{0,{MAX_NAME - 1}}}(/[A-Za-z0-9][\w.-]{{0,{MAX_NAME - 1}}})?")
COMMIT = re.compile(r"[0-9A-Za-z]{7,64}")  # of either hub; becomes the name of a directory
SHA256 = re.compile(r"[0-9a-f]{64}")  # becomes the name of a file
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
GIT_BLOB = re.compile(r"[0-9a-f]{40}")  # becomes the name of a file
_USER = re.compile(r"//[^/@\s]+@")  # of an address
_REVISION = re.compile(r"[\w][\w./-]{0,199}")
_TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads HF_HUB_OFFLINE
_HUGGINGFACE, _MODELSCOPE = "https://huggingface.co", "https://modelscope.cn"


class Hub(StrEnum):
    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


_PREFIXES = {"hf://": Hub.HUGGINGFACE, "huggingface://": Hub.HUGGINGFACE, "modelscope://": Hub.MODELSCOPE}


class Reference(msgspec.Struct, frozen=True):
    """A model of a hub."""

    hub: Hub
    repository: str
    revision: str | None  # None: the hub's default branch

    def __str__(self) -> str:
        """As a user types it, with its hub."""
        return f"{self.hub}://{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def model(self) -> str:
        """Without its revision, as an EngineSpec has it: a bare id is one of Hugging Face, as engines take it."""
        return self.repository if self.hub is Hub.HUGGINGFACE else f"{self.hub}://{self.repository}"


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """How the hubs are reached. A token is never printed."""

    default: Hub
    huggingface_endpoint: str
    huggingface_cache: Path
    huggingface_token: str | None
    modelscope_endpoint: str
    modelscope_cache: Path
    modelscope_token: str | None
    is_offline: bool
    timeout_s: float
    download_workers: int


def find_sources(
    environ: Mapping[str, str] | None = None, config: RegistryConfig | None = None, *, offline: bool | None = None
) -> Sources:
    """Put together what the configuration, the hubs' own variables and a flag say; each beats the ones after it in
    the order flag, configuration, variable, default. Raises: ConfigError for an address, or a token, that is none.
    """
    env = os.environ if environ is None else environ
    settings = config or load(environ=env).registry
    is_offline = settings.offline or _is_true(env.get("HF_HUB_OFFLINE")) or _is_true(env.get("TRANSFORMERS_OFFLINE"))
    return Sources(
        default=Hub(settings.source),
        huggingface_endpoint=_endpoint(settings.huggingface_endpoint or env.get("HF_ENDPOINT") or _HUGGINGFACE),
        huggingface_cache=hub_cache_dir(env),
        huggingface_token=_token(env, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        modelscope_endpoint=_endpoint(settings.modelscope_endpoint or _modelscope_variable(env) or _MODELSCOPE),
        modelscope_cache=Path(env.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser(),
        modelscope_token=_token(env, "MODELSCOPE_API_TOKEN"),
        is_offline=is_offline if offline is None else offline,
        timeout_s=settings.timeout,
        download_workers=settings.download_workers,
    )


def parse_reference(model: str, default: Hub, *, revision: str | None = None) -> Reference:
    """Split what a user typed. `revision` beats one that is part of it. Raises: InvalidRequest."""
    hub, rest = default, model
    for prefix, meant in _PREFIXES.items():
        if model.startswith(prefix):
            hub, rest = meant, model.removeprefix(prefix)
    repository, _, typed = rest.partition("@")
    chosen = revision or typed or None
    if any(len(part) > MAX_NAME for part in repository.split("/")):
        raise InvalidRequest(
            f"{repository[:200]!r} is no hub id: each of its two parts has {MAX_NAME} characters at most",
            remedy="check the name; for a directory write a slash in front (./model)",
            param="model",
        )
    if not HUB_ID.fullmatch(repository) or (hub is Hub.MODELSCOPE and "/" not in repository):
        raise InvalidRequest(
            f"{model[:200]!r} is neither a path nor a hub id",
            remedy="write a directory with a slash in front (./model), or Org/Name",
            param="model",
        )
    if chosen is not None and (not _REVISION.fullmatch(chosen) or ".." in chosen):
        raise InvalidRequest(
            f"{chosen[:200]!r} is no revision", remedy="give a branch, a tag or a commit", param="revision"
        )
    return Reference(hub, repository, chosen)


def is_commit(revision: str) -> bool:
    """Whether a revision can mean nothing else tomorrow: branches and tags move."""
    return _HEX.fullmatch(revision) is not None


def is_reference(model: str) -> bool:
    """Whether it names its hub, so that no directory can be meant."""
    return model.startswith(tuple(_PREFIXES))


def hub_cache_dir(environ: Mapping[str, str]) -> Path:
    """The cache that huggingface_hub and engines share. Source: huggingface_hub 2.4, `constants.py`."""
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "hub"


def reference_of(spec: EngineSpec) -> Reference | None:
    """The model of a hub that a spec means, at its commit if that is known; None for a path, and for a simulated one.

    Raises: InvalidRequest if it names neither a path nor a model of a hub.
    """
    if spec.engine != "vllm" or Path(spec.model).is_absolute():
        return None
    return parse_reference(spec.model, Hub.HUGGINGFACE, revision=spec.commit or spec.revision)


def without_password(text: str) -> str:
    """What people and records are shown of an address, and of a sentence that has some in it."""
    return _USER.sub("//", text)


def _token(environ: Mapping[str, str], *names: str) -> str | None:
    """The first token that is set; a secret that was read from a file often ends with a line feed.

    A client would say what it cannot send, and a replica's failure is for all to read.
    """
    for name in names:
        if token := environ.get(name, "").strip():
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ConfigError(f"{name} has characters that no token has", remedy="set it again, without quotes")
            return token
    return None


def _endpoint(address: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
        raise ConfigError(f"{without_password(address)[:200]!r} is no address of a hub", remedy="write https://host")
    return address.rstrip("/")


def _modelscope_variable(environ: Mapping[str, str]) -> str | None:
    if endpoint := environ.get("MODELSCOPE_ENDPOINT"):
        return endpoint
    domain = environ.get("MODELSCOPE_DOMAIN")
    return domain if not domain or domain.startswith("http") else f"https://{domain}"


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in _TRUE

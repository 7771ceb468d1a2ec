"""Where a model comes from: what a user typed, resolved on the host that will load it.

scripted              the checkpoint of xinf/registry/scripted.py, written to `models_dir` if it is not there yet
/a/path, ./a, ~/a     a directory with a config.json
Org/Name              a Hugging Face id: taken from the cache, or downloaded by the engine unless HF_HUB_OFFLINE says no
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from xinf.core.errors import InvalidRequest, UnknownModel
from xinf.registry.facts import ModelFacts
from xinf.registry.scripted import write_scripted_model

SCRIPTED = "scripted"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads HF_HUB_OFFLINE


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """Something an engine can load."""

    location: str  # an absolute directory or a hub id
    directory: Path | None = None  # where its files are, if they are on this host already
    facts: ModelFacts | None = None


def resolve_model(model: str, *, models_dir: Path, environ: Mapping[str, str] | None = None) -> ModelSource:
    """Find a model by what a user typed. Writes the scripted one if it is wanted and not there.

    Raises: UnknownModel saying what was looked for and what to do; InvalidRequest for what is neither path nor id.
    """
    if model == SCRIPTED and not Path(model).is_dir():
        return _in_directory(write_scripted_model(models_dir / SCRIPTED), model)
    path = Path(model).expanduser()
    if path.is_dir():
        return _in_directory(path.absolute(), model)
    if path.is_file():
        # GGUF and the like: one file that only the engine can read.
        return ModelSource(location=str(path.absolute()), directory=path.absolute().parent)
    if model.startswith(("/", "./", "../", "~")) or model in (".", ".."):
        raise UnknownModel(
            f"there is no directory {path.absolute()} on this host",
            remedy="check the path; it must exist on the host that runs the engine",
            param="model",
        )
    if not _HUB_ID.fullmatch(model):
        raise InvalidRequest(
            f"{model[:200]!r} is neither a path nor a hub id",
            remedy="write a directory with a slash in front (./model), or Org/Name",
            param="model",
        )
    return _from_hub(model, os.environ if environ is None else environ)


def read_facts(directory: Path) -> ModelFacts:
    """Read config.json. Raises: UnknownModel if it is missing or unreadable."""
    path = directory / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise UnknownModel(
            f"{directory} has no config.json",
            remedy="give the directory that holds config.json, tokenizer and weights",
            param="model",
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise UnknownModel(f"{path} cannot be read: {error}", remedy="fetch the model again", param="model") from error
    return _facts(config)


def _in_directory(directory: Path, model: str) -> ModelSource:
    facts = read_facts(directory)
    if not facts.architectures and facts.model_type is None:
        raise UnknownModel(
            f"{directory / 'config.json'} names no architecture, so {model!r} is no model that an engine can load",
            remedy="give the directory of the model itself (an adapter is loaded on top of its base model)",
            param="model",
        )
    return ModelSource(location=str(directory), directory=directory, facts=facts)


def _from_hub(model: str, environ: Mapping[str, str]) -> ModelSource:
    snapshot = _cached_snapshot(model, environ)
    if snapshot is not None:
        return ModelSource(location=model, directory=snapshot, facts=read_facts(snapshot))
    if environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        raise UnknownModel(
            f"{model} is not in the Hugging Face cache {_cache_dir(environ)}, and HF_HUB_OFFLINE forbids to fetch it",
            remedy="unset HF_HUB_OFFLINE, or fetch the model before, or give a directory (./name)",
            param="model",
        )
    return ModelSource(location=model)


def _cached_snapshot(model: str, environ: Mapping[str, str]) -> Path | None:
    """The directory of the revision that `main` points to. Source: huggingface_hub, layout of the cache."""
    repository = _cache_dir(environ) / ("models--" + model.replace("/", "--"))
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if (snapshot / "config.json").is_file() else None


def _cache_dir(environ: Mapping[str, str]) -> Path:
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(explicit).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "hub"


def _facts(config: Mapping[str, Any]) -> ModelFacts:
    # Models for text and images keep the language model's numbers one level down.
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    n_heads, hidden = _count(text, "num_attention_heads"), _count(text, "hidden_size")
    architectures = config.get("architectures")
    return ModelFacts(
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        model_type=_word(config, "model_type"),
        max_positions=_count(text, "max_position_embeddings") or _count(text, "n_positions"),
        dtype=_word(text, "dtype") or _word(text, "torch_dtype"),
        n_layers=_count(text, "num_hidden_layers"),
        n_kv_heads=_count(text, "num_key_value_heads") or n_heads,
        head_size=_count(text, "head_dim") or (hidden // n_heads if hidden and n_heads else None),
        vocabulary_size=_count(text, "vocab_size"),
    )


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _word(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) else None

"""Where a model comes from: what a user typed, resolved on the host that will load it.

scripted                the checkpoint of xinf/registry/scripted.py, written to `models_dir` if it is not there yet
/a/path, ./a, ~/a       a directory with a config.json
Org/Name                a Hugging Face id: in the cache, or downloaded by the engine unless HF_HUB_OFFLINE says no
modelscope://Org/Name   a ModelScope id: must have been fetched with `xinf pull`, engines do not fetch it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.errors import InvalidRequest, UnknownModel
from xinf.core.model import ModelFacts
from xinf.registry.reader import read_facts
from xinf.registry.scripted import write_scripted_model
from xinf.registry.sources import Hub, Reference, Sources, cached_snapshot, find_sources, is_reference, parse_reference

SCRIPTED = "scripted"


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """Something an engine can load."""

    location: str  # an absolute directory or a hub id
    directory: Path | None = None  # where its files are, if they are on this host already
    facts: ModelFacts | None = None


def resolve_model(
    model: str, *, models_dir: Path, environ: Mapping[str, str] | None = None, config: RegistryConfig | None = None
) -> ModelSource:
    """Find a model by what a user typed. Writes the scripted one if it is wanted and not there.

    Raises: UnknownModel saying what was looked for and what to do; InvalidRequest for what is neither path nor id.
    """
    if model == SCRIPTED and not Path(model).is_dir():
        return _in_directory(write_scripted_model(models_dir / SCRIPTED), model)
    path = Path(model).expanduser()
    if not is_reference(model):
        if path.is_dir():
            return _in_directory(path.absolute(), model)
        if path.is_file():
            # GGUF and the like: one file that only the engine can read.
            return ModelSource(location=str(path.absolute()), directory=path.absolute().parent)
        if looks_like_path(model):
            raise UnknownModel(
                f"there is no directory {path.absolute()} on this host",
                remedy="check the path; it must exist on the host that runs the engine",
                param="model",
            )
    # Asked for here alone: a variable of a hub that is wrong is no matter for a directory.
    sources = find_sources(environ, config)
    return _from_hub(parse_reference(model, sources.default), sources)


def refer_model(
    model: str, *, environ: Mapping[str, str] | None = None, config: RegistryConfig | None = None
) -> str | None:
    """Write a model of a hub with its hub, for `read_model`: `modelscope://Org/Name@v1`.

    None where something on this host is meant, or where no hub may be asked. Raises: InvalidRequest.
    """
    sources = find_sources(environ, config)
    is_local = looks_like_path(model) or Path(model).expanduser().exists()
    if sources.is_offline or (is_local and not is_reference(model)):
        return None
    return str(parse_reference(model, sources.default))


def looks_like_path(model: str) -> bool:
    """Whether only a path can be meant."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def _in_directory(directory: Path, model: str) -> ModelSource:
    facts = read_facts(directory)
    if not facts.architectures and facts.model_type is None:
        raise UnknownModel(
            f"{directory / 'config.json'} names no architecture, so {model!r} is no model that an engine can load",
            remedy="give the directory of the model itself (an adapter is loaded on top of its base model)",
            param="model",
        )
    return ModelSource(location=str(directory), directory=directory, facts=facts)


def _from_hub(reference: Reference, sources: Sources) -> ModelSource:
    if reference.hub is Hub.MODELSCOPE:
        from xinf.registry.modelscope import downloaded

        directory = downloaded(reference, sources)
        if directory is None:
            raise UnknownModel(
                f"{reference.repository} of ModelScope is not on this host, and engines do not fetch from there",
                remedy=f"fetch it first: xinf pull modelscope://{reference.repository}",
                param="model",
            )
        return _in_directory(directory, reference.repository)
    repository = reference.repository
    snapshot = cached_snapshot(sources.huggingface_cache, repository, reference.revision)
    if reference.revision is not None:
        # An engine takes the newest of an id; a revision can only be held by giving it the files.
        if snapshot is None:
            raise InvalidRequest(
                f"{repository} at {reference.revision} is not on this host",
                remedy=f"fetch it first: xinf pull {repository}@{reference.revision}",
                param="model",
            )
        return _in_directory(snapshot, repository)
    if snapshot is not None:
        return ModelSource(location=repository, directory=snapshot, facts=read_facts(snapshot))
    if sources.is_offline:
        raise UnknownModel(
            f"{repository} is not in the Hugging Face cache {sources.huggingface_cache}, and HF_HUB_OFFLINE forbids to"
            " fetch it",
            remedy="unset HF_HUB_OFFLINE, or fetch the model before, or give a directory (./name)",
            param="model",
        )
    return ModelSource(location=repository)

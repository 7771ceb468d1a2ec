"""What a user typed as a model: files of this host, or a model of a hub that the node of each replica will fetch.

scripted                the checkpoint of xinf/registry/scripted.py, written to `models_dir` if it is not there yet
/a/path, ./a, ~/a       a directory with a config.json
Org/Name                a model of the hub that `registry.source` names
hf://, modelscope://    a model of that hub; @REVISION at the end of any of them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.errors import UnknownModel
from xinf.core.model import ModelFacts
from xinf.registry.hub import not_cached
from xinf.registry.reader import read_facts
from xinf.registry.scripted import write_scripted_model
from xinf.registry.shelf import shelf_of
from xinf.registry.sources import Reference, Sources, find_sources, is_reference, parse_reference

SCRIPTED = "scripted"


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """Something an engine can load."""

    location: str  # an absolute path, or a model of a hub without its revision, as an EngineSpec has it
    revision: str | None = None  # that was asked for; None: the hub's default branch
    directory: Path | None = None  # where its files are, if they are on this host already
    facts: ModelFacts | None = None


def resolve_model(
    model: str, *, models_dir: Path, environ: Mapping[str, str] | None = None, config: RegistryConfig | None = None
) -> ModelSource:
    """Find a model by what a user typed. Writes the scripted one if it is wanted and not there. Asks no hub.

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
    found = ModelSource(location=reference.model, revision=reference.revision)
    snapshot = shelf_of(reference, sources).find_whole(reference.revision)
    if snapshot is not None:
        facts = read_facts(snapshot) if (snapshot / "config.json").is_file() else None
        return msgspec.structs.replace(found, directory=snapshot, facts=facts)
    if sources.is_offline:
        raise not_cached(reference, sources)
    return found

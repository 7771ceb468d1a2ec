"""Which models' files are on this host's disk already: where a replica starts without a download.

Two places are looked into: xinf's own directory of models, and the cache that the Hugging Face client shares with
everybody (`models--Org--Name/snapshots/<commit>/`). Names only; nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from xinf.registry import hub_cache_dir

# Blobs that are not whole yet: of the client and of engines; of `xinf pull`.
_UNFINISHED = (".incomplete", ".partial")
MAX_MODELS = 512  # the list is part of the node's record


def find_models(models_dir: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """List hub ids and absolute directories, sorted, at most MAX_MODELS. A directory that cannot be read has none."""
    found = {*_in_directory(models_dir), *_in_hub_cache(hub_cache_dir(environ))}
    return tuple(sorted(found)[:MAX_MODELS])


def _in_directory(directory: Path) -> Iterator[str]:
    for path in _entries(directory):
        if (path / "config.json").is_file():
            yield str(path.absolute())


def _in_hub_cache(cache: Path) -> Iterator[str]:
    for path in _entries(cache):
        kind, _, rest = path.name.partition("--")
        is_loading = any(blob.suffix in _UNFINISHED for blob in _entries(path / "blobs"))
        if kind == "models" and rest and not is_loading and any(map(_has_config, _entries(path / "snapshots"))):
            yield rest.replace("--", "/", 1)


def _has_config(snapshot: Path) -> bool:
    return (snapshot / "config.json").exists()


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []

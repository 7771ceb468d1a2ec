"""Which models' files are on this host's disk already: where a replica starts without a download.

Two places are looked into: xinf's own directory of models, and the cache that the Hugging Face client shares with
everybody (`models--Org--Name/snapshots/<commit>/`). Names only; nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

MAX_MODELS = 512  # the list is part of the node's record


def find_models(models_dir: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """List hub ids and absolute directories, sorted, at most MAX_MODELS. A directory that cannot be read has none."""
    found = {*_in_directory(models_dir), *_in_hub_cache(hub_cache(environ))}
    return tuple(sorted(found)[:MAX_MODELS])


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where the Hugging Face client keeps what it has downloaded. Source: huggingface_hub 1.0, constants.py."""
    if path := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(path).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"


def _in_directory(directory: Path) -> Iterator[str]:
    for path in _entries(directory):
        if (path / "config.json").is_file():
            yield str(path.absolute())


def _in_hub_cache(cache: Path) -> Iterator[str]:
    for path in _entries(cache):
        kind, _, rest = path.name.partition("--")
        is_loading = any(blob.suffix == ".incomplete" for blob in _entries(path / "blobs"))
        if kind == "models" and rest and not is_loading and any(map(_has_config, _entries(path / "snapshots"))):
            yield rest.replace("--", "/", 1)


def _has_config(snapshot: Path) -> bool:
    return (snapshot / "config.json").exists()


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []

"""Which models' files are whole on this host's disk: where a replica starts without a download.

xinf's own directory of models, and the caches that the clients of Hugging Face and ModelScope share with everybody.
Of a hub's model each commit is named, as an EngineSpec does (`EngineSpec.files`), and the model alone if that is what
its default branch was when it was asked for last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from xinf.core.errors import ConfigError
from xinf.registry import find_sources, list_shelves

# The list is part of the node's record, which is written whole whenever something of it changes.
MAX_MODELS = 128


def find_models(models_dir: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """List directories and models of hubs, sorted: of more than MAX_MODELS those that came last.

    A directory that cannot be read has none. Reads no weights: some listings, and the sizes of files.
    """
    came_s = {**_in_directory(models_dir), **_in_caches(environ)}
    newest = sorted(came_s, key=lambda name: (-came_s[name], name))[:MAX_MODELS]
    return tuple(sorted(newest))


def _in_directory(directory: Path) -> dict[str, float]:
    found = {}
    for path in _entries(directory):
        came_s = _came_s(path / "config.json")
        if came_s is not None:
            found[str(path.absolute())] = came_s
    return found


def _in_caches(environ: Mapping[str, str]) -> dict[str, float]:
    try:
        sources = find_sources(environ)
    except ConfigError:
        return {}  # an address of a hub is wrong: whoever asks that hub is told
    found: dict[str, float] = {}
    for reference, shelf in list_shelves(sources):
        for commit in filter(shelf.is_whole, shelf.commits()):
            came_s = _came_s(shelf.snapshot(commit))
            if came_s is None:
                continue  # it went this moment
            found[f"{reference.model}@{commit}"] = came_s
            if commit == shelf.commit_of(None):
                found[reference.model] = came_s
    return found


def _came_s(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _entries(directory: Path) -> Iterator[Path]:
    try:
        yield from list(directory.iterdir())
    except OSError:
        return

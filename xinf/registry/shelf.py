"""The place of one repository in its hub's cache, which a hub's client, engines and `xinf pull` share.

    refs/<branch or tag>       the commit that it was when it was asked for last
    snapshots/<commit>/...     files under the names that they have in the repository
    blobs/<checksum>           Hugging Face: their contents, which the names link to
    .xinf/<commit>.json        ours: what a download of the commit is to bring, written before its first byte
    .xinf/<branch>.tags.json   ours, where a hub names no commit: which contents the names stood for when we asked last

A snapshot grows file by file, so that a directory with a config.json may be anything between one file and all. It is
whole when every file that our listing names is there with its size. What others fetched has no listing: there the index
of the weights, or any weights, must do.

Source: huggingface_hub 2.4, `file_download.py`, for the layout. Other names in the repository's directory are left
alone by the client (`hf cache` walks refs, snapshots and blobs).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from xinf.core.errors import UnknownModel
from xinf.registry.safetensors import INDEX, MAX_INDEX_BYTES, check_length, parse_index
from xinf.registry.sources import Hub, Reference, Sources
from xinf.registry.wanted import wanted_files

# One of them is in every model that an engine loads; the second is Mistral's own.
CONFIGS = ("config.json", "params.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_INDEXES = {INDEX: ".safetensors", "pytorch_model.bin.index.json": ".bin"}
_BRANCHES = {Hub.HUGGINGFACE: "main", Hub.MODELSCOPE: "master"}


class Shelf:
    """One repository's directory in a cache; it need not exist."""

    def __init__(self, directory: Path, hub: Hub) -> None:
        self.directory = directory
        self._branch = _BRANCHES[hub]

    @property
    def blobs(self) -> Path:
        return self.directory / "blobs"

    def snapshot(self, commit: str) -> Path:
        return self.directory / "snapshots" / commit

    def commit_of(self, revision: str | None) -> str:
        """What a revision was when it was asked for last; itself if it never was."""
        name = revision or self._branch
        try:
            return (self.directory / "refs" / name).read_text().strip() or name
        except (OSError, UnicodeDecodeError):
            return name

    def find(self, revision: str | None) -> Path | None:
        """The snapshot of a revision if anything of a model is there; it may not be whole."""
        snapshot = self.snapshot(self.commit_of(revision))
        return snapshot if any(_has(snapshot / name, None) for name in CONFIGS) else None

    def find_whole(self, revision: str | None) -> Path | None:
        """The snapshot of a revision if all of it is there."""
        snapshot = self.find(revision)
        return snapshot if snapshot is not None and self.is_whole(self.commit_of(revision)) else None

    def is_whole(self, commit: str) -> bool:
        """Whether all files of a commit are there; see above."""
        snapshot, sizes = self.snapshot(commit), self.listing(commit)
        if sizes is not None:
            return all(_has(snapshot / name, size) for name, size in sizes.items())
        return any(_has(snapshot / name, None) for name in CONFIGS) and _has_weights(snapshot)

    def damage(self, revision: str | None) -> str | None:
        """Which weights of a revision that others fetched end before their header says; None if all are as long.

        Their clients give a file its name before the disk has it: a power cut leaves it short. Reads some 100 KB a
        file. Of ours the sizes are known. What no engine reads may be as it likes, a link to nothing even.
        """
        commit = self.commit_of(revision)
        if self.listing(commit) is not None:
            return None
        snapshot = self.snapshot(commit)
        for name in wanted_files(path.name for path in snapshot.glob("*.safetensors")):
            try:
                check_length(snapshot / name)
            except (OSError, UnknownModel) as error:
                return str(error)
        return None

    def listing(self, commit: str) -> Mapping[str, int | None] | None:
        """The files of a commit with their sizes as our download was told; None: it was not ours."""
        try:
            return msgspec.json.decode(self._listing_path(commit).read_bytes(), type=dict[str, int | None])
        except (OSError, msgspec.MsgspecError):
            return None

    def commits(self) -> list[str]:
        """All commits of which there is anything."""
        return [path.name for path in _directories(self.directory / "snapshots")]

    def write_listing(self, commit: str, sizes: Mapping[str, int | None]) -> None:
        """Say what a download is to bring. Raises: OSError."""
        if self.listing(commit) != sizes:
            _replace(self._listing_path(commit), msgspec.json.encode(sizes))

    def tags(self, commit: str) -> Mapping[str, str]:
        """Which content each name stood for when we asked last; nothing where a commit says it."""
        try:
            return msgspec.json.decode(self._tags_path(commit).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}

    def write_tags(self, commit: str, tags: Mapping[str, str]) -> None:
        """Raises: OSError."""
        if self.tags(commit) != tags:
            _replace(self._tags_path(commit), msgspec.json.encode(tags))

    def remember(self, revision: str | None, commit: str) -> None:
        """Let a branch or tag mean a commit from now on. Raises: OSError."""
        name = revision or self._branch
        if commit not in (name, self.commit_of(revision)):
            _replace(self.directory / "refs" / name, commit.encode())

    def _tags_path(self, commit: str) -> Path:
        return self.directory / ".xinf" / f"{commit}.tags.json"

    def _listing_path(self, commit: str) -> Path:
        return self.directory / ".xinf" / f"{commit}.json"


def shelf_of(reference: Reference, sources: Sources) -> Shelf:
    """Where a repository is, or will be."""
    name = reference.repository.replace("/", "--")
    if reference.hub is Hub.MODELSCOPE:
        return Shelf(sources.modelscope_cache / "models" / name, reference.hub)
    return Shelf(sources.huggingface_cache / f"models--{name}", reference.hub)


def list_shelves(sources: Sources) -> Iterator[tuple[Reference, Shelf]]:
    """All repositories of models in the caches of this host."""
    for path in _directories(sources.huggingface_cache):
        kind, _, name = path.name.partition("--")
        if kind == "models" and name:
            yield _reference(Hub.HUGGINGFACE, name), Shelf(path, Hub.HUGGINGFACE)
    for path in _directories(sources.modelscope_cache / "models"):
        if "--" in path.name:
            yield _reference(Hub.MODELSCOPE, path.name), Shelf(path, Hub.MODELSCOPE)


def _reference(hub: Hub, name: str) -> Reference:
    return Reference(hub, name.replace("--", "/", 1), None)


def _directories(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _has(path: Path, size: int | None) -> bool:
    """Whether there is such a file, of that size if it is given; one that may not be looked at is not there."""
    try:
        found = path.stat()  # of what a link leads to; of one whose blob is gone there is none
    except (OSError, ValueError):  # no file can have the name that a damaged list gives
        return False
    return stat.S_ISREG(found.st_mode) and size in (None, found.st_size)


def _has_weights(snapshot: Path) -> bool:
    try:
        for name, ending in _INDEXES.items():
            index = snapshot / name
            if index.is_file():
                with index.open("rb") as file:
                    shards = parse_index(file.read(MAX_INDEX_BYTES), str(index), ending=ending)
                return all(_has_content(snapshot / shard) for shard in shards)
        with os.scandir(snapshot) as entries:
            weights = [entry.name for entry in entries if entry.name.endswith(_WEIGHTS) and entry.is_file()]
        return bool(weights) and all(_has_content(snapshot / name) for name in weights)
    except (OSError, UnknownModel):
        return False


def _has_content(path: Path) -> bool:
    """Whether a file is there and not empty, as one is that a power cut has met."""
    return path.is_file() and path.stat().st_size > 0


def _replace(path: Path, content: bytes) -> None:
    """Write a file that a power cut leaves whole, under this name or not at all.

    Without its list a part of a model that somebody began would count as what others have fetched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unique_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # the disk is full, say
        raise
    for directory in (path.parent, path.parent.parent):
        _sync_directory(directory)


def unique_name(path: Path) -> Path:
    """A name beside `path` for what is to take its place: a pid is not enough where hosts share the disk."""
    return path.with_name(f".{secrets.token_hex(12)}")


def _sync_directory(directory: Path) -> None:
    """Have the disk keep the names in a directory; not every file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

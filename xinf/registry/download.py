"""Fetch a model to this host, once, so that an engine starts from the disk.

A download that is interrupted goes on where it ended; files that are here are not asked for again; the revision is
looked up once and all files are of that commit. What a commit is to have is written down before its first byte, so that
nobody takes a part for the whole (shelf.py).
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.errors import InvalidRequest, Unavailable
from xinf.core.units import format_bytes
from xinf.registry.blob import MAX_RETRY_AFTER_S, Checksum, fetch
from xinf.registry.hub import HubFile, HubFiles, list_repository
from xinf.registry.shelf import CONFIGS, Shelf, shelf_of, unique_name
from xinf.registry.sources import Hub, Reference, Sources, find_sources, is_commit, parse_reference
from xinf.registry.state import drop_changed
from xinf.registry.wanted import wanted_files

# Above this Hugging Face answers no request for a whole file, but those for parts of it. Source: huggingface_hub,
# `constants.MAX_HTTP_DOWNLOAD_SIZE`; pull request 2991.
_WHOLE_LIMIT_BYTES = 50_000_000_000
_PIECE_BYTES = 10_000_000_000
_MAX_FILES = 20_000  # the largest models have some hundreds; a disk has only so many inodes
_LIST_TRIES = 4
_TOLD_WAIT_S = 5.0  # a wait that is longer is worth telling
_SPARE_BYTES = 64 << 20  # left free for whatever else is on that disk: logs, our own state, why a replica failed
_LOOK_BYTES = 16 << 20  # that are written between two looks at how much is free


class Progress(msgspec.Struct, frozen=True):
    """How far a download is. Counts what was here before, so that a resumed one does not start at 0."""

    done_bytes: int
    total_bytes: int
    name: str  # the file that got the last bytes
    waits_s: float | None = None  # until a hub that sends nothing, or little, is asked again


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is on this host now."""

    directory: Path
    revision: str
    n_files: int
    n_bytes: int


OnProgress = Callable[[Progress], None]


def download_model(
    model: str,
    *,
    environ: Mapping[str, str] | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    on_progress: OnProgress | None = None,
    config: RegistryConfig | None = None,
) -> Download:
    """Fetch a model of a hub into that hub's cache and return where it is.

    `on_progress` is called from several threads, one at a time.

    Raises: UnknownModel, InvalidRequest, PermissionDenied, Unauthenticated, Unavailable (also: offline, disk full),
    Conflict, with the `path` that is locked, if another process fetches the same file.
    """
    sources = find_sources(environ, config, offline=offline)
    reference = parse_reference(model, sources.default, revision=revision)
    if sources.is_offline:
        raise Unavailable(f"{model} cannot be fetched offline", remedy="unset HF_HUB_OFFLINE (registry.offline)")
    return download(reference, sources, on_progress)


def download(reference: Reference, sources: Sources, on_progress: OnProgress | None = None) -> Download:
    """The same for a reference; asks its hub whether it may or not. Raises: as `download_model`."""
    meter = Meter(on_progress)
    files = _list_patiently(reference, sources, meter)
    names = wanted_files(files.sizes)
    if not any(name in names for name in CONFIGS):
        raise InvalidRequest(
            f"{files.where} has no config.json", remedy="choose a repository of a model for transformers", param="model"
        )
    if len(names) > _MAX_FILES:
        raise InvalidRequest(
            f"{files.where} has {len(names)} files to fetch, and no model has more than {_MAX_FILES}",
            remedy="check where it is from",
            param="model",
        )
    if (unsized := next((name for name in names if files.sizes[name] is None), None)) is not None:
        raise Unavailable(f"{files.where} does not say how large {unsized} is", remedy="try again; use another mirror")
    shelf = shelf_of(reference, sources)
    meter.look = lambda: _check_spare(shelf)
    meter.total_is(sum(files.sizes[name] or 0 for name in names))
    listing = {name: files.sizes[name] for name in names}
    try:
        is_moving = not is_commit(files.revision)
        # What others fetched may be whole without a README: then it must stay so, wherever this ends. And what was the
        # whole of a branch need not be any more.
        if not shelf.is_whole(files.revision) or (is_moving and shelf.listing(files.revision) is not None):
            shelf.write_listing(files.revision, listing)
        if is_moving:
            drop_changed(files, names, shelf)
        _check_room(reference, shelf, files, names)
        fetch_all(names, _Placer(reference, files, shelf, meter).place, sources, meter)
        with contextlib.suppress(OSError):  # all files are here, if in a cache that others keep
            shelf.write_listing(files.revision, listing)
            shelf.remember(reference.revision, files.revision)
        directory = shelf.snapshot(files.revision)
        sizes = [(directory / name).stat().st_size for name in names]
    except OSError as error:
        raise _not_stored(reference, shelf, error) from error
    return Download(directory=directory, revision=files.revision, n_files=len(sizes), n_bytes=sum(sizes))


def _list_patiently(reference: Reference, sources: Sources, meter: Meter) -> HubFiles:
    """Ask for the list, again if the hub says when: many nodes that start at once are more than it allows."""
    for _ in range(_LIST_TRIES - 1):
        try:
            return list_repository(reference, sources)
        except Unavailable as error:
            if not (wait_s := error.fields.get("retry_after_s")):
                raise
            meter.pause(min(float(wait_s), MAX_RETRY_AFTER_S))
    return list_repository(reference, sources)


def _not_stored(reference: Reference, shelf: Shelf, error: OSError) -> Unavailable:
    cache = shelf.directory.parent
    remedy = f"make room in {cache}, and check whose it is"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = f"let this user write to {cache}, or set another cache (HF_HUB_CACHE, MODELSCOPE_CACHE)"
    return Unavailable(f"{reference.repository} cannot be stored: {error}", remedy=remedy)


def fetch_all(names: Sequence[str], fetch: Callable[[str], None], sources: Sources, meter: Meter) -> None:
    """Fetch files side by side. After the first failure, or Ctrl-C, those under way end with their next bytes."""
    pool = ThreadPoolExecutor(max_workers=sources.download_workers, thread_name_prefix="download")
    try:
        tasks = [pool.submit(fetch, name) for name in names]
        for task in as_completed(tasks):
            task.result()
    finally:
        meter.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class _Placer:
    """Puts the files of one repository where its hub's client and engines look for them."""

    def __init__(self, reference: Reference, files: HubFiles, shelf: Shelf, meter: Meter) -> None:
        self._files = files
        self._shelf = shelf
        self._meter = meter
        self._has_blobs = reference.hub is Hub.HUGGINGFACE
        # The same content may have several names; one thread brings it, and the others find it.
        self._locks = {content: threading.Lock() for file in files.files.values() if (content := _content(file))}

    def place(self, name: str) -> None:
        """Bring one file. Raises: as `HubFiles.ask`; Conflict; OSError."""
        file = self._files.files[name]
        path, content = self._shelf.snapshot(self._files.revision) / name, _content(file)
        if not self._has_blobs or content is None or (path.exists() and path.stat().st_size == file.size):
            _bring(self._files, name, path, self._meter)
            return
        with self._locks[content]:
            _bring(self._files, name, self._shelf.blobs / content, self._meter)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = unique_name(path)
        temporary.symlink_to("../" * (2 + name.count("/")) + f"blobs/{content}")
        temporary.replace(path)


def _content(file: HubFile) -> str | None:
    return file.sha256 or file.blob


def _bring(files: HubFiles, name: str, destination: Path, meter: Meter) -> None:
    file = files.files[name]
    assert file.size is not None, "asked before the first file"
    fetch(
        lambda ranges: files.ask(name, ranges),
        destination,
        name=name,
        size=file.size,
        checksum=_checksum(file),
        on_bytes=meter.of(name),
        on_write=meter.spend,
        piece_bytes=_PIECE_BYTES if file.size > _WHOLE_LIMIT_BYTES else None,
        pause=meter.pause,
    )


def _checksum(file: HubFile) -> Checksum | None:
    if file.sha256 is not None:
        return Checksum(file.sha256)
    return None if file.blob is None else Checksum(file.blob, is_git=True)


def _check_room(reference: Reference, shelf: Shelf, files: HubFiles, names: Sequence[str]) -> None:
    """Raises: Unavailable before a byte is asked for, if the disk cannot hold what is missing; OSError."""
    total_bytes = sum(files.sizes[name] or 0 for name in names)
    # Those of other commits count as well: then too little is refused, and the disk says the rest.
    here_bytes = sum(_size(path) for path in shelf.directory.rglob("*"))
    if shelf.blobs.is_symlink():
        here_bytes += sum(_size(path) for path in shelf.blobs.iterdir())
    free_bytes = shutil.disk_usage(_disk(shelf)).free
    missing_bytes = total_bytes - here_bytes
    if missing_bytes > max(0, free_bytes - _SPARE_BYTES):
        raise Unavailable(
            f"{reference.repository} cannot be stored: {format_bytes(missing_bytes)} of it are missing,"
            f" and {format_bytes(free_bytes)} are free in {shelf.directory.parent}",
            remedy="make room there, or set another cache (HF_HUB_CACHE, MODELSCOPE_CACHE)",
        )


def _check_spare(shelf: Shelf) -> None:
    """Raises: OSError if somebody else has filled the disk meanwhile."""
    free_bytes = shutil.disk_usage(_disk(shelf)).free
    if free_bytes < _SPARE_BYTES:
        raise OSError(errno.ENOSPC, f"only {format_bytes(free_bytes)} are left", str(shelf.directory.parent))


def _disk(shelf: Shelf) -> Path:
    """Where contents go: somebody may have put them on another disk than the names."""
    return shelf.blobs if shelf.blobs.is_dir() else shelf.directory


def _size(path: Path) -> int:
    """How large a file is; 0 for a link, and for what another process took away or gave its name this moment."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


class _Stopped(Exception):
    """Ends a thread whose file is not wanted any more; nobody waits for its result."""


class Meter:
    """Adds up what all threads report, and ends them once it is stopped."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.look: Callable[[], None] = lambda: None  # now and then, whether to go on; it raises if not
        self._on_progress = on_progress
        self._unseen_bytes = 0  # that were written since the last look
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._total_bytes = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def total_is(self, n_bytes: int) -> None:
        self._total_bytes = n_bytes

    def of(self, name: str) -> Callable[[int], None]:
        return lambda n_bytes: self.add(name, n_bytes)

    def add(self, name: str, n_bytes: int) -> None:
        if self._stopped.is_set():
            raise _Stopped
        with self._lock:
            self._done_bytes += n_bytes
            if self._on_progress is not None and n_bytes:
                self._on_progress(Progress(self._done_bytes, self._total_bytes, name))

    def spend(self, n_bytes: int) -> None:
        """Count what takes room on the disk; what is here already does not, on however full a disk. Raises: OSError."""
        with self._lock:
            self._unseen_bytes += n_bytes
            if self._unseen_bytes >= _LOOK_BYTES:
                self._unseen_bytes = 0
                self.look()

    def pause(self, delay_s: float) -> None:
        """Wait before another try; not longer than somebody wants it."""
        if self._on_progress is not None and delay_s >= _TOLD_WAIT_S:
            with self._lock:
                self._on_progress(Progress(self._done_bytes, self._total_bytes, "", waits_s=delay_s))
        if self._stopped.wait(delay_s):
            raise _Stopped

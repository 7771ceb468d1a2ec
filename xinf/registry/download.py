"""Fetch a model to this host, once, so that an engine starts from the disk.

A download that is interrupted goes on where it ended; files that are here are not asked for again; the revision is
looked up once and all files are of that commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.errors import InvalidRequest, Unavailable
from xinf.registry.sources import Hub, Reference, Sources, find_sources, parse_reference
from xinf.registry.wanted import wanted_files


class Progress(msgspec.Struct, frozen=True):
    """How far a download is. Counts what was here before, so that a resumed one does not start at 0."""

    done_bytes: int
    total_bytes: int
    name: str  # the file that got the last bytes


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

    Raises: UnknownModel, InvalidRequest, PermissionDenied, Unavailable (also: offline, disk full), Conflict if another
    process fetches the same file.
    """
    sources = find_sources(environ, config, offline=offline)
    reference = parse_reference(model, sources.default, revision=revision)
    if sources.is_offline:
        raise Unavailable(f"{model} cannot be fetched offline", remedy="unset HF_HUB_OFFLINE (registry.offline)")
    meter = Meter(on_progress)
    try:
        if reference.hub is Hub.MODELSCOPE:
            from xinf.registry.modelscope import download_repository

            return _completed(download_repository(reference, sources, meter))
        return _download_from_hub(reference, sources, meter)
    except OSError as error:
        raise Unavailable(
            f"{reference.repository} cannot be stored: {error}", remedy="make room on the disk"
        ) from error


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


def _download_from_hub(reference: Reference, sources: Sources, meter: Meter) -> Download:
    from xinf.registry.huggingface import download_file, list_repository, remember_revision

    files = list_repository(reference, sources)
    names = wanted_files(files.sizes)
    if "config.json" not in names:
        raise InvalidRequest(
            f"{files.where} has no config.json", remedy="choose a repository of a model for transformers", param="model"
        )
    meter.total_is(sum(files.sizes[name] or 0 for name in names))
    fetch_all(names, lambda name: download_file(files, reference, sources, name, meter.of(name)), sources, meter)
    directory = remember_revision(reference, sources, files.revision)
    return _completed(Download(directory=directory, revision=files.revision, n_files=len(names), n_bytes=0))


def _completed(download: Download) -> Download:
    sizes = [path.stat().st_size for path in download.directory.rglob("*") if path.is_file()]
    return msgspec.structs.replace(download, n_files=len(sizes), n_bytes=sum(sizes))


class _Stopped(Exception):
    """Ends a thread whose file is not wanted any more; nobody waits for its result."""


class Meter:
    """Adds up what all threads report, and ends them once it is stopped."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._total_bytes = 0
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True

    def total_is(self, n_bytes: int) -> None:
        self._total_bytes = n_bytes

    def of(self, name: str) -> Callable[[int], None]:
        return lambda n_bytes: self.add(name, n_bytes)

    def add(self, name: str, n_bytes: int) -> None:
        if self._is_stopped:
            raise _Stopped
        with self._lock:
            self._done_bytes += n_bytes
            if self._on_progress is not None and n_bytes:
                self._on_progress(Progress(self._done_bytes, self._total_bytes, name))

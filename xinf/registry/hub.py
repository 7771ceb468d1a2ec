"""One model of a hub, whichever hub: its listing at a commit, ranges of its files, and the same from its cache.

    Hugging Face ──▶ HubClient ─┐
    ModelScope   ──▶ HubClient ─┴─▶ HubFiles, which is ModelFiles ──▶ reader, download

A hub's own client authenticates, makes addresses and requests, and types the errors; what differs between hubs is in
huggingface.py and modelscope.py and nothing else. Those import their clients, and are imported when a hub is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import msgspec

from xinf.core.errors import Unavailable, UnknownModel
from xinf.core.units import format_seconds
from xinf.registry.blob import Answer, take
from xinf.registry.files import LocalFiles, ModelFiles
from xinf.registry.hub_error import HubSays
from xinf.registry.shelf import Shelf, shelf_of
from xinf.registry.sources import Hub, Reference, Sources, is_commit
from xinf.registry.wanted import wanted_files

T = TypeVar("T")


class HubFile(msgspec.Struct, frozen=True):
    """One file as the hub lists it; None: the hub does not say."""

    size: int | None
    sha256: str | None  # of its content
    blob: str | None = None  # what git calls its content; Hugging Face alone says it, of files outside of LFS


class Listing(msgspec.Struct, frozen=True):
    """All files of a repository at one commit."""

    revision: str
    files: Mapping[str, HubFile]


class HubClient(Protocol):
    """A hub through its own client, for one repository."""

    @property
    def says(self) -> HubSays:
        """How its answers are worded as errors."""
        ...

    def listing(self) -> Listing:
        """Ask for the commit and its files. Raises: UnknownModel, PermissionDenied, Unauthenticated, Unavailable."""
        ...

    def ask(self, commit: str, name: str, ranges: str | None) -> AbstractContextManager[Answer]:
        """Ask for a file or for ranges of it; the body is read as it comes. Raises: as `listing`."""
        ...


class HubFiles:
    """A repository at one commit, read in ranges."""

    def __init__(self, client: HubClient, reference: Reference, listing: Listing) -> None:
        self._client = client
        self._repository = reference.repository
        self._listing = listing

    @property
    def where(self) -> str:
        return f"{self._repository} at {self._client.says.endpoint}"

    @property
    def revision(self) -> str:
        return self._listing.revision

    @property
    def files(self) -> Mapping[str, HubFile]:
        return self._listing.files

    @property
    def sizes(self) -> Mapping[str, int | None]:
        return {name: file.size for name, file in self.files.items()}

    def read(self, name: str, length: int, *, offset: int = 0) -> bytes:
        if name not in self.files:
            raise UnknownModel(
                f"{self.where} has no {name}", remedy="choose a repository of a model for transformers", param="model"
            )
        size = self.files[name].size
        if size is not None and offset >= size:
            return b""  # there is no such range to ask for
        with self.ask(name, f"bytes={offset}-{offset + length - 1}") as answer:
            return take(answer, length, skip=0 if answer.is_partial else offset)

    def ask(self, name: str, ranges: str | None) -> AbstractContextManager[Answer]:
        return self._client.ask(self.revision, name, ranges)


def connect(reference: Reference, sources: Sources) -> HubClient:
    """The client for a repository. Raises: Unavailable if it is not installed."""
    if reference.hub is Hub.MODELSCOPE:
        from xinf.registry.modelscope import ModelScope

        return ModelScope(reference, sources)
    from xinf.registry.huggingface import HuggingFace

    return HuggingFace(reference, sources)


def list_repository(reference: Reference, sources: Sources) -> HubFiles:
    """Ask the hub which commit a revision is now, and for its files. Ends within `registry.timeout`.

    Raises: UnknownModel, PermissionDenied, Unauthenticated, Unavailable.
    """
    client = connect(reference, sources)
    listing = _within(sources.timeout_s, client.listing, client.says)
    return HubFiles(client, reference, listing)


def open_repository(reference: Reference, sources: Sources) -> ModelFiles:
    """Find the files of a repository: those in the cache if the commit is there whole, else at the hub.

    Raises: UnknownModel, PermissionDenied, Unauthenticated, Unavailable.
    """
    shelf = shelf_of(reference, sources)
    if sources.is_offline:
        return _open_cached(reference, sources, shelf)
    try:
        files = list_repository(reference, sources)
    except Unavailable:
        # What is here is better than nothing, if the hub cannot be asked whether there is something newer.
        if shelf.find(reference.revision) is None:
            raise
        return _open_cached(reference, sources, shelf)
    snapshot = shelf.find(files.revision)
    if snapshot is not None:
        local = LocalFiles(snapshot, revision=files.revision)
        if set(wanted_files(files.sizes)) <= set(local.sizes):
            return local
    return files


def find_commit(reference: Reference, sources: Sources) -> str | None:
    """Which commit a revision is: as its hub says, else as whole files of this host say; None if nobody can tell.

    Raises: UnknownModel, PermissionDenied, Unauthenticated: what the hub says for certain.
    """
    if not sources.is_offline:
        try:
            found = list_repository(reference, sources).revision
        except Unavailable:
            pass
        else:
            return found if is_commit(found) else None  # ModelScope may know a branch alone
    snapshot = shelf_of(reference, sources).find_whole(reference.revision)
    return snapshot.name if snapshot is not None and is_commit(snapshot.name) else None


def not_cached(reference: Reference, sources: Sources) -> UnknownModel:
    """The error for a model that is not here while no hub may be asked."""
    is_scope = reference.hub is Hub.MODELSCOPE
    at = f" at {reference.revision}" if reference.revision else ""
    cache = f"ModelScope cache {sources.modelscope_cache}" if is_scope else f"cache {sources.huggingface_cache}"
    return UnknownModel(
        f"{reference.repository}{at} is not in the {cache}, and offline (registry.offline, HF_HUB_OFFLINE) nothing is"
        " fetched",
        remedy="unset HF_HUB_OFFLINE, or fetch the model before (xinf pull), or give a directory (./name)",
        param="model",
    )


def _open_cached(reference: Reference, sources: Sources, shelf: Shelf) -> LocalFiles:
    snapshot = shelf.find(reference.revision)
    if snapshot is None:
        raise not_cached(reference, sources)
    return LocalFiles(snapshot, revision=snapshot.name)


def _within(timeout_s: float, ask: Callable[[], T], says: HubSays) -> T:
    """Ask, and wait no longer than this: a hub's name has many addresses, a client tries each and then all again.

    The thread that is given up ends when the client has had enough; nobody waits for it, nor does the process.
    """
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # whatever it is, it is raised where the answer is waited for
            answer.set_exception(error)

    threading.Thread(target=work, name="hub", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError as error:
        if answer.done():
            return answer.result()  # it came this moment, or it is the client's own error
        raise says.unreachable(f"it did not answer within {format_seconds(timeout_s)}") from error

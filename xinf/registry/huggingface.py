"""Hugging Face through its own client: which commit, which files, ranges of them, and whole files that can be resumed.

The client's API says what there is and how to authenticate; its session makes the requests, so that proxies,
certificates and retries are set in one place for all that use it. Everything is pinned to the commit that the revision
meant when it was looked up. Imported by `reader` and `download` when a hub is asked, never before.

Downloads land in the client's own cache, where engines find them. Files in LFS are fetched here into the place of their
blob, because the client starts a file again from nothing when its process ends; the client then finds the blob and
links it. Source: huggingface_hub 2.4, `file_download.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import msgspec
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined, unused-ignore]

from xinf.core.errors import InvalidRequest, PermissionDenied, Unauthenticated, Unavailable, UnknownModel
from xinf.registry.blob import Answer, fetch, take
from xinf.registry.files import LocalFiles, ModelFiles, as_size, is_inside
from xinf.registry.sources import COMMIT, SHA256, Reference, Sources, cached_snapshot
from xinf.registry.wanted import wanted_files

# Smaller files are not worth a range, and those in git have no checksum of their content.
_RESUMED_FROM_BYTES = 1 << 20
# Above this the hub answers no plain request: its client fetches such a file in chunks of its own protocol.
_PLAIN_LIMIT_BYTES = 50_000_000_000


class _File(msgspec.Struct, frozen=True):
    size: int | None
    sha256: str | None


class HubFiles:
    """A repository at one commit, read in ranges."""

    def __init__(self, reference: Reference, sources: Sources, commit: str, files: Mapping[str, _File]) -> None:
        self._repository = reference.repository
        self._sources = sources
        self._commit = commit
        self.files = files

    @property
    def where(self) -> str:
        return f"{self._repository} at {self._sources.huggingface_endpoint}"

    @property
    def revision(self) -> str:
        return self._commit

    @property
    def sizes(self) -> Mapping[str, int | None]:
        return {name: file.size for name, file in self.files.items()}

    def read(self, name: str, length: int, *, offset: int = 0) -> bytes:
        if name not in self.files:
            raise UnknownModel(
                f"{self.where} has no {name}", remedy="choose a repository of a model for transformers", param="model"
            )
        with self.ask(name, f"bytes={offset}-{offset + length - 1}") as answer:
            return take(answer, length, skip=0 if answer.is_partial else offset)

    @contextmanager
    def ask(self, name: str, ranges: str | None) -> Iterator[Answer]:
        """Ask for a file or for ranges of it; the body is read as it comes.

        Raises: Unavailable, UnknownModel, PermissionDenied.
        """
        url = huggingface_hub.hf_hub_url(
            self._repository, name, revision=self._commit, endpoint=self._sources.huggingface_endpoint
        )
        # Compressed, a range would be one of other bytes.
        headers = {**_headers(self._sources), "Accept-Encoding": "identity"}
        if ranges is not None:
            headers["Range"] = ranges
        with (
            _translated(self._repository, self._sources),
            huggingface_hub.get_session().stream(
                "GET", url, headers=headers, timeout=self._sources.timeout_s, follow_redirects=True
            ) as response,
        ):
            huggingface_hub.hf_raise_for_status(response)
            yield Answer(is_partial=response.status_code == 206, chunks=response.iter_bytes())


def open_repository(reference: Reference, sources: Sources) -> ModelFiles:
    """Find the files of a repository: those in the cache if the commit is there whole, else at the hub.

    Raises: UnknownModel, PermissionDenied, Unavailable.
    """
    if sources.is_offline:
        return _open_cached(reference, sources)
    try:
        files = list_repository(reference, sources)
    except Unavailable:
        # What is here is better than nothing, if the hub cannot be asked whether there is something newer.
        if cached_snapshot(sources.huggingface_cache, reference.repository, reference.revision) is None:
            raise
        return _open_cached(reference, sources)
    snapshot = cached_snapshot(sources.huggingface_cache, reference.repository, files.revision)
    if snapshot is not None:
        local = LocalFiles(snapshot, revision=files.revision)
        if set(wanted_files(files.sizes)) <= set(local.sizes):
            return local
    return files


def list_repository(reference: Reference, sources: Sources) -> HubFiles:
    """Ask the hub for the commit and its files. Raises: UnknownModel, PermissionDenied, Unavailable."""
    api = huggingface_hub.HfApi(endpoint=sources.huggingface_endpoint, token=sources.huggingface_token)
    with _translated(reference.repository, sources):
        try:
            info = api.model_info(
                reference.repository, revision=reference.revision, files_metadata=True, timeout=sources.timeout_s
            )
        except hub_errors.HFValidationError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # A page of a proxy, a login of a hotel: the client takes every answer for the hub's.
            raise _no_hub(sources) from error
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha) or info.siblings is None:
        raise _no_hub(sources)
    files = {}
    for sibling in info.siblings:
        sha256 = None if sibling.lfs is None else sibling.lfs.sha256
        is_sum = isinstance(sha256, str) and SHA256.fullmatch(sha256) is not None
        if isinstance(sibling.rfilename, str) and is_inside(sibling.rfilename):
            files[sibling.rfilename] = _File(as_size(sibling.size), sha256 if is_sum else None)
    return HubFiles(reference, sources, info.sha, files)


def download_file(
    files: HubFiles, reference: Reference, sources: Sources, name: str, on_bytes: Callable[[int], None]
) -> None:
    """Put one file into the cache, going on where an earlier try ended.

    Raises: as `HubFiles.ask`; Conflict if another process fetches it; OSError.
    """
    file = files.files[name]
    stored = sources.huggingface_cache / ("models--" + reference.repository.replace("/", "--"))
    pointer = stored / "snapshots" / files.revision / name
    if pointer.exists():
        on_bytes(pointer.stat().st_size)
        return
    if file.sha256 is not None and file.size is not None and _RESUMED_FROM_BYTES <= file.size < _PLAIN_LIMIT_BYTES:
        fetch(
            lambda ranges: files.ask(name, ranges),
            stored / "blobs" / file.sha256,
            size=file.size,
            sha256=file.sha256,
            on_bytes=on_bytes,
        )
        on_bytes = _nothing
    with _translated(reference.repository, sources):
        path = huggingface_hub.hf_hub_download(
            reference.repository,
            name,
            revision=files.revision,
            cache_dir=sources.huggingface_cache,
            endpoint=sources.huggingface_endpoint,
            token=sources.huggingface_token,
            etag_timeout=sources.timeout_s,
            tqdm_class=_SilentBar,
        )
    on_bytes(Path(path).stat().st_size)


def remember_revision(reference: Reference, sources: Sources, commit: str) -> Path:
    """Let the branch of the cache mean `commit`; return the snapshot's directory. Raises: OSError."""
    stored = sources.huggingface_cache / ("models--" + reference.repository.replace("/", "--"))
    name = reference.revision or "main"
    if name != commit:
        ref = stored / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = ref.with_name(f".{ref.name}.{os.getpid()}")
        temporary.write_text(commit)
        temporary.replace(ref)
    return stored / "snapshots" / commit


class _SilentBar(tqdm):  # type: ignore[misc, unused-ignore]
    """Progress is told by `on_bytes`; the client's own bars would be drawn over it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["disable"] = True
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call, unused-ignore]


def _open_cached(reference: Reference, sources: Sources) -> LocalFiles:
    snapshot = cached_snapshot(sources.huggingface_cache, reference.repository, reference.revision)
    if snapshot is None:
        at = f" at {reference.revision}" if reference.revision else ""
        raise UnknownModel(
            f"{reference.repository}{at} is not in the Hugging Face cache {sources.huggingface_cache}, and offline"
            " nothing is fetched",
            remedy="unset HF_HUB_OFFLINE (registry.offline), or give a directory (./name)",
            param="model",
        )
    return LocalFiles(snapshot, revision=snapshot.name)


def _no_hub(sources: Sources) -> Unavailable:
    return Unavailable(
        f"{sources.huggingface_endpoint} does not answer as a hub",
        remedy="check the address (registry.huggingface_endpoint, HF_ENDPOINT), and what is between here and there",
    )


def _headers(sources: Sources) -> dict[str, str]:
    return dict(build_hf_headers(token=sources.huggingface_token))


def _nothing(_: int) -> None: ...


@contextmanager
def _translated(repository: str, sources: Sources) -> Iterator[None]:
    """Turn the client's errors into ours, the most special first."""
    endpoint = sources.huggingface_endpoint
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise PermissionDenied(
            f"{repository} is gated: its owner lets in those who accept its terms",
            remedy=f"accept them at {endpoint}/{repository} and set HF_TOKEN to a token of that account",
            param="model",
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModel(
            f"there is no {repository} at {endpoint}, or it is private",
            remedy="check the spelling; set HF_TOKEN for a private repository",
            param="model",
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownModel(
            f"{repository} has no such revision", remedy="give a branch, a tag or a commit of it", param="revision"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise UnknownModel(f"{repository} lacks a file: {_first_line(error)}", param="model") from error
    except hub_errors.HFValidationError as error:
        raise InvalidRequest(f"{repository!r} is no hub id: {_first_line(error)}", param="model") from error
    except hub_errors.HfHubHTTPError as error:
        raise _by_status(error, repository, endpoint) from error
    except (hub_errors.OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the network's
        raise Unavailable(
            f"{endpoint} cannot be reached: {_first_line(error)}",
            remedy="check the network, or set a mirror (registry.huggingface_endpoint, HF_ENDPOINT)",
        ) from error


def _by_status(error: Any, repository: str, endpoint: str) -> Unauthenticated | PermissionDenied | Unavailable:
    status = error.response.status_code
    if status == 401:
        return Unauthenticated(f"{endpoint} wants a token for {repository}", remedy="set HF_TOKEN", param="model")
    if status == 403:
        return PermissionDenied(
            f"{endpoint} does not give {repository} to this token", remedy="check what HF_TOKEN may read", param="model"
        )
    return Unavailable(f"{endpoint} answered {status} for {repository}", remedy="try again later")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

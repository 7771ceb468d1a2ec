"""ModelScope through its own client (`pip install 'xinf[modelscope]'`): which files, ranges of them, whole downloads.

The client's low-level API authenticates, makes the URLs and the requests and types the errors. Its own download of a
repository logs files that failed and returns as if all were well, so files are fetched one by one, by the same code as
those of Hugging Face: resumed, and compared with the hub's SHA-256. They land in the client's cache.

The hub tells no commit of a branch, but for each file the commit that changed it last; the newest of them is read and
reported: the branch as it was when a file changed last. Source: modelscope-hub 0.5, `_legacy_api.py`, `_download.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from xinf.core.errors import InvalidRequest, PermissionDenied, Unauthenticated, Unavailable, UnknownModel
from xinf.registry.blob import Answer, fetch, take
from xinf.registry.download import Download, Meter, fetch_all
from xinf.registry.files import LocalFiles, ModelFiles, as_size, is_inside
from xinf.registry.sources import COMMIT, SHA256, Reference, Sources
from xinf.registry.wanted import wanted_files

if TYPE_CHECKING:
    from modelscope_hub._legacy_api import LegacyClient

_MODEL = "model"
_DEFAULT_BRANCH = "master"
_CHUNK_BYTES = 64 << 10
_RETRIES = 2


class _File(msgspec.Struct, frozen=True):
    path: str
    size: int | None
    sha256: str | None
    revision: str | None
    changed_s: int


class ScopeFiles:
    """A repository at one revision, read in ranges."""

    def __init__(
        self, client: LegacyClient, reference: Reference, sources: Sources, files: Mapping[str, _File]
    ) -> None:
        self._client = client
        self._repository = reference.repository
        self._sources = sources
        self.files = files
        self.revision = _newest(files) or reference.revision or _DEFAULT_BRANCH

    @property
    def where(self) -> str:
        return f"{self._repository} at {self._sources.modelscope_endpoint}"

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
        """Ask for a file or for ranges of it. Raises: Unavailable, UnknownModel, PermissionDenied."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": ranges} if ranges is not None else {})
        with _translated(self._repository, self._sources):
            response = self._client.download_stream(self._repository, _MODEL, name, self.revision, headers=headers)
            try:
                yield Answer(is_partial=response.status_code == 206, chunks=response.iter_content(_CHUNK_BYTES))
            finally:
                response.close()


def open_repository(reference: Reference, sources: Sources) -> ModelFiles:
    """Find the files of a repository: those on this host if offline, else at the hub.

    Raises: UnknownModel, PermissionDenied, Unavailable (also: the client is not installed).
    """
    if sources.is_offline:
        directory = downloaded(reference, sources)
        if directory is None:
            raise UnknownModel(
                f"{reference.repository} is not in the ModelScope cache {sources.modelscope_cache}, and offline nothing"
                " is fetched",
                remedy="unset HF_HUB_OFFLINE (registry.offline), or give a directory (./name)",
                param="model",
            )
        return LocalFiles(directory, revision=directory.name)
    return _list_repository(reference, sources)


def downloaded(reference: Reference, sources: Sources) -> Path | None:
    """The directory of a model that `xinf pull` fetched; None if it is not here. Needs no client."""
    stored = _stored(reference, sources)
    name = reference.revision or _DEFAULT_BRANCH
    try:
        revision = (stored / "refs" / name).read_text().strip()
    except OSError:
        revision = name
    directory = stored / "snapshots" / revision
    return directory if (directory / "config.json").is_file() else None


def download_repository(reference: Reference, sources: Sources, meter: Meter) -> Download:
    """Fetch what an engine reads of a repository, going on where an earlier try ended.

    Raises: as `open_repository`; InvalidRequest if it is no model; Conflict if another process fetches the same;
    OSError.
    """
    files = _list_repository(reference, sources)
    names = wanted_files(files.sizes)
    if "config.json" not in names:
        raise InvalidRequest(
            f"{files.where} has no config.json", remedy="choose a repository of a model for transformers", param="model"
        )
    meter.total_is(sum(files.sizes[name] or 0 for name in names))
    directory = _stored(reference, sources) / "snapshots" / files.revision

    def bring(name: str) -> None:
        file = files.files[name]
        if file.size is None:
            raise Unavailable(f"{files.where} does not say how large {name} is", remedy="try again; use another mirror")
        fetch(
            lambda ranges: files.ask(name, ranges),
            directory / name,
            size=file.size,
            sha256=file.sha256,
            on_bytes=meter.of(name),
        )

    fetch_all(names, bring, sources, meter)
    _remember(reference, sources, files.revision)
    return Download(directory=directory, revision=files.revision, n_files=len(names), n_bytes=0)


def _remember(reference: Reference, sources: Sources, revision: str) -> None:
    name = reference.revision or _DEFAULT_BRANCH
    if name == revision:
        return
    ref = _stored(reference, sources) / "refs" / name
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f".{ref.name}.{os.getpid()}")
    temporary.write_text(revision)
    temporary.replace(ref)


def _stored(reference: Reference, sources: Sources) -> Path:
    return sources.modelscope_cache / "models" / reference.repository.replace("/", "--")


def _list_repository(reference: Reference, sources: Sources) -> ScopeFiles:
    client = _client(sources)
    with _translated(reference.repository, sources):
        try:
            listed = client.list_repo_files(reference.repository, _MODEL, reference.revision or _DEFAULT_BRANCH)
            files = [file for entry in listed if (file := _file(entry)) is not None]
        except (LookupError, TypeError, AttributeError) as error:
            raise Unavailable(
                f"{sources.modelscope_endpoint} does not answer as a hub",
                remedy="check the address (registry.modelscope_endpoint, MODELSCOPE_ENDPOINT)",
            ) from error
    return ScopeFiles(client, reference, sources, {file.path: file for file in files})


def _client(sources: Sources) -> LegacyClient:
    """Raises: Unavailable if the client is not installed."""
    try:
        from modelscope_hub import HubConfig
        from modelscope_hub._legacy_api import LegacyClient
    except ImportError as error:
        raise Unavailable(
            "ModelScope is read through its own client, which is not installed",
            remedy="pip install 'xinf[modelscope]'",
        ) from error
    return LegacyClient(
        # Else that of `ms-hub login`.
        token=sources.modelscope_token or HubConfig().token,
        endpoint=sources.modelscope_endpoint,
        timeout=max(1, round(sources.timeout_s)),
        max_retries=_RETRIES,
    )


def _file(entry: Any) -> _File | None:
    """One entry of the listing; None for a directory, and for a name that would leave the model's directory."""
    path, size = entry.get("Path"), entry.get("Size")
    if entry.get("Type") == "tree" or not isinstance(path, str):
        return None
    if not is_inside(path):
        return None
    sha256, revision, changed = entry.get("Sha256"), entry.get("Revision"), entry.get("CommittedDate")
    return _File(
        path=path,
        size=as_size(size),
        sha256=sha256 if isinstance(sha256, str) and SHA256.fullmatch(sha256) else None,
        revision=revision if isinstance(revision, str) and COMMIT.fullmatch(revision) else None,
        changed_s=changed if isinstance(changed, int) else 0,
    )


def _newest(files: Mapping[str, _File]) -> str | None:
    dated = [file for file in files.values() if file.revision is not None and file.changed_s > 0]
    return max(dated, key=lambda file: file.changed_s).revision if dated else None


@contextmanager
def _translated(repository: str, sources: Sources) -> Iterator[None]:
    """Turn the client's errors into ours, the most special first."""
    import requests  # type: ignore[import-untyped, unused-ignore]
    from modelscope_hub import errors as scope_errors

    endpoint = sources.modelscope_endpoint
    try:
        yield
    except scope_errors.NotExistError as error:
        raise UnknownModel(
            f"there is no {repository} at {endpoint}, or no such revision or file of it, or it is private",
            remedy="check the spelling; set MODELSCOPE_API_TOKEN for a private repository",
            param="model",
        ) from error
    except scope_errors.AuthenticationError as error:
        raise Unauthenticated(
            f"{endpoint} wants a token for {repository}", remedy="set MODELSCOPE_API_TOKEN", param="model"
        ) from error
    except scope_errors.PermissionDeniedError as error:
        raise PermissionDenied(
            f"{endpoint} does not give {repository} to this token",
            remedy=f"ask for access at {endpoint}/models/{repository}; check MODELSCOPE_API_TOKEN",
            param="model",
        ) from error
    except scope_errors.APIError as error:
        raise Unavailable(
            f"{endpoint} answered {error.status_code} for {repository}", remedy="try again later"
        ) from error
    except (scope_errors.HubError, requests.RequestException, ValueError) as error:
        raise Unavailable(
            f"{endpoint} cannot be reached: {(str(error).splitlines() or [type(error).__name__])[0][:300]}",
            remedy="check the network, or set a mirror (registry.modelscope_endpoint, MODELSCOPE_ENDPOINT)",
        ) from error

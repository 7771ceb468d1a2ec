"""ModelScope through its own client (`pip install 'xinf[modelscope]'`): which files, and ranges of them.

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
from typing import TYPE_CHECKING, Any

import msgspec

from xinf.core.errors import Unavailable
from xinf.registry.blob import Answer, is_partial
from xinf.registry.files import as_size, is_inside
from xinf.registry.hub import HubFile, Listing
from xinf.registry.hub_error import HubSays, first_line, is_page
from xinf.registry.sources import COMMIT, SHA256, Reference, Sources, without_password
from xinf.registry.tag import linked_sha256, strong_tag

if TYPE_CHECKING:
    from modelscope_hub._legacy_api import LegacyClient

_MODEL = "model"
_DEFAULT_BRANCH = "master"
_CHUNK_BYTES = 64 << 10
_RETRIES = 2
# How long the client waits for a file to begin and to go on (10 and 60 s), read once, when it is imported; and what it
# writes to the terminal by itself: its tries go on after they were given up here.
_WAITS = ("MODELSCOPE_API_CONNECT_TIMEOUT", "MODELSCOPE_DOWNLOAD_TIMEOUT")
_SILENCE = {"MODELSCOPE_LOG_LEVEL": "ERROR"}


class ModelScope:
    """One repository of the hub or of a mirror."""

    def __init__(self, reference: Reference, sources: Sources) -> None:
        self._reference = reference
        self._client = _client(sources)
        endpoint = without_password(sources.modelscope_endpoint)
        self.says = HubSays(
            repository=reference.repository,
            endpoint=endpoint,
            page=f"{endpoint}/models/{reference.repository}",
            token_variable="MODELSCOPE_API_TOKEN",
            endpoint_settings="registry.modelscope_endpoint, MODELSCOPE_ENDPOINT",
        )

    def listing(self) -> Listing:
        revision = self._reference.revision or _DEFAULT_BRANCH
        with self._translated():
            try:
                listed = self._client.list_repo_files(self._reference.repository, _MODEL, revision)
                # Kept by the client for its own download; without it a list that was cut is as good as any other.
                if getattr(getattr(self._client, "_read_state", None), "listing_incomplete", False):
                    raise self.says.cut()
                entries = [entry for one in listed if (entry := _entry(one)) is not None]
            except (LookupError, TypeError, AttributeError) as error:
                raise self.says.no_hub() from error
        files = {entry.path: entry.file for entry in entries}
        return Listing(_newest(entries) or revision, files)

    @contextmanager
    def ask(self, commit: str, name: str, ranges: str | None) -> Iterator[Answer]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": ranges} if ranges is not None else {})
        with self._translated():
            response = self._client.download_stream(self._reference.repository, _MODEL, name, commit, headers=headers)
            try:
                if is_page(response.headers.get("Content-Type"), name):
                    raise self.says.no_hub()
                sha256 = linked_sha256([one.headers for one in (*response.history, response)])
                yield Answer(
                    is_partial=is_partial(response.status_code, response.headers.get("Content-Range"), ranges),
                    chunks=response.iter_content(_CHUNK_BYTES),
                    sha256=sha256,
                    tag=sha256 or strong_tag(response.headers),
                )
            finally:
                response.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's errors into ours, the most special first."""
        import requests  # type: ignore[import-untyped, unused-ignore]
        from modelscope_hub import errors as scope_errors

        says = self.says
        try:
            yield
        except scope_errors.NotExistError as error:
            raise says.absent(
                f"there is no {self._reference.repository}, or no such revision or file of it,"
            ) from error
        except scope_errors.AuthenticationError as error:
            raise says.unauthenticated() from error
        except scope_errors.PermissionDeniedError as error:
            raise says.denied() from error
        except scope_errors.APIError as error:
            wait_s = error.retry_after if isinstance(error, scope_errors.RateLimitError) else None
            raise says.broken(error.status_code, wait_s) from error
        except (scope_errors.HubError, requests.RequestException, ValueError) as error:
            raise says.unreachable(first_line(error)) from error


class _Entry(msgspec.Struct, frozen=True):
    path: str
    file: HubFile
    revision: str | None  # that changed it last
    changed_s: int


def _client(sources: Sources) -> LegacyClient:
    """Raises: Unavailable if the client is not installed."""
    seconds = max(1, round(sources.timeout_s))
    try:
        with _variables(dict.fromkeys(_WAITS, str(seconds)) | _SILENCE):
            from modelscope_hub import HubConfig
            from modelscope_hub._legacy_api import LegacyClient
    except ImportError as error:
        raise Unavailable(
            "ModelScope is read through its own client, which is not installed",
            remedy="pip install 'xinf[modelscope]'",
            cause="missing_dependency",
        ) from error
    return LegacyClient(
        # Else that of `ms-hub login`.
        token=sources.modelscope_token or (HubConfig().token or "").strip() or None,
        endpoint=sources.modelscope_endpoint,
        timeout=seconds,
        max_retries=_RETRIES,
    )


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a moment, unless somebody else has set them."""
    mine = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def _entry(listed: Mapping[str, Any]) -> _Entry | None:
    """One entry of the listing; None for a directory, and for a name that would leave the model's directory."""
    path = listed.get("Path")
    if listed.get("Type") == "tree" or not isinstance(path, str) or not is_inside(path):
        return None
    sha256, revision, changed = listed.get("Sha256"), listed.get("Revision"), listed.get("CommittedDate")
    is_sum = isinstance(sha256, str) and SHA256.fullmatch(sha256) is not None
    return _Entry(
        path=path,
        file=HubFile(as_size(listed.get("Size")), sha256 if is_sum else None),
        revision=revision if isinstance(revision, str) and COMMIT.fullmatch(revision) else None,
        changed_s=changed if isinstance(changed, int) else 0,
    )


def _newest(entries: list[_Entry]) -> str | None:
    dated = [entry for entry in entries if entry.revision is not None and entry.changed_s > 0]
    return max(dated, key=lambda entry: entry.changed_s).revision if dated else None

"""Hugging Face through its own client: which commit, which files, and ranges of them.

The client's API says what there is and how to authenticate; its session makes the requests, so that proxies,
certificates and retries are set in one place for all that use it. Everything is pinned to the commit that the revision
meant when it was looked up. Imported by `hub` when a hub is asked, never before.

Source: huggingface_hub 2.4, `hf_api.py`, `file_download.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined, unused-ignore]

from xinf.core.errors import InvalidRequest, UnknownModel, XinfError
from xinf.registry.blob import Answer, is_partial
from xinf.registry.files import as_size, is_inside
from xinf.registry.hub import HubFile, Listing
from xinf.registry.hub_error import HubSays, first_line, is_page
from xinf.registry.sources import COMMIT, GIT_BLOB, SHA256, Reference, Sources, without_password
from xinf.registry.tag import linked_sha256

# In `Retry-After`, where a date may stand as well, or in what Hugging Face sends: `"resolvers";r=0;t=55`.
# Source: huggingface_hub 2.4, `utils/_http.py`, `parse_ratelimit_headers`.
_RETRY_AFTER = re.compile(r"\s*([0-9]{1,6})\s*")
_RATE_LIMIT = re.compile(r".*;\s*t\s*=\s*([0-9]{1,6})")


class HuggingFace:
    """One repository of the hub or of a mirror."""

    def __init__(self, reference: Reference, sources: Sources) -> None:
        self._reference = reference
        self._sources = sources
        endpoint = without_password(sources.huggingface_endpoint)
        self.says = HubSays(
            repository=reference.repository,
            endpoint=endpoint,
            page=f"{endpoint}/{reference.repository}",
            token_variable="HF_TOKEN",
            endpoint_settings="registry.huggingface_endpoint, HF_ENDPOINT",
        )

    def listing(self) -> Listing:
        sources, repository = self._sources, self._reference.repository
        api = huggingface_hub.HfApi(endpoint=sources.huggingface_endpoint, token=sources.huggingface_token)
        with self._translated():
            try:
                info = api.model_info(
                    repository, revision=self._reference.revision, files_metadata=True, timeout=sources.timeout_s
                )
            except hub_errors.HFValidationError:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                # The client takes every answer for the hub's.
                raise self.says.no_hub() from error
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha) or info.siblings is None:
            raise self.says.no_hub()
        files = {}
        for sibling in info.siblings:
            sha256 = None if sibling.lfs is None else sibling.lfs.sha256
            is_sum = isinstance(sha256, str) and SHA256.fullmatch(sha256) is not None
            blob = sibling.blob_id
            is_blob = not is_sum and isinstance(blob, str) and GIT_BLOB.fullmatch(blob) is not None
            if isinstance(sibling.rfilename, str) and is_inside(sibling.rfilename):
                files[sibling.rfilename] = HubFile(
                    as_size(sibling.size), sha256 if is_sum else None, blob if is_blob else None
                )
        return Listing(info.sha, files)

    @contextmanager
    def ask(self, commit: str, name: str, ranges: str | None) -> Iterator[Answer]:
        sources = self._sources
        url = huggingface_hub.hf_hub_url(
            self._reference.repository, name, revision=commit, endpoint=sources.huggingface_endpoint
        )
        # Compressed, a range would be one of other bytes.
        headers = {**build_hf_headers(token=sources.huggingface_token), "Accept-Encoding": "identity"}
        if ranges is not None:
            headers["Range"] = ranges
        with (
            self._translated(),
            huggingface_hub.get_session().stream(
                "GET", url, headers=headers, timeout=sources.timeout_s, follow_redirects=True
            ) as response,
        ):
            huggingface_hub.hf_raise_for_status(response)
            if is_page(response.headers.get("Content-Type"), name):
                raise self.says.no_hub()
            is_part = is_partial(response.status_code, response.headers.get("Content-Range"), ranges)
            # The hub lists all sums; not every mirror does.
            sha256 = linked_sha256([one.headers for one in (*response.history, response)])
            yield Answer(is_partial=is_part, chunks=response.iter_bytes(), sha256=sha256)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's errors into ours, the most special first."""
        repository, says = self._reference.repository, self.says
        try:
            yield
        except hub_errors.GatedRepoError as error:
            raise says.gated() from error
        except hub_errors.RepositoryNotFoundError as error:
            raise says.absent(f"there is no {repository}") from error
        except hub_errors.RevisionNotFoundError as error:
            raise UnknownModel(
                f"{repository} has no such revision", remedy="give a branch, a tag or a commit of it", param="revision"
            ) from error
        except hub_errors.EntryNotFoundError as error:
            raise UnknownModel(f"{repository} lacks a file: {first_line(error)}", param="model") from error
        except hub_errors.HFValidationError as error:
            raise InvalidRequest(f"{repository!r} is no hub id: {first_line(error)}", param="model") from error
        except hub_errors.HfHubHTTPError as error:
            raise self._by_status(error.response) from error
        except (hub_errors.OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the network's
            raise says.unreachable(first_line(error)) from error

    def _by_status(self, response: httpx2.Response) -> XinfError:
        if response.status_code == 401:
            return self.says.unauthenticated()
        if response.status_code == 403:
            return self.says.denied()
        headers = response.headers
        seconds = _RETRY_AFTER.fullmatch(headers.get("Retry-After", ""))
        if seconds is None and response.status_code == 429:
            seconds = _RATE_LIMIT.match(headers.get("RateLimit", ""))
        return self.says.broken(response.status_code, None if seconds is None else float(seconds[1]))

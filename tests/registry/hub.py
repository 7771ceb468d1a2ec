"""A hub on loopback that speaks as much of Hugging Face's protocol as its client and ours use.

Proves: that requests are pinned to a commit, ranges are asked for and bounded, tokens go where they should, and what
becomes of every error and interruption. Cannot prove: that the real hub answers like this. Paths, headers and error
codes are those that huggingface_hub 2.4 reads (`hf_api.py`, `file_download.py`, `utils/_http.py`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import msgspec

COMMIT = "a" * 40
OLD_COMMIT = "b" * 40
LFS_FROM = 1000  # bytes


class Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    range: str | None
    token: str | None


class Hub(msgspec.Struct):
    """What the hub holds and how it fails."""

    files: dict[str, dict[str, bytes]] = {}  # by commit
    repository: str = "org/name"
    branches: dict[str, str] = {}
    token: str | None = None  # wanted from everybody
    gated: bool = False
    ignores_ranges: bool = False
    status: int | None = None  # answered to everything
    cut_at: dict[str, list[int]] = {}  # bytes of a body after which the connection ends, one per request
    hold_at: dict[str, int] = {}  # bytes of a body after which the hub waits until it is told to go on
    go_on: threading.Event = msgspec.field(default_factory=threading.Event)
    wrong_bytes: bool = False
    has_sums: bool = True  # in the list
    sizes: dict[str, object] = {}  # as it lists them, where that is wrong
    page: bytes | None = None  # answered to everything, as by a proxy
    files_at: str | None = None  # another host, to which files are redirected
    loops: bool = False  # files are redirected to themselves
    page_of: str | None = None  # a file that somebody else answers with a page
    types: dict[str, str] = {}  # of contents, as a server tells them by their names or first bytes
    is_zipped: bool = False  # whole files come compressed, though nobody asked for that
    begins_at: int | None = None  # where every part begins, whatever was asked for
    busy: list[dict[str, str]] = []  # headers of the next answers to requests for the list
    refusals: list[tuple[int, dict[str, str]]] = []  # status and headers of the next answers to requests for files
    url: str = ""
    requests: list[Request] = []

    def gets(self, name: str) -> list[str | None]:
        """Ranges of the requests for a file."""
        return [
            request.range for request in self.requests if request.method == "GET" and request.path.endswith(f"/{name}")
        ]


@contextmanager
def serve(files: dict[str, bytes], **settings: object) -> Iterator[Hub]:
    """Run a hub with one repository whose `main` is at COMMIT."""
    hub = Hub(files={COMMIT: files}, branches={"main": COMMIT}, cut_at={}, requests=[], refusals=[], busy=[])
    for name, value in settings.items():
        setattr(hub, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: tests print what they need."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if self.hub.page is not None:
            return self._send(200, self.hub.page, {"Content-Type": "text/html"})
        if self.hub.status is not None:
            return self._fail(self.hub.status, None, "broken")
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            if self.hub.busy:
                return self._send(429, b"{}", self.hub.busy.pop(0))
            return self._info(api[1], api[2])
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(file[1], file[2], file[3])
        return self._fail(404, None, "no such route")

    def _commit(self, repository: str, revision: str | None) -> str | None:
        """The commit, or None after an error was answered."""
        if repository != self.hub.repository:
            return self._fail(404, "RepoNotFound", "Repository Not Found")
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._fail(401, "RepoNotFound", "Invalid username or password.")
        commit = self.hub.branches.get(revision or "main", revision)
        if commit not in self.hub.files:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _info(self, repository: str, revision: str | None) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        siblings = [
            {"rfilename": name, "size": self.hub.sizes.get(name, len(content))}
            | ({"blobId": _git_blob(content)} if self.hub.has_sums else {})
            | (
                {"lfs": {"size": len(content), "sha256": _sha256(content), "pointerSize": 134}}
                if _is_lfs(content) and self.hub.has_sums
                else {}
            )
            for name, content in self.hub.files[commit].items()
        ]
        body = json.dumps({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        if self.hub.gated:
            self._fail(403, "GatedRepo", "Access to model is restricted and you are not in the authorized list.")
            return
        content = self.hub.files[commit].get(name)
        if content is None:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        if self.hub.refusals:
            status, more = self.hub.refusals.pop(0)
            self._send(status, b"{}", more)
            return
        if name == self.hub.page_of:
            self._send(200, b"<html>log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            return
        if self.hub.loops:
            self._send(302, b"", {"Location": self.path})
            return
        if self.hub.files_at is not None:
            self._send(302, b"", {"Location": self.hub.files_at + self.path})
            return
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{_git_blob(content)}"'}
        if name in self.hub.types:
            headers["Content-Type"] = self.hub.types[name]
        if _is_lfs(content):
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.hub.wrong_bytes:
            content = bytes(len(content))
        if self.hub.is_zipped:
            self._send(200, gzip.compress(content), headers | {"Content-Encoding": "gzip"}, name)
            return
        if wanted is None or self.hub.ignores_ranges:
            self._send(200, content, headers, name)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        first = first if self.hub.begins_at is None else self.hub.begins_at
        if first >= len(content):
            self._fail(416, None, "range")
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers, name)

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cut_at.get(name)
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        try:
            if (held := self.hub.hold_at.get(name)) is not None:
                self.wfile.write(body[:held])
                self.hub.go_on.wait(60)
                body = body[held:]
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # The reader has what it wants.
            self.close_connection = True

    def _fail(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(content: bytes) -> bool:
    return len(content) >= LFS_FROM


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""ModelScope through its own client, against a hub on loopback.

The hub here speaks as much of `/api/v1` as modelscope-hub 0.5 asks for: the list of files, and files with ranges. It
proves what becomes of answers and errors; it cannot prove that the real hub answers like this.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from tests.registry.test_download import FILES, WANTED, WEIGHTS
from tests.registry.test_huggingface import repository
from tests.registry.test_reader import N_PARAMETERS
from xinf.core.errors import PermissionDenied, Unavailable, UnknownModel
from xinf.registry import download_model, read_model, resolve_model
from xinf.registry.download import Meter, Progress
from xinf.registry.shelf import Shelf
from xinf.registry.sources import Hub as HubName

NEWEST, OLDER = "c" * 40, "d" * 40


class Hub(msgspec.Struct):
    files: dict[str, bytes]
    status: int | None = None
    cut_at: list[int] = []
    has_sizes: bool = True
    has_sums: bool = True
    has_commits: bool = True
    tag: str | None = None  # the header that tells a content when a file is asked for
    page_of: str | None = None  # a file that somebody else answers
    waits: list[str] = []  # `Retry-After` of as many answers to requests for files
    page: bytes | None = None  # answered to everything, as by a proxy
    files_at: str | None = None  # another host, to which files are redirected
    url: str = ""
    asked: list[tuple[str, str, str | None]] = []  # file or "", revision, range
    credentials: list[str | None] = []  # header by header


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        name, revision = query.get("FilePath", ""), query.get("Revision", "")
        self.hub.asked.append((name, revision, self.headers.get("Range")))
        self.hub.credentials += [self.headers.get("Authorization"), self.headers.get("Cookie")]
        if self.hub.files_at is not None and name:
            self.send_response(302)
            self.send_header("Location", self.hub.files_at + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if name and self.hub.waits:
            return self._send(429, b"{}", {"Retry-After": self.hub.waits.pop(0)})
        if name and name == self.hub.page_of:
            return self._send(200, b"<html>log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if self.hub.page is not None:
            return self._send(200, self.hub.page)
        if self.hub.status is not None:
            return self._send(self.hub.status, b'{"Code": 1, "Message": "no"}')
        if revision not in ("master", NEWEST) or not re.match(r"/api/v1/models/org/name/repo", url.path):
            return self._send(404, b'{"Code": 10010205001, "Message": "not found"}')
        if url.path.endswith("/repo/files"):
            entries = self._list() if query.get("Root", "/") == "/" else []
            return self._send(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode())
        content = self.hub.files.get(name)
        if content is None:
            return self._send(404, b'{"Code": 404, "Message": "no file"}')
        headers = {} if self.hub.tag is None else {self.hub.tag: f'"{hashlib.sha256(content).hexdigest()}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, headers)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        return self._send(206, content[first : last + 1], headers)

    def _list(self) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = [
            {"Path": "original", "Type": "tree"},
            {"Path": "../evil", "Type": "blob", "Size": 1},
        ]
        for number, (name, content) in enumerate(self.hub.files.items()):
            entries.append(
                {
                    "Path": name,
                    "Type": "blob",
                    "Size": len(content) if self.hub.has_sizes else None,
                }
                | ({"Sha256": hashlib.sha256(content).hexdigest()} if self.hub.has_sums else {})
                | (
                    {"Revision": OLDER if number else NEWEST, "CommittedDate": 1_700_000_000 - number}
                    if self.hub.has_commits
                    else {}
                )
            )
        return entries

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.hub.cut_at and len(body) > 1 << 20:
            body = body[: self.hub.cut_at.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def serve(files: dict[str, bytes], *, status: int | None = None, cut_at: list[int] | None = None) -> Iterator[Hub]:
    hub = Hub(files=files, status=status, cut_at=cut_at or [], asked=[], credentials=[], waits=[])
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environ(hub: Hub, tmp_path: Path, **more: str) -> dict[str, str]:
    return {"MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path), **more}


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between tries to list a repository; what comes of the last one is asked here."""
    client = pytest.importorskip("modelscope_hub._legacy_api")
    monkeypatch.setattr(client, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)


def test_facts_need_no_download_and_are_of_one_commit(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(repository()) as hub:
        facts = read_model("modelscope://org/name", environ=environ(hub, tmp_path))
        assert (facts.n_parameters, facts.is_counted, facts.revision) == (N_PARAMETERS, True, NEWEST)
        by_prefix = hub.asked[:]
        assert hub.asked[0] == ("", "master", None)
        assert {(revision, bool(ranges)) for _, revision, ranges in by_prefix[1:]} == {(NEWEST, True)}
        default = environ(hub, tmp_path, XINF_REGISTRY_SOURCE="modelscope")
        assert read_model("org/name", environ=default) == facts
    assert list(tmp_path.iterdir()) == []


def test_download_is_resumed_and_served_from_the_disk(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES, cut_at=[1 << 20]) as hub:
        env = environ(hub, tmp_path)
        done = download_model("modelscope://org/name", environ=env)
        assert {path.name for path in done.directory.iterdir()} == WANTED
        assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS
        assert done.revision == NEWEST
        ranges = [ranges for name, _, ranges in hub.asked if name == "model.safetensors"]
        assert ranges[0] is None
        assert len(ranges) == 2
        assert str(ranges[1]).startswith("bytes=")
        hub.asked.clear()
        download_model("modelscope://org/name", environ=env)
        assert [name for name, _, _ in hub.asked] == [""]
    source = resolve_model("modelscope://org/name", models_dir=tmp_path, environ=env)
    assert (source.location, source.directory) == ("modelscope://org/name", done.directory)


def test_offline_reads_what_was_pulled(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(repository()) as hub:
        env = environ(hub, tmp_path)
        online = read_model("modelscope://org/name", environ=env)
        download_model("modelscope://org/name", environ=env)
        hub.asked.clear()
        assert read_model("modelscope://org/name", environ=env, offline=True) == online
        assert hub.asked == []


@pytest.mark.parametrize(("model", "status", "error"), [
    ("modelscope://org/other", None, UnknownModel),
    ("modelscope://org/name@v9", None, UnknownModel),
    ("modelscope://org/name", 403, PermissionDenied),
    ("modelscope://org/name", 500, Unavailable),
])  # fmt: skip
def test_errors_of_the_hub_are_typed(
    model: str, status: int | None, error: type[Exception], tmp_path: Path, one_try: None
) -> None:
    with serve(repository(), status=status) as hub, pytest.raises(error):
        read_model(model, environ=environ(hub, tmp_path))


def test_hub_that_is_not_there_is_unavailable(tmp_path: Path, one_try: None) -> None:
    with serve(repository()) as hub:
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        read_model("modelscope://org/name", environ=environ(hub, tmp_path))


def test_without_the_client_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("modelscope_hub", "modelscope_hub._legacy_api"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match="not installed") as caught:
        read_model("modelscope://org/name", environ={"MODELSCOPE_CACHE": str(tmp_path)})
    assert "xinf[modelscope]" in str(caught.value.remedy)


def test_model_that_is_not_here_says_how_to_get_it_offline(tmp_path: Path) -> None:
    env = {"MODELSCOPE_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with pytest.raises(UnknownModel, match="not in the ModelScope cache") as caught:
        resolve_model("modelscope://org/name", models_dir=tmp_path, environ=env)
    assert "xinf pull" in str(caught.value.remedy)
    with pytest.raises(UnknownModel, match="offline"):
        read_model("modelscope://org/name", environ=env)


def test_hub_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {"MODELSCOPE_ENDPOINT": address, "MODELSCOPE_CACHE": str(tmp_path), "XINF_REGISTRY_TIMEOUT": "300ms"}
        with pytest.raises(Unavailable, match=r"did not answer within 0\.3s"):
            read_model("modelscope://org/name", environ=env)


def test_file_of_unknown_size_is_no_empty_file(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub:
        hub.has_sizes = False
        with pytest.raises(Unavailable, match="does not say how large"):
            download_model("modelscope://org/name", environ=environ(hub, tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_token_stays_with_the_hub_when_files_are_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(repository()) as store, serve(repository()) as hub:
        hub.files_at = store.url.replace("127.0.0.1", "localhost")  # a cookie knows no ports
        env = environ(hub, tmp_path, MODELSCOPE_API_TOKEN="ms-right")
        assert read_model("modelscope://org/name", environ=env).is_counted
        assert "Bearer ms-right" in hub.credentials
        assert store.asked
        assert set(store.credentials) == {None}


@pytest.mark.parametrize("page", [b"<html>", b"[]", b"3", b'{"Code": 200, "Data": {"Files": [3]}}'])
def test_page_of_somebody_else_is_no_hub(page: bytes, tmp_path: Path, one_try: None) -> None:
    with serve(repository()) as hub:
        hub.page = page
        with pytest.raises(Unavailable):
            read_model("modelscope://org/name", environ=environ(hub, tmp_path))


def swapped(name: str) -> dict[str, bytes]:
    """The same files, and one of them with another content of the same size."""
    return {**FILES, name: FILES[name][::-1]}


@pytest.mark.parametrize(("has_sums", "tag", "is_seen"), [
    (True, None, True),  # the listing says it
    (False, "ETag", True),
    (False, "X-Linked-ETag", True),
    (False, None, False),  # nothing does: the size is all there is
])  # fmt: skip
def test_mirror_that_names_no_commit_is_judged_by_content(
    has_sums: bool, tag: str | None, is_seen: bool, tmp_path: Path
) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub:
        hub.has_commits, hub.has_sums, hub.tag = False, has_sums, tag
        env = environ(hub, tmp_path)
        first = download_model("modelscope://org/name", environ=env)
        assert first.revision == "master"
        hub.asked.clear()
        download_model("modelscope://org/name", environ=env)
        assert {ranges for name, _, ranges in hub.asked if name} <= {"bytes=0-0"}, "nothing has changed"
        hub.files = swapped("model.safetensors")
        hub.asked.clear()
        again = download_model("modelscope://org/name", environ=env)
        brought = {name for name, _, ranges in hub.asked if name and ranges != "bytes=0-0"}
    assert brought == ({"model.safetensors"} if is_seen else set())
    content = (again.directory / "model.safetensors").read_bytes()
    assert content == (hub.files if is_seen else FILES)["model.safetensors"]


def interrupt(hub: Hub, tmp_path: Path) -> Path:
    """Fetch until there is a part of the weights; give where it is."""

    def stop(progress: Progress) -> None:
        if progress.name == "model.safetensors" and progress.done_bytes > 1 << 20:
            raise InterruptedError

    with pytest.raises(Unavailable):
        download_model("modelscope://org/name", environ=environ(hub, tmp_path), on_progress=stop)
    (partial,) = tmp_path.rglob("model.safetensors.partial")
    return partial


def test_part_of_an_earlier_state_is_not_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub:
        hub.has_commits, hub.has_sums, hub.tag = False, False, "ETag"
        left = interrupt(hub, tmp_path).stat().st_size
        hub.files = swapped("model.safetensors")
        done = download_model("modelscope://org/name", environ=environ(hub, tmp_path))
        assert 0 < left < len(WEIGHTS)
        assert (done.directory / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_part_of_the_same_state_is_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub:
        hub.has_commits, hub.has_sums, hub.tag = False, False, "ETag"
        left = interrupt(hub, tmp_path).stat().st_size
        hub.asked.clear()
        download_model("modelscope://org/name", environ=environ(hub, tmp_path))
        assert [ranges for name, _, ranges in hub.asked if name == "model.safetensors"] == [
            "bytes=0-0",
            f"bytes={left}-",
        ]


def test_state_that_got_more_files_is_not_whole_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope_hub")
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: None)
    with serve(FILES) as hub:
        hub.has_commits = False
        env = environ(hub, tmp_path)
        download_model("modelscope://org/name", environ=env)
        shelf = Shelf(tmp_path / "models" / "org--name", HubName.MODELSCOPE)
        assert shelf.find_whole(None) is not None
        hub.files = {**FILES, "tokenizer.json": b"{}"}
        hub.page_of = "tokenizer.json"
        with pytest.raises(Unavailable):
            download_model("modelscope://org/name", environ=env)
        assert shelf.find_whole(None) is None


def test_file_that_somebody_else_brought_from_such_a_mirror_is_read_once(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    snapshot = tmp_path / "models" / "org--name" / "snapshots" / "master"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    (snapshot / "README.md").write_bytes(FILES["README.md"][::-1])
    with serve(FILES) as hub:
        hub.has_commits = False
        done = download_model("modelscope://org/name", environ=environ(hub, tmp_path))
        brought = {name for name, _, _ in hub.asked if name}
    assert brought == {"README.md", "config.json"}
    assert (done.directory / "README.md").read_bytes() == FILES["README.md"]


def test_sum_that_the_answer_alone_names_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with serve(FILES) as hub:
        hub.has_sums, hub.tag = False, "X-Linked-ETag"
        env = environ(hub, tmp_path)
        snapshot = tmp_path / "models" / "org--name" / "snapshots" / NEWEST
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors.partial").write_bytes(bytes(1 << 20))  # of a power cut, say
        done = download_model("modelscope://org/name", environ=env)
    assert (done.directory / "model.safetensors").read_bytes() == WEIGHTS


def test_page_in_the_place_of_a_file_is_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope_hub")
    monkeypatch.setattr("xinf.registry.blob._BACKOFF_S", 0.001)
    with serve(FILES) as hub:
        hub.page_of = "model.safetensors"
        with pytest.raises(Unavailable, match="does not answer as a hub"):
            download_model("modelscope://org/name", environ=environ(hub, tmp_path))


def test_hub_that_asks_for_a_pause_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modelscope_hub")
    pauses: list[float] = []
    monkeypatch.setattr(Meter, "pause", lambda meter, delay_s: pauses.append(delay_s))
    with serve(FILES) as hub:
        hub.waits = ["17", "3"]
        download_model("modelscope://org/name", environ=environ(hub, tmp_path))
    assert sorted(pauses) == [3.0, 17.0]


def test_list_that_the_hub_has_cut_is_not_taken_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("modelscope_hub._legacy_api")
    monkeypatch.setattr(client, "REPO_FILES_TRUNCATION_LIMIT", len(FILES) + 2)
    with serve(FILES) as hub, pytest.raises(Unavailable, match="does not list all files"):
        download_model("modelscope://org/name", environ=environ(hub, tmp_path))

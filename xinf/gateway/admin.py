"""The admin routes: what was decided for recent requests, and what would be decided for one.

    GET  /admin/decisions?last=20     of all gateway processes, the newest first
    GET  /admin/decisions/<id>        of the process that the id names, or of whichever knows it
    POST /admin/route                 a request's body: who would get it and why; nothing is chosen or changed

They tell of everybody's requests, so API keys do not open them: they need the admin key, a file in the runtime
directory that only this user can read. `xinf why` and `xinf route` read it by themselves.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
from typing import Any
from urllib.parse import parse_qs

import msgspec

from xinf.core.decision import Decision, DryRun, Found, Reach
from xinf.core.errors import InvalidRequest, NotFound, Unauthenticated
from xinf.core.paths import Paths
from xinf.core.units import format_seconds
from xinf.gateway.answers import JSON, Answer
from xinf.gateway.client import Head
from xinf.gateway.decisions import Decisions, told_candidate
from xinf.gateway.intake import Intake
from xinf.gateway.table import Table
from xinf.gateway.worker import AdminSocket
from xinf.router import Router

PREFIX = "/admin/"
_DECISIONS = "/admin/decisions"
DEFAULT_LAST = 20
MAX_LAST = 1000
_OWN_ID = re.compile(r"req-(\d{1,3})-")


def open_admin_key(paths: Paths) -> str:
    """Read the key of this run, or make it: the processes of one gateway share it."""
    file = paths.admin_key_file
    made = file.with_name(f".admin.key.{secrets.token_hex(8)}")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as out:
            out.write(f"adm-xinf-{secrets.token_hex(20)}")
        try:
            os.link(made, file)  # whole or not at all, and only the first
        except FileExistsError:
            pass
    finally:
        made.unlink()
    return file.read_text()


class Admin:
    """The admin routes of one gateway process."""

    def __init__(
        self,
        key: str,
        *,
        socket: AdminSocket,
        decisions: Decisions,
        intake: Intake,
        table: Table,
        router: Router,
    ) -> None:
        self._key = key.encode()
        self._socket = socket
        self._decisions = decisions
        self._intake = intake
        self._table = table
        self._router = router

    def check(self, head: Head) -> None:
        """Raises: Unauthenticated."""
        scheme, _, key = head.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise Unauthenticated(
                "admin routes need the admin key",
                remedy="it is the file admin.key of the gateway's runtime directory; `xinf why` there needs none",
            )

    async def page(self, head: Head) -> Answer:
        """Answer a GET. Raises: Unauthenticated, NotFound, InvalidRequest."""
        self.check(head)
        if head.path == _DECISIONS:
            return _json(await self._last(_wanted(head.query)))
        if head.path.startswith(_DECISIONS + "/"):
            return _json(await self._find(head.path.removeprefix(_DECISIONS + "/")))
        raise NotFound(f"there is no route GET {head.path[:200]}")

    async def _last(self, n: int) -> Found:
        found = _joined(await self._socket.ask_siblings("decisions", str(n)))
        return msgspec.structs.replace(found, decisions=found.decisions[:n])

    async def _find(self, request_id: str) -> Found:
        """Ask the process that made the id; the id may be a client's own, so otherwise ask all."""
        named = _OWN_ID.match(request_id)
        if named is not None:
            found = _joined([await self._socket.ask_one(int(named[1]), "decision", request_id)])
            if found.decisions:
                return found
        found = _joined(await self._socket.ask_siblings("decision", request_id))
        if not found.decisions:
            raise NotFound(f"no decision for {request_id[:200]!r} is kept", remedy=_how_far(found.reach))
        return found

    def dry_run(self, head: Head, body: bytes) -> Answer:
        """Answer a POST of a request's body: who would get it. Raises: XinfError."""
        asked, scanned = self._intake.read(head, body)
        model = self._table.find(asked)
        form = model.form
        views = self._router.explain(
            model.deployment,
            scanned,
            seed=form.seed,
            exclude=model.lacking,
            order=form.order,
            session=head.headers.get(b"x-session-id"),
            chunk_bytes=form.chunk_bytes,
        )
        told = DryRun(
            worker=self._decisions.worker,
            asked=asked,
            deployment=model.deployment,
            policy=self._router.policy_of(views[0].replica_id) if views else "",
            order=form.order,
            chunk_bytes=form.chunk_bytes,
            text_bytes=scanned.n_text_bytes,
            prompt_tokens=views[0].prompt_tokens if views else 0,
            candidates=tuple(told_candidate(view, model.lacking) for view in views),
        )
        return _json(told)


class Answered:
    """The core's side of a request that was answered within the call. Implements Exchange."""

    def on_gone(self) -> None:
        """There is nothing to end."""

    def on_writable(self) -> None:
        """There is nothing more to write."""


def _wanted(query: bytes) -> int:
    """`?last=20`. Raises: InvalidRequest."""
    text = parse_qs(query.decode("latin-1")).get("last", [str(DEFAULT_LAST)])[-1]
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= MAX_LAST:
        raise InvalidRequest(f"last={text[:40]!r} is not a number from 1 to {MAX_LAST}", param="last")
    return int(text)


def _joined(answers: list[Any]) -> Found:
    """What several processes know, as one answer."""
    parts = [msgspec.convert(answer, type=Found) for answer in answers if answer is not None]
    decisions: list[Decision] = [decision for part in parts for decision in part.decisions]
    reach: list[Reach] = [reach for part in parts for reach in part.reach]
    decisions.sort(key=lambda decision: decision.at_s, reverse=True)
    return Found(decisions=tuple(decisions), reach=tuple(reach))


def _how_far(reach: tuple[Reach, ...]) -> str:
    """Say how old a request may be. An empty ring has forgotten nothing."""
    if not any(one.size for one in reach):
        return "gateway.recent_decisions is 0: none are kept"
    full = [one for one in reach if one.oldest_s is not None and one.n_kept == one.size]
    size = max(one.size for one in reach)
    if not full:
        return f"none has been forgotten yet: each process keeps its last {size} that were understood"
    back_s = min(time.time() - (one.oldest_s or 0.0) for one in full)
    return f"the last {size} of each process are, which goes back {format_seconds(max(0.0, back_s))}"


def _json(content: msgspec.Struct) -> Answer:
    return Answer(200, msgspec.json.encode(content), [JSON])

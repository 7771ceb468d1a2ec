"""`xinf route`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from xinf.cli.admin import AdminClient
from xinf.cli.candidates import print_candidates
from xinf.cli.options import AdminKey, ConfigFile, DataDir, GatewayUrl, Json, Server
from xinf.cli.session import open_session
from xinf.cli.table import print_json
from xinf.core.decision import Candidate, DryRun
from xinf.core.errors import NotFound

TAIL_CHARACTERS = 40


def route(
    explain: Annotated[
        Path, typer.Option("--explain", metavar="FILE", help="A request's JSON body; - for standard input.")
    ],
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Instead of the body's model.")] = None,
    session_id: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="As the header `x-session-id`.")
    ] = None,
    url: GatewayUrl = None,
    admin_key: AdminKey = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Say which replica would get a request now, and why. Nothing is chosen, sent or changed."""
    body = _read(explain)
    client = AdminClient(open_session(config, data_dir, server), url=url, key=admin_key)
    headers = {"content-type": "application/json"}
    if model is not None:
        headers["x-xinf-model"] = model
    if session_id is not None:
        headers["x-session-id"] = session_id
    told = client.post("/admin/route", body, DryRun, headers=headers)
    if json:
        print_json(told)
        return
    for line in heading(told):
        print(line)
    if not told.candidates:
        print("no replica of it is known to this gateway process")
        return
    print()
    print_candidates(told.candidates, n_all=len(told.candidates))
    lines = matches(body, told)
    if lines:
        print("\nmatched text, up to its end:")
    for line in lines:
        print(line)


def heading(told: DryRun) -> list[str]:
    """What is asked for."""
    name = told.asked if told.asked == told.deployment else f"{told.asked}, served by {told.deployment}"
    return [
        f"model {name}, policy {told.policy or '-'}, as gateway process {told.worker} sees it now",
        f"prompt of {told.text_bytes} bytes in chunks of {told.chunk_bytes}, about {told.prompt_tokens} tokens",
    ]


def matches(body: bytes, told: DryRun) -> list[str]:
    """Where each match ends, in the text of the body itself; the gateway tells numbers only."""
    ends: dict[int, list[Candidate]] = {}
    for one in told.candidates:
        if one.matched_bytes:
            ends.setdefault(one.matched_bytes, []).append(one)
    from xinf._fast.scan import scan

    pieces = scan(body).canonical(told.order) if ends else []
    return [
        f"  {end} bytes ({', '.join(one.replica for one in ends[end])}): {tail_of(pieces, end)}"
        for end in sorted(ends, reverse=True)
    ]


def tail_of(pieces: Sequence[tuple[str, bytes]], end: int) -> str:
    """The last characters of canonical text before byte `end`, on one line; headers as <role>, ids as numbers."""
    shown: list[str] = []
    at = 0
    for kind, data in pieces:
        part = data[: end - at]
        at += len(data)
        if kind == "role":
            shown.append(f"<{part.decode('utf-8', 'ignore')}>")
        elif kind == "ids":
            shown.append(f" {int.from_bytes(part, 'little')}")
        elif kind == "payload":
            shown.append("<payload>")
        else:
            # A cut may stand in the middle of a character.
            shown.append(part.decode("utf-8", "ignore"))
        if at >= end:
            break
    text = "".join(shown)
    tail = text[-TAIL_CHARACTERS:]
    printable = "".join(one if one.isprintable() else repr(one)[1:-1] for one in tail)
    return ("…" if len(text) > len(tail) else "") + printable + "|"


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}") from error

"""The state of a repository whose hub names no commit: `master` is all that such a mirror of ModelScope says.

Under a commit a name means one content for ever, and its size is proof enough of what is here. Under a branch it may
mean another one tomorrow, of the same size even: so the SHA-256 that the hub lists is compared, or the tag that it
answers a request for the file with, with what was noted at the last download. Without both the size alone is left.
A part of a file is of the state that was noted, as that is done before its first byte; it goes on in no other, unless
its sum will tell.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from xinf.registry.blob import PARTIAL
from xinf.registry.hub import HubFiles
from xinf.registry.shelf import Shelf

_CHUNK_BYTES = 1 << 20
_FIRST_BYTE = "bytes=0-0"


def drop_changed(files: HubFiles, names: Sequence[str], shelf: Shelf) -> None:
    """Remove what is here of another state, and note the present one. Raises: as `HubFiles.ask`; OSError."""
    before = shelf.tags(files.revision)
    now = {name: tag for name in names if (tag := _tag(files, name)) is not None}
    for name in names:
        path, sha256 = shelf.snapshot(files.revision) / name, files.files[name].sha256
        if path.is_file() and name in now and not _is_of(path, now[name], before.get(name), sha256):
            path.unlink()
        if (tag := now.get(name)) not in (None, before.get(name)) and (name in before or tag != sha256):
            path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # then the next time compares with older tags, and fetches what is right anew
        shelf.write_tags(files.revision, now)


def _tag(files: HubFiles, name: str) -> str | None:
    if (sha256 := files.files[name].sha256) is not None:
        return sha256
    if not files.files[name].size:
        return None
    with files.ask(name, _FIRST_BYTE) as answer:
        return answer.tag


def _is_of(path: Path, now: str, before: str | None, sha256: str | None) -> bool:
    """Whether a file is of the present state; one that somebody else brought is read, if its sum is known."""
    if before is not None or sha256 is None:
        return before in (None, now)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == sha256

"""`python -m xinf.agent.fetcher SPEC.JSON PYTHON`: brings the files of a replica's model, then becomes its engine shim.

    agent ──▶ guard ──▶ fetcher ──exec──▶ shim, of the engine's own interpreter
                        files whole in the cache of this host   at once, no hub is asked
                        else                                    fetched as `xinf pull` does, resumed where it ended

It is the child of the guard, in the replica's process group, and writes to its log and its status.json: so it is
watched, ended and adopted like the engine that it will be, and an agent that dies in the middle of a download changes
nothing. What ends a download fails the replica with a sentence and a remedy; the next start goes on where it ended.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from xinf.core import log
from xinf.core.clock import Clock, SystemClock
from xinf.core.errors import (
    Conflict,
    EngineStartFailed,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    XinfError,
)
from xinf.core.records import Phase, ReplicaFailure
from xinf.core.shim import ShimSpec, ShimStatus, read_file, write_file
from xinf.core.units import format_bytes, format_seconds
from xinf.registry import (
    Progress,
    Reference,
    Sources,
    download,
    find_sources,
    not_cached,
    reference_of,
    shelf_of,
    try_lock,
)

EXIT_FAILED = 1
EXIT_BAD_SPEC = 2

_TOLD_EVERY_S = 2.0  # in status.json, which becomes a record of the store
_LOGGED_EVERY_S = 10.0
_WAIT_S = 0.5
_FETCHING = "fetching"
_PAUSING = "waiting for the hub: next try in"
_WAITING = "waiting for another process that fetches it:"
# The reader can do something about these; the rest is the network's or the disk's.
_NOT_FOUND = (NotFound, InvalidRequest, PermissionDenied, Unauthenticated)

_log = logging.getLogger("xinf.agent.fetcher")  # it runs as __main__


def main(argv: Sequence[str]) -> int:
    """Fetch, and become the shim. Returns only if that failed."""
    if len(argv) != 2 or (spec := read_file(Path(argv[0]), ShimSpec)) is None or spec.fetch is None:
        sys.stderr.write(f"usage: python -m xinf.agent.fetcher SPEC.JSON PYTHON  (got {list(argv)})\n")
        return EXIT_BAD_SPEC
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log.configure("fetch", level=spec.log_level)
    status = FetchStatus(spec)
    try:
        directory = bring(spec, os.environ, status)
        write_file(Path(argv[0]), msgspec.structs.replace(spec, model_path=str(directory)))
        _become_shim(argv[1], argv[0], own=spec.fetch.environ)
    except XinfError as error:
        _log.error("there will be no engine: %s", error)
        status.fail(failure_of(error))
        return EXIT_FAILED
    except Exception as error:
        _log.exception("fetching the model failed")
        status.fail(ReplicaFailure(cause="crashed", message=repr(error), remedy="read the whole log with `xinf logs`"))
        return EXIT_FAILED


def _become_shim(python: str, spec_path: str, *, own: Mapping[str, str]) -> NoReturn:
    """`own`: variables that the engine must not have. Raises: EngineStartFailed."""
    environ = {name: value for name, value in os.environ.items() if name not in own}
    try:
        os.execve(python, [python, "-m", "xinf.engine", spec_path], environ)
    except OSError as error:
        raise EngineStartFailed(
            f"the engine's interpreter cannot be started: {error}",
            remedy="install the engine environment again with `xinf engine install`",
            cause="missing_dependency",
        ) from error


def bring(spec: ShimSpec, environ: Mapping[str, str], status: FetchStatus) -> Path:
    """The directory of the files, fetched if they are not here. Raises: what `download` raises."""
    assert spec.fetch is not None
    sources = find_sources(environ, spec.fetch.registry)
    reference = reference_of(spec.engine)
    if reference is None:
        raise InvalidRequest(f"{spec.engine.model} is no model of a hub")
    shelf = shelf_of(reference, sources)
    found = shelf.find_whole(reference.revision)
    if found is None and sources.is_offline:
        raise not_cached(reference, sources)
    if found is None:
        _log.info("fetching %s into %s", reference, shelf.directory)
        return _fetch(reference, sources, status)
    if (damage := shelf.damage(reference.revision)) is None or sources.is_offline:
        _log.info("%s is here: %s", reference, found)
        return found
    _log.warning("%s is fetched again: %s", reference, damage)
    try:
        return _fetch(reference, sources, status)
    except Unavailable as error:
        if shelf.find_whole(reference.revision) is None:
            raise
        # Without the hub the engine has the last word on what is here: it may read more than is known of files here.
        _log.warning("%s is taken as it is: %s", reference, error)
        return found


def _fetch(reference: Reference, sources: Sources, status: FetchStatus) -> Path:
    while True:
        try:
            done = download(reference, sources, status.show)
        except Conflict as error:
            # Another replica of this host, or a person, fetches the same: what they bring is ours as well.
            _wait_for(Path(str(error.fields["path"])), status.others)
            continue
        _log.info("fetched %s: %d files, %s", reference, done.n_files, format_bytes(done.n_bytes))
        return done.directory


def _wait_for(partial: Path, told: Callable[[int], None]) -> None:
    """Wait until nobody writes this file any more. `told`: how large it is, whenever it has grown."""
    n_bytes = -1
    while True:
        try:
            # On a disk of the network only a file that is open for writing can be locked.
            with partial.open("r+b") as file:
                if try_lock(file):
                    return
        except FileNotFoundError:
            return
        try:
            found = partial.stat().st_size
        except FileNotFoundError:
            return
        if found != n_bytes:
            n_bytes = found
            told(n_bytes)
        time.sleep(_WAIT_S)


def failure_of(error: XinfError) -> ReplicaFailure:
    """Why there are no files, as docs/reference/errors.md lists the causes."""
    cause = error.fields.get("cause") or ("model_not_found" if isinstance(error, _NOT_FOUND) else "fetch_failed")
    return ReplicaFailure(
        cause=str(cause),
        message=error.message,
        remedy=error.remedy or "read the whole log with `xinf logs`",
        at_s=time.time(),
    )


class FetchStatus:
    """status.json while files come: how many, and when the last did."""

    def __init__(self, spec: ShimSpec, clock: Clock | None = None) -> None:
        self._path = spec.status_path
        self._clock = clock or SystemClock()
        # How often something is told, and the rate, are counted on the clock that does not jump.
        self._told_s = self._logged_s = self._began_s = self._clock.monotonic_s()
        self._at_start_bytes: int | None = None
        self._doing: str | None = None
        self._status = ShimStatus(
            start_id=spec.start_id,
            pid=os.getpid(),
            phase=Phase.STARTING,
            phase_since_s={Phase.STARTING.value: self._clock.now_s()},
            detail="looking for the model's files",
        )
        write_file(self._path, self._status)

    def show(self, progress: Progress) -> None:
        """Take over how far a download is; several threads do, one at a time."""
        if progress.waits_s is not None:
            if self._is_due(_PAUSING):
                self._tell(_PAUSING, format_seconds(progress.waits_s))
            return
        if self._at_start_bytes is None:
            self._at_start_bytes = progress.done_bytes
        if not self._is_due(_FETCHING):
            return  # it comes with every piece of a file
        elapsed_s = max(self._clock.monotonic_s() - self._began_s, 1e-3)
        rate = max(0.0, progress.done_bytes - self._at_start_bytes) / elapsed_s
        share = f"{100 * progress.done_bytes / progress.total_bytes:.0f} %, " if progress.total_bytes else ""
        done, total = format_bytes(progress.done_bytes), format_bytes(progress.total_bytes)
        self._tell(_FETCHING, f"{share}{done} of {total}, {format_bytes(int(rate))}/s")

    def others(self, n_bytes: int) -> None:
        """Say that another process fetches a file, of which there are so many bytes."""
        if self._is_due(_WAITING):
            self._tell(_WAITING, f"{format_bytes(n_bytes)} of this file are here")

    def fail(self, failure: ReplicaFailure) -> None:
        """Say why there will be no engine."""
        since = {**self._status.phase_since_s, Phase.FAILED.value: self._clock.now_s()}
        try:
            self._replace(phase=Phase.FAILED, detail=None, phase_since_s=since, failure=failure)
        except OSError as error:
            _log.error("the agent cannot be told: %s", error)  # as the disk is full; the log says it

    def _is_due(self, doing: str) -> bool:
        return doing != self._doing or self._clock.monotonic_s() - self._told_s >= _TOLD_EVERY_S

    def _tell(self, doing: str, how: str) -> None:
        now_s = self._clock.monotonic_s()
        sentence = f"{doing} {how}"
        if doing != self._doing or now_s - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = now_s
            _log.info("%s", sentence)
        self._told_s, self._doing = now_s, doing
        self._replace(detail=sentence, fetched_monotonic_s=now_s)

    def _replace(self, **changes: object) -> None:
        self._status = msgspec.structs.replace(self._status, **changes)
        write_file(self._path, self._status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

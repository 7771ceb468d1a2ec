"""`python -m tests.registry.kill_child CACHE EXPECTED`: downloads that are killed in every step, and gone on with.

A step is a change of the disk: a write, a rename, a link, a sync. For every one there is a process that kills itself
before it, and then one that is left alone. Says how many steps there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.registry.hub import COMMIT
from xinf.registry import Hub, Reference, download, find_sources, shelf_of
from xinf.registry.blob import _Body
from xinf.registry.huggingface import HuggingFace

# Imported above, so that not every process does it: it takes longer than all else.
assert HuggingFace is not None
REFERENCE = Reference(Hub.HUGGINGFACE, "org/name", None)


def main(cache: Path) -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written, and a disk that is waited for is slow
    n_steps = 0
    while _run(n_steps):
        _check(is_done=False)
        assert not _run(None)
        _check(is_done=True)
        shutil.rmtree(cache)
        n_steps += 1
    print(n_steps)


def _run(n_steps: int | None) -> bool:
    """Download in another process, killed after so many steps. Returns whether it was."""
    pid = os.fork()
    if pid == 0:
        if n_steps is not None:
            _kill_after(n_steps)
        download(REFERENCE, find_sources())
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def _kill_after(n_steps: int) -> None:
    left = n_steps

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return step(*args, **kwargs)

        return run

    steps: Any
    for owner, names in ((Path, ("replace", "symlink_to")), (os, ("fsync",)), (_Body, ("add",))):
        for name in names:
            steps = owner
            setattr(steps, name, counted(getattr(steps, name)))


def _check(*, is_done: bool) -> None:
    """What counts as whole is whole, and what has its name has its content."""
    shelf = shelf_of(REFERENCE, find_sources())
    expected = {path.name: path.read_bytes() for path in Path(sys.argv[2]).iterdir()}
    snapshot = shelf.snapshot(COMMIT)
    found = {name: (snapshot / name).read_bytes() for name in expected if (snapshot / name).exists()}
    assert found.items() <= expected.items()
    whole = shelf.find_whole(COMMIT)
    assert whole is None or found == expected
    if is_done:
        assert shelf.find_whole(None) == snapshot
        assert list(shelf.directory.rglob("*.partial")) == []


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Looking at processes that may end while one looks: what has gone is left out, a zombie counts as gone."""

from __future__ import annotations

import contextlib

import psutil


def living_children(pid: int, *, recursive: bool = False) -> list[psutil.Process]:
    """The children of a process that live now; of one that is gone, none."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=recursive):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
    return found


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; nothing if it is gone."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []

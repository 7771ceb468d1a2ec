"""Connections are files: as many as may be."""

from __future__ import annotations

import resource


def raise_limit() -> int:
    """Raise this process's limit of open files to the hard one and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard

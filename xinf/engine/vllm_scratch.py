"""Where vLLM leaves its temporary files: sockets between its processes and rendezvous files, never cleaned up by it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

# vLLM names its sockets `<directory>/<uuid>`, and the kernel takes 107 bytes.
_MAX_DIRECTORY_BYTES = 107 - 1 - 36


class Scratch:
    """A directory for temporary files of one replica: in the replica's own if its name is short enough for sockets."""

    def __init__(self, replica_directory: Path) -> None:
        wanted = replica_directory.absolute() / "tmp"
        if len(os.fsencode(wanted)) <= _MAX_DIRECTORY_BYTES:
            # What an engine that was killed left behind goes with this.
            shutil.rmtree(wanted, ignore_errors=True)
            wanted.mkdir(mode=0o700, parents=True)
            self.path = wanted
        else:
            self.path = Path(tempfile.mkdtemp(prefix="xinf-", dir="/tmp"))

    def use(self) -> None:
        """Make it the place for temporary files of this process and of those it starts."""
        os.environ["TMPDIR"] = str(self.path)
        tempfile.tempdir = None  # computed once and kept, from the old environment

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

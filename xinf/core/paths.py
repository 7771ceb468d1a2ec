"""Where a xinf installation keeps its state and its sockets. Computes names only; nothing is created here.

    data directory      $DATA_DIR, else $XDG_STATE_HOME/xinf      meta/  logs/  replicas/<id>/  models/
    runtime directory   $XDG_RUNTIME_DIR/xinf-<hash>, else /tmp/xinf-<uid>-<hash>      sockets, discovery file

The runtime directory is named by a hash of the data directory: two installations on one host never meet, and every
command that is told the same data directory finds the same control process. Unix socket paths end at 108 bytes, so
the runtime directory is kept short whatever the data directory is called.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from xinf.core.errors import ConfigError

MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 with the closing zero


class Paths:
    """All names below one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:10]
        base = os.environ.get("XDG_RUNTIME_DIR")
        self.runtime_dir = Path(base) / f"xinf-{digest}" if base else Path(f"/tmp/xinf-{os.getuid()}-{digest}")

    @property
    def meta_dir(self) -> Path:
        return self.data_dir / "meta"

    @property
    def replicas_dir(self) -> Path:
        return self.data_dir / "replicas"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def devices_file(self) -> Path:
        """JSON that one agent leaves to the next: the devices of this host and how they were."""
        return self.data_dir / "devices.json"

    @property
    def control_socket(self) -> Path:
        return self.socket("control")

    @property
    def discovery_file(self) -> Path:
        """JSON written by the control process when it serves: pid, socket, address, gateway URL, version."""
        return self.runtime_dir / "control.json"

    @property
    def admin_key_file(self) -> Path:
        """The key of the gateway's admin routes, for this user's own commands; made with each start of `xinf serve`."""
        return self.runtime_dir / "admin.key"

    def gateway_admin_socket(self, worker: int) -> Path:
        return self.socket(f"gw{worker}")

    def socket(self, name: str) -> Path:
        """Name a Unix socket. Raises: ConfigError when the path is too long for the kernel."""
        path = self.runtime_dir / f"{name}.sock"
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"socket path {path} has {length} bytes, the kernel takes {MAX_SOCKET_PATH_BYTES}",
                remedy="set XDG_RUNTIME_DIR to a shorter directory",
            )
        return path

    def make_runtime_dir(self) -> Path:
        """Create the runtime directory, private to this user. Raises: ConfigError if somebody else owns it."""
        self.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = self.runtime_dir.stat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
            raise ConfigError(
                f"runtime directory {self.runtime_dir} must belong to uid {os.getuid()} alone,"
                f" it has owner {stat.st_uid} and mode {stat.st_mode & 0o777:o}",
                remedy="remove it or set XDG_RUNTIME_DIR",
            )
        return self.runtime_dir


def default_data_dir() -> Path:
    """$DATA_DIR, else $XDG_STATE_HOME/xinf, else ~/.local/state/xinf."""
    if explicit := os.environ.get("DATA_DIR"):
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "xinf"

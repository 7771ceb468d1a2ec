"""What one agent leaves to the next of its host's devices: who they were and how. A file, as good as its host's boot.

An agent that starts anew would otherwise take a card for well until its first sample and place engines on it, call a
card whose driver hangs by another name, and forget how often one fell ill. Marks of an earlier agent end as all do,
after a calm time in which nothing says so any more: whoever reset a card has ended the agent for it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from xinf.agent.damper import Spell
from xinf.core.device import Device

_BOOT_ID = "proc/sys/kernel/random/boot_id"


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """The devices as they counted when it was written, and their spells by UUID, in the monotonic time of that boot."""

    boot_id: str
    devices: tuple[Device, ...]
    spells: dict[str, Spell]
    occupants: dict[str, dict[str, str]] = {}  # see Occupants; true beyond a boot, in which cards are exchanged


def read_chart(path: Path, root: Path = Path("/")) -> Chart | None:
    """Read what an earlier agent left; None if there is nothing, it cannot be read, or the host was booted since."""
    chart = _decode(path)
    return chart if chart is not None and chart.boot_id == read_boot_id(root) else None


def read_occupants(path: Path) -> dict[str, dict[str, str]]:
    """Read who sat in which slot when an earlier agent looked, in this boot or before it; empty if nobody knows."""
    chart = _decode(path)
    return {} if chart is None else chart.occupants


def write_chart(
    path: Path,
    devices: tuple[Device, ...],
    spells: dict[str, Spell],
    occupants: dict[str, dict[str, str]] | None = None,
    root: Path = Path("/"),
) -> None:
    """Replace the file; nothing is written on hosts that do not tell one boot from another. Raises: OSError."""
    boot_id = read_boot_id(root)
    if boot_id is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    chart = Chart(boot_id=boot_id, devices=devices, spells=spells, occupants=occupants or {})
    temporary.write_bytes(msgspec.json.encode(chart))
    temporary.replace(path)


def _decode(path: Path) -> Chart | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Chart)
    except (OSError, msgspec.MsgspecError):
        return None


def read_boot_id(root: Path = Path("/")) -> str | None:
    """The kernel's name for this boot; None where it has none."""
    try:
        return (root / _BOOT_ID).read_text().strip() or None
    except OSError:
        return None

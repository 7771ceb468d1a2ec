"""Cards that are not here, to plan for: the table configs/cards.toml, and what `--on` takes.

h100-80gb          one
8x h100            eight in one host; `h100` is another name of it
2xl4,rtx-5090      one host with two, another with one
"""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path

import msgspec

from xinf.core.config import configs_dir
from xinf.core.device import Device, Vendor
from xinf.core.errors import ConfigError, InvalidRequest
from xinf.core.ids import NodeName
from xinf.core.records import NodeRecord

FILE = "cards.toml"
MAX_CARDS = 64  # of one host
_LEAST_RUNTIME = 0.9  # of its memory, what any driver leaves
_PART = re.compile(r"(?:([0-9]{1,9})\s*[xX*]\s*)?([a-z0-9][a-z0-9.-]*)", re.IGNORECASE)


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One product."""

    name: str
    aliases: tuple[str, ...] = ()
    vendor: Vendor
    device: str  # the name that its driver gives it
    arch: str
    memory_mib: int  # as its driver tells it
    runtime_gib: float | None = None  # what an engine's runtime has of it; None: all, or nobody says
    taken_mib: int = 0  # of an empty one
    source: str

    @property
    def memory_bytes(self) -> int:
        """What programs can have of it, as a probe tells it."""
        return self.memory_mib << 20 if self.runtime_gib is None else int(self.runtime_gib * (1 << 30))


@functools.cache
def shipped_cards() -> dict[str, Card]:
    """The cards that came with this xinf, by each of their names. Raises: ConfigError."""
    return read_cards(configs_dir() / FILE)


def read_cards(path: Path) -> dict[str, Card]:
    """Read and check a table. Raises: ConfigError naming the row."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is unreadable: {error}", remedy="install xinf again") from error
    found: dict[str, Card] = {}
    for number, row in enumerate(content.get("card", []), start=1):
        try:
            card = msgspec.convert(row, Card)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{path.name}: [[card]] row {number}: {error}", remedy="correct that field") from error
        for name in (card.name, *card.aliases):
            if name in found:
                raise ConfigError(f"{path.name}: [[card]] row {number}: {name!r} is there twice", remedy="remove one")
            found[name] = card
        if not card.source or not 0 <= card.taken_mib < card.memory_mib:
            raise ConfigError(f"{path.name}: [[card]] {card.name}: no source or no memory", remedy="say it")
        if not _LEAST_RUNTIME * (card.memory_mib << 20) <= card.memory_bytes <= card.memory_mib << 20:
            raise ConfigError(
                f"{path.name}: [[card]] {card.name}: runtime_gib is not what a driver leaves of memory_mib",
                remedy="give GiB as an engine prints them",
            )
    return found


def imagine_hosts(text: str) -> list[NodeRecord]:
    """Read what `--on` takes as hosts that have these cards and nothing else. Raises: InvalidRequest."""
    return [_imagine(part.strip()) for part in text.split(",")]


def _imagine(part: str) -> NodeRecord:
    match = _PART.fullmatch(part)
    cards = shipped_cards()
    card = cards.get(match[2].lower()) if match is not None else None
    if match is None or card is None:
        names = ", ".join(dict.fromkeys(known.name for known in cards.values()))
        raise InvalidRequest(f"nothing is known of a card {part[:100]!r}", remedy=f"there are: {names}", param="on")
    count = int(match[1] or 1)
    if not 1 <= count <= MAX_CARDS:
        raise InvalidRequest(f"{part[:100]!r}: a host has 1 to {MAX_CARDS} cards", param="on")
    name = card.name if count == 1 else f"{count}x {card.name}"
    devices = tuple(
        Device(
            vendor=card.vendor,
            index=index,
            uuid=f"{name}#{index}",
            name=card.device,
            arch=card.arch,
            memory_bytes=card.memory_bytes,
        )
        for index in range(count)
    )
    foreign = {device.uuid: card.taken_mib << 20 for device in devices if card.taken_mib}
    return NodeRecord(name=NodeName(name), address="", devices=devices, environments=(), foreign_bytes=foreign)

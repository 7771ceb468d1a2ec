"""Reads the matrix that a vendor's tool draws of how far its devices, and network cards, are apart.

           NPU0   NPU1   NIC0   CPU Affinity     the header: a label for each column, up to `CPU` or `NUMA`
    NPU0   X      HCCS   PIX    0-23             a row for each device, in the columns' order
    NPU1   HCCS   X      SYS    24-47
    NIC0   PIX    SYS    X                       rows of others, and the legend below, are not read

A kind of way that is not known is refused: a short way taken for a long one would only be slow, but a link that is not
there would be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from xinf.core.device import Distance
from xinf.device.tool import FormatError

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Link(msgspec.Struct, frozen=True):
    """How far two devices are apart, by the labels that the matrix gives them."""

    first: str
    second: str
    distance: Distance


def parse_link_matrix(
    tool: str, text: str, *, device: str, other: str, kinds: Mapping[str, Distance | None]
) -> tuple[Link, ...]:
    """Read the pairs of devices whose distance is told, each once.

    `device`, `other`: patterns of the labels of devices and of what else has a column. `kinds`: what a cell means, None
    for one that says nothing. Raises: FormatError.
    """
    lines = [_COLOURS.sub("", line).split() for line in text.splitlines()]
    filled = [words for words in lines if words]
    header = filled[0] if filled else []
    ends = [at for at, word in enumerate(header) if word in ("CPU", "NUMA")]
    columns = header[: ends[0]] if ends else header
    if not any(re.fullmatch(device, name) for name in columns) or not all(
        re.fullmatch(rf"{device}|{other}", name) for name in columns
    ):
        raise FormatError(f"{tool} has an unknown header: {' '.join(header)[:200] or 'nothing'!r}")
    devices = [at for at, name in enumerate(columns) if re.fullmatch(device, name)]
    rows = {words[0]: words[1:] for words in filled[1:] if re.fullmatch(device, words[0]) and len(words) > len(columns)}
    missing = [columns[at] for at in devices if columns[at] not in rows]
    if missing:
        raise FormatError(f"{tool} has {len(devices) - len(missing)} rows for {len(devices)} columns of devices")
    links: list[Link] = []
    for row, position in enumerate(devices):
        cells = rows[columns[position]]
        for column in devices:
            if cells[column] not in kinds:
                raise FormatError(f"{tool} has a way between two devices that is not known: {cells[column][:20]!r}")
        for column in devices[row + 1 :]:
            distance = kinds[cells[column]]
            if distance is not None:
                links.append(Link(columns[position], columns[column], distance))
    return tuple(links)

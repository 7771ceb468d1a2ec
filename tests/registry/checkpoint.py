"""Checkpoints with true headers and no weights: files are as long as they say, and sparse."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "I8": 8, "U8": 8, "I32": 32, "I64": 64}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape


def header(tensors: Shapes) -> bytes:
    """The bytes before the data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + size)}
        offset += size
    encoded = json.dumps(entries).encode()
    return struct.pack("<Q", len(encoded)) + encoded


def data_bytes(tensors: Shapes) -> int:
    return sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in tensors.values())


def write_safetensors(path: Path, tensors: Shapes) -> None:
    head = header(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data_bytes(tensors))


def write_shards(directory: Path, shards: Mapping[str, Shapes]) -> None:
    """Several files and the index that names them."""
    for name, tensors in shards.items():
        write_safetensors(directory / name, tensors)
    index = {
        "metadata": {"total_size": sum(map(data_bytes, shards.values()))},
        "weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

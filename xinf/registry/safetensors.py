"""Headers of safetensors files: names, types and shapes of all tensors, without a byte of the weights.

    8 bytes, little endian: N | N bytes of JSON: {name: {"dtype", "shape", "data_offsets"}} | tensors

Files may come from anybody. A length is believed only up to the format's own cap, every tensor must be as long as its
type and shape say, and must lie inside the file. Source: the format's description in safetensors 0.8, and
`safetensors/src/tensor.rs` for the types and the cap.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from xinf.core.errors import UnknownModel

INDEX = "model.safetensors.index.json"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 256 << 20
MAX_SHARDS = 4096
_MAX_DIMENSIONS = 16
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_SHARD = re.compile(r"[\w][\w.\-]*")


class Tensor(msgspec.Struct, frozen=True):
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements * DTYPE_BITS[self.dtype] // 8


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


def header_bytes(prefix: bytes, name: str, *, file_bytes: int | None = None) -> int:
    """Read the length of a header from the first 8 bytes of `name`.

    Raises: UnknownModel if it cannot be a safetensors file.
    """
    if len(prefix) < LENGTH_BYTES:
        raise _damaged(name, f"it has {len(prefix)} bytes")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _damaged(name, f"it claims a header of {length} bytes, the format allows {MAX_HEADER_BYTES}")
    if file_bytes is not None and LENGTH_BYTES + length > file_bytes:
        raise _damaged(name, f"its header of {length} bytes is longer than the file ({file_bytes} bytes)")
    return length


def parse_header(content: bytes, name: str, *, file_bytes: int | None = None) -> list[Tensor]:
    """Parse the JSON of a header; `content` is exactly it, `file_bytes` the length of the whole file if it is known.

    Raises: UnknownModel naming the first tensor that is not right.
    """
    try:
        entries = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(name, f"its header is no JSON object: {error}") from error
    entries.pop("__metadata__", None)
    data_bytes = None if file_bytes is None else file_bytes - LENGTH_BYTES - len(content)
    return [_parse_tensor(key, raw, name, data_bytes) for key, raw in entries.items()]


def check_length(path: Path) -> None:
    """Compare how long a file is with what its header says. Raises: UnknownModel if it is shorter; OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = header_bytes(file.read(LENGTH_BYTES), str(path), file_bytes=size)
        parse_header(file.read(length), str(path), file_bytes=size)


def parse_index(content: bytes, name: str, *, ending: str = ".safetensors") -> list[str]:
    """List the shards that an index names, each once, in ascending order.

    `ending`: of each; the index of torch's own format looks the same.
    Raises: UnknownModel for what is no index, or names a file outside the model's directory.
    """
    try:
        index = msgspec.json.decode(content, type=_Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(name, f"it is no index: {error}") from error
    shards = sorted(set(index.weight_map.values()))
    if not shards or len(shards) > MAX_SHARDS:
        raise _damaged(name, f"it names {len(shards)} files")
    for shard in shards:
        if not _SHARD.fullmatch(shard) or not shard.endswith(ending):
            raise _damaged(name, f"it names {shard[:200]!r}")
    return shards


def _parse_tensor(key: str, raw: msgspec.Raw, name: str, data_bytes: int | None) -> Tensor:
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(name, f"tensor {key[:200]!r}: {error}") from error
    bits = DTYPE_BITS.get(entry.dtype)
    if bits is None:
        raise _damaged(name, f"tensor {key[:200]!r} has the unknown type {entry.dtype[:40]!r}")
    if len(entry.shape) > _MAX_DIMENSIONS or any(size < 0 for size in entry.shape):
        raise _damaged(name, f"tensor {key[:200]!r} has the shape {entry.shape[:_MAX_DIMENSIONS]}")
    begin, end = entry.data_offsets
    if not 0 <= begin <= end or (data_bytes is not None and end > data_bytes):
        raise _damaged(name, f"tensor {key[:200]!r} lies at {begin}..{end}, outside the file")
    tensor = Tensor(key, entry.dtype, tuple(entry.shape))
    if tensor.n_elements * bits != (end - begin) * 8:
        raise _damaged(name, f"tensor {key[:200]!r} has {end - begin} bytes, its shape needs {tensor.n_bytes}")
    return tensor


def _damaged(name: str, why: str) -> UnknownModel:
    return UnknownModel(
        f"{name} is damaged or no safetensors file: {why}", remedy="fetch the model again", param="model"
    )

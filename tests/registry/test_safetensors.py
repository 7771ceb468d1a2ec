"""Headers of safetensors files, whole and hostile."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.checkpoint import data_bytes, header
from xinf.core.errors import UnknownModel
from xinf.registry.safetensors import MAX_HEADER_BYTES, Tensor, header_bytes, parse_header, parse_index

TENSORS = {"a.weight": ("BF16", (4, 8)), "b.weight": ("F8_E4M3", (16,)), "scalar": ("F32", ())}
SIZE = len(header(TENSORS)) + data_bytes(TENSORS)


def entry(**changes: object) -> bytes:
    fields = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8], **changes}
    return json.dumps({"t": fields}).encode()


def test_header_lists_every_tensor() -> None:
    content = header(TENSORS)
    assert header_bytes(content[:8], "m", file_bytes=SIZE) == len(content) - 8
    found = parse_header(content[8:], "m", file_bytes=SIZE)
    assert found == [
        Tensor("a.weight", "BF16", (4, 8)),
        Tensor("b.weight", "F8_E4M3", (16,)),
        Tensor("scalar", "F32", ()),
    ]
    assert [tensor.n_elements for tensor in found] == [32, 16, 1]
    assert [tensor.n_bytes for tensor in found] == [64, 16, 4]


@pytest.mark.parametrize(("prefix", "file_bytes", "says"), [
    (b"", 0, "it has 0 bytes"),
    (b"\x10\0\0", 3, "it has 3 bytes"),
    (struct.pack("<Q", 0), 100, "claims a header of 0 bytes"),
    (struct.pack("<Q", 1 << 63), None, "claims a header of"),
    (struct.pack("<Q", MAX_HEADER_BYTES + 1), None, "the format allows"),
    (struct.pack("<Q", 200), 100, "longer than the file"),
])  # fmt: skip
def test_length_that_cannot_be_is_refused(prefix: bytes, file_bytes: int | None, says: str) -> None:
    with pytest.raises(UnknownModel, match=says):
        header_bytes(prefix, "m", file_bytes=file_bytes)


@pytest.mark.parametrize(("content", "says"), [
    (b"{", "no JSON object"),
    (b"[]", "no JSON object"),
    (b"\xff\xfe", "no JSON object"),
    (b"[" * 100_000, "no JSON object"),
    (b'{"t": 1}', "tensor 't'"),
    (entry(dtype="Q4"), "unknown type 'Q4'"),
    (entry(dtype=7), "tensor 't'"),
    (entry(shape=[-1, 4]), "has the shape"),
    (entry(shape=[1] * 17), "has the shape"),
    (entry(shape=["2"]), "tensor 't'"),
    (entry(data_offsets=[8, 0]), "outside the file"),
    (entry(data_offsets=[-8, 0]), "outside the file"),
    (entry(data_offsets=[0, 1 << 62]), "outside the file"),
    (entry(data_offsets=[0, 6]), "has 6 bytes, its shape needs 8"),
    (entry(shape=[1 << 40, 1 << 40]), "its shape needs"),
    (entry(data_offsets=[0]), "tensor 't'"),
])  # fmt: skip
def test_header_that_lies_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(UnknownModel, match=says):
        parse_header(content, "m", file_bytes=8 + len(content) + 8)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_typed_error(content: bytes) -> None:
    try:
        parse_header(content, "m", file_bytes=1000)
        header_bytes(content, "m", file_bytes=1000)
    except UnknownModel:
        pass


def test_index_names_each_shard_once() -> None:
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-1.safetensors"},
    }
    assert parse_index(json.dumps(index).encode(), "i") == ["m-1.safetensors", "m-2.safetensors"]


def test_index_of_the_older_format_is_read_where_it_is_meant() -> None:
    index = json.dumps({"weight_map": {"a": "m-1.bin"}}).encode()
    assert parse_index(index, "i", ending=".bin") == ["m-1.bin"]
    with pytest.raises(UnknownModel, match="it names"):
        parse_index(index, "i")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "x.gguf", "", ".safetensors"]
)
def test_index_that_leaves_the_directory_is_refused(shard: str) -> None:
    with pytest.raises(UnknownModel, match="it names"):
        parse_index(json.dumps({"weight_map": {"a": shard}}).encode(), "i")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"{}"])
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(UnknownModel):
        parse_index(content, "i")

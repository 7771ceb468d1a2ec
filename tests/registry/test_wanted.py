"""Which files of a repository are fetched."""

from __future__ import annotations

import pytest

from xinf.registry.wanted import wanted_files

ALWAYS = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("left", [
    "pytorch_model.bin", "model.onnx", "onnx/model.onnx", "original/consolidated.00.pth", "consolidated.safetensors",
    "model-q4.gguf", "flax_model.msgpack", ".gitattributes", "figures/a.png", "logo.PNG", "x/model.gguf",
])  # fmt: skip
def test_same_weights_in_another_format_are_left(left: str) -> None:
    assert wanted_files([*ALWAYS, left]) == ALWAYS


@pytest.mark.parametrize("kept", ["2_Dense/pytorch_model.bin", "modeling_x.py", "README.md", "tiktoken.model"])
def test_what_has_no_other_format_is_fetched(kept: str) -> None:
    assert wanted_files([*ALWAYS, kept]) == sorted([*ALWAYS, kept])


def test_part_of_a_model_with_safetensors_beside_needs_no_torch_file() -> None:
    names = [*ALWAYS, "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    assert wanted_files(names) == sorted(names[:-1])


def test_model_without_safetensors_is_fetched_in_its_own_format() -> None:
    names = ["config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json"]
    assert wanted_files(names) == names


def test_mistral_alone_is_fetched_in_its_own_format() -> None:
    names = ["consolidated.safetensors", "params.json", "tekken.json"]
    assert wanted_files(names) == names

"""The scripted checkpoint as files: the same bytes each time, whole or absent, with a tokenizer that makes sense."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from xinf.registry import scripted
from xinf.registry.scripted import write_scripted_model


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_write_makes_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = contents(write_scripted_model(tmp_path / "a"))
    second = contents(write_scripted_model(tmp_path / "b"))
    assert first == second
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(first)


def test_write_leaves_a_complete_one_alone(tmp_path: Path) -> None:
    directory = write_scripted_model(tmp_path / "model")
    inodes = {path.name: path.stat().st_ino for path in directory.iterdir()}
    write_scripted_model(directory)
    assert {path.name: path.stat().st_ino for path in directory.iterdir()} == inodes


@pytest.mark.parametrize("name", ["model.safetensors", "xinf-scripted.json"])
def test_write_replaces_a_damaged_one(tmp_path: Path, name: str) -> None:
    directory = write_scripted_model(tmp_path / "model")
    good = contents(directory)
    (directory / name).write_bytes(b"damaged")
    write_scripted_model(directory)
    assert contents(directory) == good
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_are_a_safetensors_file_of_the_configured_shapes(tmp_path: Path) -> None:
    directory = write_scripted_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    data = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    assert header["lm_head.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    end = 0
    for tensor in header.values():
        start, stop = tensor["data_offsets"]
        n_values = 1
        for size in tensor["shape"]:
            n_values *= size
        assert start == end
        assert stop - start == 2 * n_values
        end = stop
    assert 8 + length + end == len(data)


def test_every_token_id_is_used_once(tmp_path: Path) -> None:
    directory = write_scripted_model(tmp_path / "model")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    config = json.loads((directory / "config.json").read_text())
    assert sorted(ids) == list(range(config["vocab_size"]))


def test_words_merge_to_one_token(tmp_path: Path) -> None:
    """Prompts must cost about as many tokens as real ones do; the BPE is applied here by a naive model of it."""
    tokenizer = json.loads((write_scripted_model(tmp_path / "model") / "tokenizer.json").read_text())
    ranks = {tuple(pair): rank for rank, pair in enumerate(tokenizer["model"]["merges"])}
    for word in ("Ġthe", "hello", "Ġforever", "Ġbecause"):
        pieces = list(word)
        while pairs := [(a, b) for a, b in pairwise(pieces) if (a, b) in ranks]:
            best = min(pairs, key=lambda pair: ranks[pair])
            at = next(i for i in range(len(pieces)) if (pieces[i], pieces[i + 1]) == best)
            pieces[at : at + 2] = ["".join(best)]
        assert pieces == [word]


def test_answer_says_what_answers() -> None:
    assert scripted.ANSWER.startswith("Hello! ")
    assert "xinf" in scripted.ANSWER

"""Bytes of token ids. The tokenizers are fakes of Hugging Face's interface: `get_vocab`, `backend_tokenizer`,
`added_tokens_decoder`, `decode`; the end-to-end tests use the real ones.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from xinf.engine.vllm_tokens import token_pieces


class Backend:
    def __init__(self, decoder: dict[str, Any] | None) -> None:
        self._decoder = decoder

    def to_str(self) -> str:
        return json.dumps({"decoder": self._decoder, "model": {}})


class Tokenizer:
    def __init__(self, vocabulary: dict[str, int], decoder: dict[str, Any] | None, added: dict[int, str]) -> None:
        self._vocabulary = vocabulary
        self.backend_tokenizer = Backend(decoder)
        self.added_tokens_decoder = added

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def decode(self, ids: list[int]) -> str:
        names = {number: piece for piece, number in self._vocabulary.items()}
        return "".join(names[number].removeprefix("##") for number in ids)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True}
SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}],
}


def test_byte_level_pieces_are_bytes() -> None:
    tokenizer = Tokenizer({"a": 0, "Ġthe": 1, "Ċ": 2, "Ã©": 3, "<|end|>": 4}, BYTE_LEVEL, {4: "<|end|>"})
    assert token_pieces(tokenizer) == [b"a", b" the", b"\n", "é".encode(), b"<|end|>"]


def test_all_bytes_have_a_letter() -> None:
    # A letter of the alphabet for each byte, as GPT-2 orders them: printable ones stand for themselves.
    letters = [chr(byte) for byte in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
    others = [chr(256 + number) for number in range(256 - len(letters))]
    vocabulary = {letter: number for number, letter in enumerate(letters + others)}
    pieces = token_pieces(Tokenizer(vocabulary, BYTE_LEVEL, {}))
    assert sorted(pieces) == [bytes([byte]) for byte in range(256)]


def test_sentencepiece_pieces_are_text_and_bytes() -> None:
    tokenizer = Tokenizer({"\u2581the": 0, "<0x0A>": 1, "é": 2, "<s>": 3}, SENTENCEPIECE, {3: "<s>"})
    assert token_pieces(tokenizer) == [b" the", b"\n", "é".encode(), b"<s>"]


def test_pieces_of_other_tokenizers_are_what_they_decode_to() -> None:
    tokenizer = Tokenizer({"play": 0, "##ing": 1}, {"type": "WordPiece"}, {})
    assert token_pieces(tokenizer) == [b"play", b"ing"]


def test_unused_ids_have_no_bytes() -> None:
    assert token_pieces(Tokenizer({"a": 2}, BYTE_LEVEL, {})) == [b"", b"", b"a"]


@pytest.mark.parametrize("decoder", [BYTE_LEVEL, SENTENCEPIECE, None])
def test_empty_vocabulary_has_no_pieces(decoder: dict[str, Any] | None) -> None:
    assert token_pieces(Tokenizer({}, decoder, {})) == []

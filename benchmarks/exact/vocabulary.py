"""The tokens of the models: byte-level BPE from merges.txt, and what is one token as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise

import msgspec

from benchmarks.exact.train_merges import MERGES, PATTERN

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


class Vocabulary(msgspec.Struct, frozen=True):
    """Ids of pieces. Those of BPE are written in GPT-2's alphabet, added ones as they are."""

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: Mapping[str, int]

    @property
    def n_tokens(self) -> int:
        return len(self.ids) + len(self.added)

    def id_of(self, text: str) -> int:
        """The id of a text that is one token. Raises: KeyError."""
        return self.added[text] if text in self.added else self.ids[_written(text)]

    def pieces(self) -> list[bytes]:
        """The bytes that each id stands for."""
        bytes_of = {letter: byte for byte, letter in _alphabet().items()}
        found = [bytes(bytes_of[letter] for letter in piece) for piece in self.ids]
        return found + [text.encode() for text in self.added]

    def words(self, pattern: str) -> list[str]:
        """The pieces that match, as text, the most frequent first."""
        expression = re.compile(pattern)
        # Pieces that are a part of a character only do not match anything that one would ask for.
        texts = (piece.decode(errors="replace") for piece in self.pieces()[: len(self.ids)])
        return [text for text in texts if expression.fullmatch(text)]

    def is_whole(self, text: str) -> bool:
        """Whether a text, standing alone, is made into one token."""
        return _encode(_written(text), _ranks(self.merges)) == [_written(text)]


def read_vocabulary(pieces: Iterable[str]) -> Vocabulary:
    """Read merges.txt. `pieces`: what else is to be one token."""
    merges = tuple(_pair(line) for line in MERGES.read_text().splitlines())
    ids = {symbol: number for number, symbol in enumerate(_alphabet().values())}
    for left, right in merges:
        ids.setdefault(left + right, len(ids))
    added = {text: len(ids) + number for number, text in enumerate(dict.fromkeys((*SPECIAL, *MARKS, *pieces)))}
    return Vocabulary(ids, merges, added)


def tokenizer_json(vocabulary: Vocabulary, *, bos: str | None) -> dict[str, object]:
    """What tokenizer.json says. `bos`: put before every text, as Llama's does."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": text, **flags, "special": text in SPECIAL}
        for text, number in vocabulary.added.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None if bos is None else _bos_processor(bos, vocabulary.added[bos]),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary.ids,
            "merges": vocabulary.merges,
        },
    }


def _bos_processor(bos: str, number: int) -> dict[str, object]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    rest = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, rest],
        "pair": [first, rest, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


@lru_cache(maxsize=1)
def _alphabet() -> dict[int, str]:
    """The printable stand-in of each byte. Source: GPT-2's byte-level BPE (transformers, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    alphabet |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return dict(sorted(alphabet.items()))


def _written(text: str) -> str:
    alphabet = _alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


@lru_cache(maxsize=1)
def _ranks(merges: tuple[tuple[str, str], ...]) -> dict[tuple[str, str], int]:
    return {pair: rank for rank, pair in enumerate(merges)}


def _encode(text: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    pieces = list(text)
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in ranks]
        if not pairs:
            return pieces
        at = list(pairwise(pieces)).index(min(pairs, key=lambda pair: ranks[pair]))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]

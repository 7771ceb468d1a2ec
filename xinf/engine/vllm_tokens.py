"""The bytes that each token id of a tokenizer stands for.

    byte-level BPE (GPT-2, Llama 3, Qwen, ...)     pieces are written in GPT-2's alphabet of printable bytes
    sentencepiece-like (Llama 2, Gemma, ...)       "▁" is a space, "<0x0A>" a byte
    anything else                                  what the tokenizer decodes the id to, alone

Where a piece is not what the id contributes to a text, positions found by it are too low or not found, never too high:
the text must be there byte for byte.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

_log = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_pieces(tokenizer: Any) -> list[bytes]:
    """Give the bytes of each id, from 0 to the largest; empty for ids that are not used.

    `tokenizer`: of Hugging Face, or of the same interface.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    kind = _kind_of(tokenizer)
    alphabet = _byte_alphabet()
    for piece, number in vocabulary.items():
        if number in added:
            pieces[number] = added[number].encode("utf-8", "replace")
        elif kind == "bytes":
            pieces[number] = _from_alphabet(piece, alphabet)
        elif kind == "spaces":
            byte = _BYTE.fullmatch(piece)
            pieces[number] = bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
        else:
            pieces[number] = str(tokenizer.decode([number])).encode("utf-8", "replace")
    return pieces


def _kind_of(tokenizer: Any) -> str:
    """How a tokenizer writes its pieces: "bytes", "spaces" or "other"."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "other"
    description = json.loads(backend.to_str())
    decoder = json.dumps(description.get("decoder") or {}, ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return "bytes"
    if "\u2581" in decoder or '"Metaspace"' in decoder:
        return "spaces"
    _log.info("the tokenizer's decoder is not known, its pieces are decoded one by one")
    return "other"


def _from_alphabet(piece: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes. Source: openai/gpt-2, src/encoder.py, `bytes_to_unicode`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return letters

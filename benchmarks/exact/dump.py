"""Everything about a request whose prediction was wrong: what was asked and answered, where in the prompt it erred."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from benchmarks.exact.checkpoint import RECIPES
from benchmarks.exact.client import Answer
from benchmarks.exact.record import Record
from benchmarks.exact.script import write_script
from benchmarks.exact.workload import Ask

_AROUND = 60  # tokens that are shown before and after a border


def dump_miss(directory: Path, record: Record, asked: Ask, answer: Answer) -> Path:
    """Write one file."""
    directory.mkdir(parents=True, exist_ok=True)
    pieces = _pieces(record.template)
    block = record.block_tokens
    borders = {"predicted": record.predicted // block * block, "cached": record.cached, "walked": record.walked}
    content = {
        "record": msgspec.to_builtins(record),
        "error_blocks": record.error_blocks,
        "decision": answer.decision,
        "borders": {name: _shown(pieces, answer.prompt_ids, at) for name, at in borders.items() if at is not None},
        "told": msgspec.to_builtins(answer.told),
        "body": asked.body,
        "prompt": _text(pieces, answer.prompt_ids),
    }
    path = directory / f"{record.number:05}.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1))
    return path


def _shown(pieces: Sequence[bytes], tokens: Sequence[int], at: int) -> str:
    before, after = tokens[max(0, at - _AROUND) : at], tokens[at : at + _AROUND]
    return f"{_text(pieces, before)}⟦token {at}⟧{_text(pieces, after)}"


def _text(pieces: Sequence[bytes], tokens: Sequence[int]) -> str:
    return b"".join(pieces[token] for token in tokens).decode(errors="replace")


@lru_cache(maxsize=1)
def _pieces(template: str) -> list[bytes]:
    return write_script(RECIPES[template].style).vocabulary.pieces()

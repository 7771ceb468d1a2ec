"""Makes merges.txt, the models' byte-level BPE. Needs `tokenizers`: `ENGINE_PYTHON -m benchmarks.exact.train_merges`.

Learnt from the docstrings of Python's standard library, this project's own documents, some of both as JSON and as code,
and the words of phrases.py. The file is kept, so that everybody measures with the same tokens.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.exact.phrases import CHINESE, EMOJI, JAPANESE, RUSSIAN

N_PIECES = 8192
MERGES = Path(__file__).with_name("merges.txt")
# How Qwen2's tokenizer splits text before its merges. Source: Qwen/Qwen2.5-0.5B, tokenizer.json.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("json", "http", "asyncio", "email")
_N_FOREIGN = 300


def texts() -> Iterator[str]:
    """All that is learnt from, in a fixed order."""
    rng = random.Random(1)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in library.rglob("*.py") if not {"test", "tests", "site-packages"} & set(path.parts))
    for path in sources:
        source = path.read_text(errors="replace")
        found = _docstrings(source)
        yield from found
        yield from (json.dumps({"description": text[:300], "type": "string"}) for text in found[:3])
        if path.parent.name in _CODE:
            yield source
    for path in sorted(_ROOT.glob("docs/**/*.md")):
        yield path.read_text()
    for _ in range(_N_FOREIGN):
        yield " ".join(rng.choices(RUSSIAN, k=12)) + ". "
        yield "".join(rng.choices(CHINESE, k=12)) + "。"
        yield "".join(rng.choices(JAPANESE, k=8)) + "。" + rng.choice(EMOJI)


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes)]
    return [text for text in found if text]


def main() -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=N_PIECES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    MERGES.write_text("".join(f"{left} {right}\n" for left, right in merges))
    print(f"{MERGES}: {len(merges)} merges, {MERGES.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""What the tokenizer's files say without loading them: is there a vocabulary, is there a chat template.

Nothing is parsed that is large: tokenizer.json has tens of megabytes, and whether it is there is enough.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xinf.core.errors import UnknownModel
from xinf.registry.files import ModelFiles

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model",
                 "spiece.model")  # fmt: skip
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_CONFIG = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 32 << 20  # added tokens of some models make it 10 MB


def has_vocabulary(files: ModelFiles) -> bool:
    """Whether a tokenizer can be built from these files."""
    return any(name in files.sizes for name in _VOCABULARIES)


def has_chat_template(files: ModelFiles) -> bool | None:
    """Whether messages can be rendered; None without a tokenizer, or if its configuration cannot be read."""
    if any(name in files.sizes for name in _TEMPLATES):
        return True
    if "tekken.json" in files.sizes and "tokenizer.json" not in files.sizes:
        return True  # Mistral's own tokenizer renders messages without a template
    if _CONFIG not in files.sizes:
        return False if has_vocabulary(files) else None
    try:
        content = files.read(_CONFIG, _MAX_CONFIG_BYTES)
        return bool(msgspec.json.decode(content, type=dict[str, Any]).get("chat_template"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UnknownModel):
        return None

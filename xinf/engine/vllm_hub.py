"""Whether an engine that loads a directory has anything to ask a hub for; if not, it is started offline.

Of a directory vLLM needs nothing from elsewhere: not one request was seen with a text model (0.32). Offline makes sure
of that for all others: no replica waits for a hub, and none runs what a branch has become since it was launched. What
names another repository is the exception: it would not start. That repository is not pinned, unless by the user
(`--engine-arg code-revision=...`, `tokenizer-revision=...`).

Source: vLLM 0.32, `config/model.py`, `engine/arg_utils.py`; transformers 5.19, `dynamic_module_utils.py`: code of the
model's own repository, or directory, is of the model's revision; `Org/Name--module.Class` is another's. Code may name
another repository itself: that of the directory, where it is trusted, and vLLM's (`processors/moondream3.py`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from xinf.core.records import EngineSpec

# Each may name another repository, or let one be named later.
_OPTIONS = (
    "tokenizer", "hf-config-path", "hf-overrides", "generation-config", "speculative-config", "sc", "spec-model",
    "lora-modules", "default-mm-loras", "enable-lora", "model-impl", "diffusion-config", "dc",
)  # fmt: skip
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_CONFIG = "config.json"
# Beside it, what else may have its class in another repository.
_OTHERS = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "generation_config.json")
_MAX_BYTES = 64 << 20
# Where a model came from, which nobody loads.
_ORIGINS = ("_name_or_path", "name_or_path")
# What vLLM's own code asks a hub for, by `model_type`, if the directory has it not.
_OF_VLLM = {"moondream3": "moondream/starmie-v1"}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(--.+)?")


def seal(environ: MutableMapping[str, str], spec: EngineSpec) -> str | None:
    """Set the variables that keep an engine from asking a hub, before its libraries are imported; or say why not.

    What somebody has set himself stays as it is.
    """
    if (why := needs_hub(spec)) is not None:
        return why
    if not any(name in environ for name in _OFFLINE):
        environ.update(dict.fromkeys(_OFFLINE, "1"))
    return None


def needs_hub(spec: EngineSpec) -> str | None:
    """Why an engine may have to ask a hub, in words; None if it has all that it names."""
    directory = Path(spec.model)
    if not directory.is_dir():
        return f"{spec.model} is no directory"
    given = {name.removeprefix("--").replace("_", "-").partition(".")[0]: name for name in spec.engine_args}
    for plain, name in given.items():
        if plain in _OPTIONS:
            return f"the engine argument {name} may name another repository"
    config = _read(directory / _CONFIG)
    for place, value in _walk(config):
        if place not in _ORIGINS and _REPOSITORY.fullmatch(value):
            return f"its {_CONFIG} names {value}"
    if (known := _OF_VLLM.get(str(config.get("model_type")))) is not None:
        return f"vLLM takes {known} for it"
    for other in _OTHERS:
        for _, value in _walk(_read(directory / other).get("auto_map")):
            if "--" in value:
                return f"its {other} names {value}"
    return _named_by_code(directory) if spec.trust_remote_code or "trust-remote-code" in given else None


def _named_by_code(directory: Path) -> str | None:
    """Say which repository the model's own code names; a text around such a name, as an example has it, is none."""
    for path in sorted(directory.glob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            continue  # the engine itself says what is wrong with it
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _REPOSITORY.fullmatch(node.value):
                return f"its {path.name} names {node.value}"
    return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # the engine itself says what is wrong with it
    return found if isinstance(found, dict) else {}


def _walk(value: object) -> Iterator[tuple[str, str]]:
    """All texts of a document, each with the key that it stands under."""
    pending: list[tuple[str, object]] = [("", value)]
    while pending:
        key, found = pending.pop()
        if isinstance(found, str):
            yield key, found
        elif isinstance(found, dict):
            pending += found.items()
        elif isinstance(found, list):
            pending += [(key, each) for each in found]

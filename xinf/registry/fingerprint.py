"""Which loads are the same, so that what one took is what the next will take.

Two loads are the same when model, engine version, device architecture and all else that changes the fixed part of their
memory are: also how large the device is, as far as engines choose their batches and buffers by that. The length of the
context and the size of the cache are not in it: they change the cache alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from xinf.core.device import Device
from xinf.core.records import EngineSpec
from xinf.registry.load import ALIASES, size_class
from xinf.registry.shelf import shelf_of
from xinf.registry.sources import Hub, find_sources, parse_reference

# What a model is made of; logs and notes beside it may change.
_SUFFIXES = {".json", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".model", ".jinja"}
# Arguments that change the cache or nothing of the memory.
_INDIFFERENT = frozenset({
    "max_model_len", "gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "block_size",
    "enable_prefix_caching", "seed", "tool_call_parser", "reasoning_parser", "enable_auto_tool_choice", "chat_template",
    "default_chat_template_kwargs", "enable_prompt_tokens_details", "dtype", "quantization", "tensor_parallel_size",
})  # fmt: skip


def identify_model(location: str, *, revision: str | None = None, environ: Mapping[str, str]) -> str | None:
    """Name the exact files of a model: by commit, or by path, sizes and times. None: they cannot be told.

    `revision`: the commit that was read, if it is known already. Reads the directory's entries, no file.
    """
    path = Path(location)
    if path.is_absolute():
        files = [path] if path.is_file() else sorted(_parts(path))
        if not files:
            return None
        stats = [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
        return f"{path}#{_digest(stats)}"
    commit = revision or cached_commit(location, environ)
    return None if commit is None else f"{location}@{commit}"


def fingerprint(identity: str, spec: EngineSpec, *, engine_version: str | None, device: Device) -> str:
    """Digest what makes two loads the same, as a key of the store."""
    arguments = {name.removeprefix("--").replace("-", "_"): value for name, value in spec.engine_args.items()}
    dtype = str(arguments.get("dtype", spec.dtype)).lower()
    parts = [
        identity,
        spec.engine,
        engine_version,
        device.vendor,
        device.arch or device.name,
        size_class(device),
        ALIASES.get(dtype, dtype),
        arguments.get("quantization", spec.quantization),
        arguments.get("tensor_parallel_size", spec.tensor_parallel_size),
        sorted((name, value) for name, value in arguments.items() if name not in _INDIFFERENT),
    ]
    return _digest(parts)


def cached_commit(model: str, environ: Mapping[str, str]) -> str | None:
    """The commit of a hub's default branch that the cache of this host has; None if it has none."""
    sources = find_sources(environ)
    snapshot = shelf_of(parse_reference(model, Hub.HUGGINGFACE), sources).find(None)
    return None if snapshot is None else snapshot.name


def _parts(directory: Path) -> list[Path]:
    try:
        return [file for file in directory.iterdir() if file.suffix in _SUFFIXES and file.is_file()]
    except OSError:
        return []


def _digest(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]

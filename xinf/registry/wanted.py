"""Which files of a repository are worth a download: those that an engine reads.

Many repositories hold the same weights in several formats. With safetensors there, all others are left; those of torch
only beside safetensors in the same directory, for a layer of its own (`2_Dense/`) may have no other.
"""

from __future__ import annotations

from collections.abc import Iterable

_TORCH_FORMATS = (".bin", ".pt", ".pth")
_OTHER_FORMATS = (".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite")
_NEVER = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".pdf", ".ipynb")
_OTHER_DIRECTORIES = ("onnx/", "openvino/", "coreml/", "original/", "metal/", "figures/", "assets/")


def wanted_files(names: Iterable[str]) -> list[str]:
    """List the files to fetch, in ascending order."""
    listed = sorted(names)
    directories = {_directory(name) for name in listed if name.endswith(".safetensors")}
    has_safetensors = "" in directories
    has_parts = any(name.startswith("model") and name.endswith(".safetensors") for name in listed)
    return [
        name
        for name in listed
        if not name.startswith(".git")
        and not name.lower().endswith(_NEVER)
        and not (has_safetensors and (name.endswith(_OTHER_FORMATS) or name.startswith(_OTHER_DIRECTORIES)))
        and not (has_safetensors and name.endswith(_TORCH_FORMATS) and _directory(name) in directories)
        and not (has_parts and name.startswith("consolidated"))
    ]


def _directory(name: str) -> str:
    return name.rpartition("/")[0]

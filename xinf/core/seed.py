"""Where a prefix chain begins: engine and gateway make the same seed of the same names, so that their chains meet.

Chains of two models, or of a model with and without an adapter, have no chunk in common.
"""

from __future__ import annotations

import hashlib


def chain_seed(model: str) -> int:
    """Give the seed of a model as its engine was told to load it: 64 bits."""
    return _first_bytes(f"xinf chain\0{model}\0".encode())


def lora_seed(seed: int, lora: str) -> int:
    """Give the seed of an adapter by its name, on top of that of its model."""
    return _first_bytes(seed.to_bytes(8, "little") + lora.encode())


def _first_bytes(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

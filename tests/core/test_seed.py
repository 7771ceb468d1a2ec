from __future__ import annotations

import hashlib

from xinf.core.seed import chain_seed, lora_seed


def test_seeds_are_those_of_the_protocol() -> None:
    """Engine and gateway may be of different versions: what a name gives is fixed."""
    assert chain_seed("m") == int.from_bytes(hashlib.sha256(b"xinf chain\0m\0").digest()[:8], "little")
    assert chain_seed("org/modèle") == 0x809B08A07DD4F8DC
    assert lora_seed(5, "a") == int.from_bytes(hashlib.sha256(b"\5\0\0\0\0\0\0\0a").digest()[:8], "little")


def test_models_and_adapters_have_seeds_of_their_own() -> None:
    names = ["", "a", "b", "ab", "a\0b"]
    seeds = [chain_seed(name) for name in names]
    seeds += [lora_seed(seed, name) for seed in seeds for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)

"""What a model is: where it comes from and the few facts of it that need no engine.

Owns: resolving what a user typed (a directory, a hub id, `scripted`) to something an engine can load, reading
config.json, and the scripted checkpoint that needs no download. Does not own: loading (the engine's), downloads (the
engine's hub client, which obeys HF_HUB_OFFLINE), chat templates (xinf/chat).

Invariants: nothing here imports torch or a model library, and nothing goes to the network. A model that is not there is
a typed error with a remedy, never a guess.
"""

from xinf.registry.advice import Room, advise
from xinf.registry.facts import (
    KvLayers,
    ModelFacts,
    Quantization,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
)
from xinf.registry.fingerprint import fingerprint, identify_model
from xinf.registry.load import LoadOptions, choose_options
from xinf.registry.memory import (
    MAX_SHARE,
    MemoryFit,
    MemoryPlan,
    fit_memory,
    kv_token_bytes,
    memory_share,
    plan_memory,
    runtime_bytes,
)
from xinf.registry.scripted import write_scripted_model
from xinf.registry.source import SCRIPTED, ModelSource, read_facts, resolve_model

__all__ = [
    "MAX_SHARE",
    "SCRIPTED",
    "KvLayers",
    "LoadOptions",
    "MemoryFit",
    "MemoryPlan",
    "ModelFacts",
    "ModelSource",
    "Quantization",
    "Room",
    "advise",
    "choose_options",
    "fingerprint",
    "fit_memory",
    "identify_model",
    "kv_bytes_per_sequence",
    "kv_bytes_per_token",
    "kv_token_bytes",
    "memory_share",
    "plan_memory",
    "read_facts",
    "resolve_model",
    "runtime_bytes",
    "write_scripted_model",
]

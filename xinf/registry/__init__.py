"""What a model is: where it comes from and what is known of it before any engine loads it.

Owns: resolving what a user typed (a directory, a hub id, `scripted`) to something an engine can load; the facts of a
model (parameters, bytes, layers, KV cache, quantization) from config.json and the headers of its weights; fetching a
model whole (`xinf pull`); and the scripted checkpoint that needs no download. Does not own: loading (the engine's),
chat templates (xinf/chat).

Invariants: nothing here imports torch or a model library, and importing it imports no hub's client: those come when a
hub is asked. Facts are read without a byte of the weights. A model that is not there is a typed error with a remedy,
never a guess; a file may be hostile, and is read within bounds.
"""

from xinf.registry.advice import Room, advise
from xinf.registry.download import Download, Progress, download_model
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
from xinf.registry.reader import read_facts, read_model
from xinf.registry.scripted import write_scripted_model
from xinf.registry.source import SCRIPTED, ModelSource, resolve_model

__all__ = [
    "MAX_SHARE",
    "SCRIPTED",
    "Download",
    "KvLayers",
    "LoadOptions",
    "MemoryFit",
    "MemoryPlan",
    "ModelFacts",
    "ModelSource",
    "Progress",
    "Quantization",
    "Room",
    "advise",
    "choose_options",
    "download_model",
    "fingerprint",
    "fit_memory",
    "identify_model",
    "kv_bytes_per_sequence",
    "kv_bytes_per_token",
    "kv_token_bytes",
    "memory_share",
    "plan_memory",
    "read_facts",
    "read_model",
    "resolve_model",
    "runtime_bytes",
    "write_scripted_model",
]

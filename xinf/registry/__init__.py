"""What a model is and what can run it: where it comes from, what is known of it, and what devices and engines can do.

Owns: resolving what a user typed (a directory, a hub id, `scripted`) to something an engine can load; the facts of a
model (parameters, bytes, layers, KV cache, quantization) from config.json and the headers of its weights; fetching a
model whole (`xinf pull`); the scripted checkpoint that needs no download; the tables of compatibility and the verdict
on a wish for a device. Does not own: loading (the engine's), chat templates (xinf/chat), probing devices (xinf/device),
choosing among them (xinf/scheduler).

Invariants: nothing here imports torch or a model library, and importing it imports no hub's client: those come when a
hub is asked. Facts are read without a byte of the weights. A model that is not there is a typed error with a remedy,
never a guess; a file may be hostile, and is read within bounds. What no source says of a device is `unknown`, never
`none`.
"""

from xinf.core.model import KvLayers, ModelFacts, Quantization
from xinf.registry.advice import Room, advise, count_needed
from xinf.registry.blob import try_lock
from xinf.registry.cards import imagine_hosts
from xinf.registry.compatibility import Compatibility, capabilities, read_compatibility, shipped
from xinf.registry.device_memory import need_on, plan_on
from xinf.registry.download import Download, Progress, download, download_model
from xinf.registry.facts import kv_bytes_per_sequence, kv_bytes_per_token
from xinf.registry.fingerprint import fingerprint, identify_model
from xinf.registry.hub import find_commit, not_cached
from xinf.registry.judgement import Verdict, judge, judge_spec, refusal_of
from xinf.registry.load import LoadOptions, choose_options, device_share, is_cache_told, is_switched
from xinf.registry.memory import (
    MAX_SHARE,
    MemoryFit,
    MemoryPlan,
    context_bytes,
    counted_bytes,
    fit_memory,
    kv_token_bytes,
    memory_share,
    plan_memory,
    runtime_bytes,
    split_problem,
    usable_bytes,
)
from xinf.registry.method import check_method
from xinf.registry.need import Need, need_of
from xinf.registry.reader import read_facts, read_model
from xinf.registry.scripted import write_scripted_model
from xinf.registry.shelf import Shelf, list_shelves, shelf_of
from xinf.registry.sockets import Sockets, sockets_of
from xinf.registry.source import SCRIPTED, ModelSource, is_directory, looks_like_path, resolve_model
from xinf.registry.sources import Hub, Reference, Sources, find_sources, hub_cache_dir, is_commit, reference_of

__all__ = [
    "MAX_SHARE",
    "SCRIPTED",
    "Compatibility",
    "Download",
    "Hub",
    "KvLayers",
    "LoadOptions",
    "MemoryFit",
    "MemoryPlan",
    "ModelFacts",
    "ModelSource",
    "Need",
    "Progress",
    "Quantization",
    "Reference",
    "Room",
    "Shelf",
    "Sockets",
    "Sources",
    "Verdict",
    "advise",
    "capabilities",
    "check_method",
    "choose_options",
    "context_bytes",
    "count_needed",
    "counted_bytes",
    "device_share",
    "download",
    "download_model",
    "find_commit",
    "find_sources",
    "fingerprint",
    "fit_memory",
    "hub_cache_dir",
    "identify_model",
    "imagine_hosts",
    "is_cache_told",
    "is_commit",
    "is_directory",
    "is_switched",
    "judge",
    "judge_spec",
    "kv_bytes_per_sequence",
    "kv_bytes_per_token",
    "kv_token_bytes",
    "list_shelves",
    "looks_like_path",
    "memory_share",
    "need_of",
    "need_on",
    "not_cached",
    "plan_memory",
    "plan_on",
    "read_compatibility",
    "read_facts",
    "read_model",
    "reference_of",
    "refusal_of",
    "resolve_model",
    "runtime_bytes",
    "shelf_of",
    "shipped",
    "sockets_of",
    "split_problem",
    "try_lock",
    "usable_bytes",
    "write_scripted_model",
]

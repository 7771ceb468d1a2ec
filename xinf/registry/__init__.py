"""What a model is and what can run it: where it comes from, its facts, and what devices and engines can do.

Owns: resolving what a user typed (a directory, a hub id, `scripted`) to something an engine can load, reading
config.json, the scripted checkpoint that needs no download, the tables of compatibility and the verdict on a wish for a
device. Does not own: loading (the engine's), downloads (the engine's hub client, which obeys HF_HUB_OFFLINE), chat
templates (xinf/chat), probing devices (xinf/device), choosing among them (xinf/scheduler).

Invariants: nothing here imports torch or a model library, and nothing goes to the network. A model that is not there is
a typed error with a remedy, never a guess; what no source says of a device is `unknown`, never `none`.
"""

from xinf.registry.compatibility import Compatibility, capabilities, read_compatibility, shipped
from xinf.registry.facts import ModelFacts
from xinf.registry.judgement import Verdict, judge, judge_spec, refusal_of
from xinf.registry.need import Need, need_of
from xinf.registry.scripted import write_scripted_model
from xinf.registry.source import SCRIPTED, ModelSource, read_facts, resolve_model

__all__ = [
    "SCRIPTED",
    "Compatibility",
    "ModelFacts",
    "ModelSource",
    "Need",
    "Verdict",
    "capabilities",
    "judge",
    "judge_spec",
    "need_of",
    "read_compatibility",
    "read_facts",
    "refusal_of",
    "resolve_model",
    "shipped",
    "write_scripted_model",
]

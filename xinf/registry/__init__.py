"""What a model is: where it comes from and the few facts of it that need no engine.

Owns: resolving what a user typed (a directory, a hub id, `scripted`) to something an engine can load, reading
config.json, and the scripted checkpoint that needs no download. Does not own: loading (the engine's), downloads (the
engine's hub client, which obeys HF_HUB_OFFLINE), chat templates (xinf/chat).

Invariants: nothing here imports torch or a model library, and nothing goes to the network. A model that is not there is
a typed error with a remedy, never a guess.
"""

from xinf.registry.scripted import write_scripted_model
from xinf.registry.source import SCRIPTED, ModelFacts, ModelSource, read_facts, resolve_model

__all__ = ["SCRIPTED", "ModelFacts", "ModelSource", "read_facts", "resolve_model", "write_scripted_model"]

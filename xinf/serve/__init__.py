"""`xinf serve` and `xinf up`: the supervisor and what it keeps running.

Owns the process tree (control process, gateway, and for `up` an agent), their restarts and their end, the wiring of
store, metastore service and scheduler in the control process, and following a deployment until it serves. Does not own
what any of them does.

Invariants: only the supervisor hears the terminal; every child sits in its own session and dies with the supervisor;
a child that was ready once is restarted for ever; engines are nobody's children here and outlive all of it.

Names are loaded on first use: the gateway's master comes through this package and must not load gRPC before it forks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xinf.core.first_use import names_on_first_use

if TYPE_CHECKING:
    from xinf.serve.address import gateway_url
    from xinf.serve.api_key import make_key
    from xinf.serve.deployment import Applied, apply_deployment, names_of, remove_deployment
    from xinf.serve.interrupts import Interrupts
    from xinf.serve.progress import PHASE_NAMES, Follower, Step, describe_timings
    from xinf.serve.supervisor import Supervisor, serve
    from xinf.serve.trial import PROMPT, Trial
    from xinf.serve.up import Up, Voice

_MODULES = {
    "address": ("gateway_url",),
    "api_key": ("make_key",),
    "deployment": ("Applied", "apply_deployment", "names_of", "remove_deployment"),
    "interrupts": ("Interrupts",),
    "progress": ("PHASE_NAMES", "Follower", "Step", "describe_timings"),
    "supervisor": ("Supervisor", "serve"),
    "trial": ("PROMPT", "Trial"),
    "up": ("Up", "Voice"),
}
__getattr__ = names_on_first_use(__name__, _MODULES)


__all__ = [
    "PHASE_NAMES",
    "PROMPT",
    "Applied",
    "Follower",
    "Interrupts",
    "Step",
    "Supervisor",
    "Trial",
    "Up",
    "Voice",
    "apply_deployment",
    "describe_timings",
    "gateway_url",
    "make_key",
    "names_of",
    "remove_deployment",
    "serve",
]

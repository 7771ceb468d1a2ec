"""One host's hands: makes the engine processes of this node what the records say.

Owns: starting, watching, adopting, draining and ending engine processes, the files in their directories, the node's
record and its lease. Does not own: which replicas there are and where (xinf/scheduler), what an engine is
(xinf/engine).

Invariants: a process is written down (custody.json, then the record) before anything else can fail; it is named by pid
and start time and nothing else is ever signalled; a replica is called stopped only when its whole process group is
gone; engines neither notice nor need the agent, and the next one adopts them. `decide` is pure, agent.py does the I/O.

Names are loaded on first use: `python -m xinf.agent.environment` installs engines before there is much else to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xinf.core.first_use import names_on_first_use

if TYPE_CHECKING:
    from xinf.agent.agent import Agent
    from xinf.agent.environment import detect_device_kind, find_environments, install_environment
    from xinf.agent.host_devices import list_devices
    from xinf.agent.node import describe_node, engines_dir

_MODULES = {
    "agent": ("Agent",),
    "environment": ("detect_device_kind", "find_environments", "install_environment"),
    "host_devices": ("list_devices",),
    "node": ("describe_node", "engines_dir"),
}
__getattr__ = names_on_first_use(__name__, _MODULES)


__all__ = [
    "Agent",
    "describe_node",
    "detect_device_kind",
    "engines_dir",
    "find_environments",
    "install_environment",
    "list_devices",
]

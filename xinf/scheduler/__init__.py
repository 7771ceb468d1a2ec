"""Turns wishes into placed replicas.

Owns: which replicas exist, where they are placed, and whether they are to run or to stop. Does not own: what runs on a
node (xinf/agent) or who is asked (xinf/router).

Invariants: `plan` and `place` are pure, read no clock and give equal answers to equal questions; an accelerator belongs
to at most one replica until that replica's process group is gone (phase stopped); every write carries a compare, so an
agent's report is never overwritten. See README.md for the module map.
"""

from xinf.scheduler.loop import SchedulerLoop
from xinf.scheduler.place import Placement, Refusal, claims_of, place
from xinf.scheduler.plan import Action, Create, Delete, Note, Place, Stop, World, plan, plan_deployment

__all__ = [
    "Action",
    "Create",
    "Delete",
    "Note",
    "Place",
    "Placement",
    "Refusal",
    "SchedulerLoop",
    "Stop",
    "World",
    "claims_of",
    "place",
    "plan",
    "plan_deployment",
]

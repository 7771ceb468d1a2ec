"""Turns wishes into placed replicas.

Owns: which replicas exist, where they are placed, and whether they are to run or to stop. Does not own: what runs on a
node (xinf/agent), what devices can do (xinf/registry) or who is asked (xinf/router).

Invariants: plans are pure, read no clock and give equal answers to equal questions; an accelerator belongs to one
replica until that replica's process group is gone (phase stopped), or to several that all share it and whose needs fit
together; nobody is stopped for the sake of an equal; every write carries a compare, so an agent's report is never
overwritten. See README.md for the module map.
"""

from xinf.scheduler.actions import Action, Create, Delete, Note, Place, Placement, Refusal, Stop
from xinf.scheduler.claims import Claims
from xinf.scheduler.explain import NO_NODES
from xinf.scheduler.host import Fleet
from xinf.scheduler.loop import SchedulerLoop
from xinf.scheduler.place import could_fit, place
from xinf.scheduler.plan import plan, plan_deployment
from xinf.scheduler.pool import Pool, find_pool, free_of_pool
from xinf.scheduler.verdict import Binding
from xinf.scheduler.view import View
from xinf.scheduler.world import Judge, Measured, Planner, Rules, World, rules_of

__all__ = [
    "NO_NODES",
    "Action",
    "Binding",
    "Claims",
    "Create",
    "Delete",
    "Fleet",
    "Judge",
    "Measured",
    "Note",
    "Place",
    "Placement",
    "Planner",
    "Pool",
    "Refusal",
    "Rules",
    "SchedulerLoop",
    "Stop",
    "View",
    "World",
    "could_fit",
    "find_pool",
    "free_of_pool",
    "place",
    "plan",
    "plan_deployment",
    "rules_of",
]

"""Request -> replica, in one gateway process.

Owns the choice among the replicas of a model: policies, the cost in seconds, what was learnt about each replica, the
ledger of requests in flight, and who holds which prefix: exactly, as engines say, or approximately, by what was routed.
Does not know of connections, HTTP or records: the gateway tells it of replicas, load and residency, asks `choose`, and
says how requests ended.

Invariants: a choice is reserved in the ledger in the same call; a reservation is released exactly once; exact ties
rotate; a replica that is not ready keeps what it holds; everything runs on one thread and never blocks.
"""

from xinf._fast.choice import Choice
from xinf.router.cost import CostTerms
from xinf.router.load import LoadView
from xinf.router.residency import ResidencyUpdate
from xinf.router.router import Router
from xinf.router.settings import RouterSettings
from xinf.router.view import CandidateView, Repetition, ReplicaView, RouterView, Savings

__all__ = [
    "CandidateView",
    "Choice",
    "CostTerms",
    "LoadView",
    "Repetition",
    "ReplicaView",
    "ResidencyUpdate",
    "Router",
    "RouterSettings",
    "RouterView",
    "Savings",
]

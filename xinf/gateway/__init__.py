"""The gateway: OpenAI's API in front of engine replicas.

Owns the HTTP side: routes, keys, limits, the waiting rooms, the Links to replicas and the relay of their bytes, metrics
and error bodies. Does not decide which replica (`router`), start any (`agent`) or parse what it does not route on.

Invariants: a client cannot end a process; each request is answered once or its connection dropped; each choice is given
back to the router once; nothing grows without bound.

The master (`python -m xinf.gateway`, `front`) imports neither gRPC nor the application, because it forks its workers.
"""

from __future__ import annotations

from xinf.gateway.keys import check_exposure

__all__ = ["check_exposure"]

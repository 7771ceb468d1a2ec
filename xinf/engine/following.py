"""How well the engine's events of its cache are followed, for gateways, which show it in their metrics."""

from __future__ import annotations

import msgspec

from xinf._pb import engine_service_pb2 as pb
from xinf.engine.kv_event_client import KvEventClient
from xinf.engine.prompts import Prompts


class Following:
    """Of one engine whose events are followed."""

    def __init__(self, client: KvEventClient, prompts: Prompts) -> None:
        self._client = client
        self._prompts = prompts

    def serialized(self) -> bytes:
        """What there is to tell now, as a Following of the Link."""
        lag = self._client.lag
        return pb.Following(
            **msgspec.structs.asdict(self._client.counters),
            lag_mean_s=lag.mean_s or 0.0,
            lag_max_s=lag.max_s or 0.0,
            unbound=self._prompts.n_unbound,
        ).SerializeToString()

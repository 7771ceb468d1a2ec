"""What a router is told from outside; everything else it learns."""

from __future__ import annotations

import msgspec

from xinf.core.config import RoutingConfig


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, and what is assumed until it was measured."""

    max_inflight: int = 256  # of one replica, from this process
    index_max_bytes: int = 64 << 20  # of what was routed; too few for an index: prefixes are not looked at
    exact_index_max_bytes: int = 256 << 20  # of what engines say; too few: they are not asked
    chunk_bytes: int = 64
    prior_prefill_tokens_per_s: float = 8000.0
    prior_bytes_per_token: float = 4.0
    # How long a request stays and how many an engine runs at once, until known: the first decode pressure.
    prior_service_s: float = 0.5
    prior_max_running: int = 64

    @staticmethod
    def of(routing: RoutingConfig, *, max_inflight: int) -> RouterSettings:
        """Take the routing section of the configuration."""
        return RouterSettings(
            max_inflight=max_inflight,
            index_max_bytes=routing.index_max_bytes,
            exact_index_max_bytes=routing.exact_index_max_bytes,
            chunk_bytes=routing.chunk_bytes,
            prior_prefill_tokens_per_s=routing.prior_prefill_tokens_per_s,
            prior_bytes_per_token=routing.prior_bytes_per_token,
        )

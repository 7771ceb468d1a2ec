"""What an engine says of its load."""

from __future__ import annotations

import msgspec


class LoadView(msgspec.Struct, frozen=True, gc=False):
    """One load report, in the order of the Link's `Load` message. `last_submit`: the last submit id it counts."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    last_submit: int = 0

"""Sets up what tells gateways of vLLM's cache: the endpoint of its events, its tokens' bytes, its template's habits.

EXACT    prefix caching is on, its events come to us, one group of full attention, one data-parallel rank
APPROX   prefix caching is on, but events do not tell all, or were lost: a cache of that size is imagined
OFF      no prefix is kept, or nothing is generated
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from xinf._fast.residency import BlockTable
from xinf._fast.scan import order_of
from xinf.core.records import ArgValue
from xinf.engine.following import Following
from xinf.engine.kv_event_client import KvEventClient
from xinf.engine.kv_events import Cleared, KvBatch, Removed, Stored
from xinf.engine.prompts import Canon, Prompts
from xinf.engine.residency import Residency, State
from xinf.engine.template_habits import Render, find_habits
from xinf.engine.vllm_prompts import VllmPrompts, residency_salt
from xinf.engine.vllm_tokens import token_pieces

_log = logging.getLogger(__name__)

ARGUMENT = "kv-events-config"
# The error of a position is a chunk; where a block is less text than a chunk, the chunk is made smaller.
_CHUNK_BYTES = 64
_SMALL_CHUNK_BYTES = 32
_SMALL_BLOCK_TOKENS = 32


def event_arguments(directory: Path) -> dict[str, ArgValue]:
    """What vLLM is told, so that its events come to this process: PUB binds to an ipc endpoint by itself."""
    config = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{directory}/kv",
        "replay_endpoint": f"ipc://{directory}/kvr",
    }
    return {ARGUMENT: msgspec.json.encode(config).decode()}


def chunk_bytes_for(block_tokens: int) -> int:
    """How much text a chunk has, so that one is no more than a block."""
    return _CHUNK_BYTES if block_tokens >= _SMALL_BLOCK_TOKENS else _SMALL_CHUNK_BYTES


class VllmResidency:
    """Of one engine; from `open` to `close`."""

    def __init__(self, config: Any, *, model: str, segments: Sequence[str], generates: bool) -> None:
        """`config`: VllmConfig."""
        self._events_config = config.kv_events_config
        self._block_tokens = config.cache_config.block_size
        self._kv_blocks = config.cache_config.num_gpu_blocks or 0
        self.canon = Canon(model, order_of(segments), chunk_bytes_for(self._block_tokens))
        state = _first_state(config, generates=generates)
        self.residency = Residency(None if state is State.OFF else self._new_table(state), state)
        self._has_groups = False  # of layers, whose blocks come and go apart
        self.prompts: VllmPrompts | None = None
        self._prompts: Prompts | None = None
        self._client: KvEventClient | None = None

    def _new_table(self, state: State) -> BlockTable:
        return BlockTable(self._block_tokens, capacity_blocks=None if state is State.EXACT else self._kv_blocks)

    def open(self, tokenizer: Any, render: Render) -> None:
        """Begin to follow the engine. What cannot be had turns residency off; it costs no request."""
        if self.residency.table is None:
            return
        try:
            habits = find_habits(render)
            pieces = token_pieces(tokenizer)
            self._prompts = Prompts(self.canon, self.residency)
            self.prompts = VllmPrompts(self._prompts, pieces, tokenizer, habits, block_tokens=self._block_tokens)
            if self.residency.state is State.EXACT:
                self._follow(self._prompts)
        except Exception:
            _log.exception("what the engine holds cannot be told, requests are routed without")
            self.prompts = None
            self.residency.set_state(State.OFF)

    def _follow(self, prompts: Prompts) -> None:
        config = self._events_config
        self._client = KvEventClient(
            config.endpoint, config.replay_endpoint, on_batch=self._apply, on_reset=self._lose, topic=config.topic
        )
        self._client.start()
        self.residency.account = Following(self._client, prompts)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self._prompts is not None:
            self._prompts.close()

    # ---- what the engine says -------------------------------------------------------------------------------------

    def _apply(self, batch: KvBatch) -> None:
        for event in batch.events:
            if isinstance(event, Cleared) and not self._has_groups:
                self._clear()
            elif self.residency.state is not State.EXACT:
                continue  # until the cache is empty, when all of it is known again
            elif isinstance(event, Stored):
                self._store(event)
            elif isinstance(event, Removed):
                self._table.removed(event.hashes)
        self.residency.changed()

    def _clear(self) -> None:
        if self.residency.state is State.EXACT:
            self._table.clear()
        else:
            _log.info("the engine's cache is empty: what it holds is known exactly from here")
            self.residency.replace(self._new_table(State.EXACT), State.EXACT)

    @property
    def _table(self) -> BlockTable:
        assert self.residency.table is not None
        return self.residency.table

    def _store(self, event: Stored) -> None:
        if event.group_idx or event.block_tokens != self._block_tokens or not event.is_whole:
            # A prefix is found where all groups have it, and a window's group drops what has left the window.
            self._has_groups = True
            self._lose("the model has several groups of layers")
        elif event.is_text:
            salt = residency_salt(event.lora_name or "", event.cache_salt or "")
            self._table.stored(event.hashes, event.parent, event.tokens, salt=salt)

    def _lose(self, reason: str) -> None:
        """Some events did not come: from here a cache of that size is imagined, until it is known to be empty."""
        if self.residency.state is State.EXACT:
            _log.warning("events of the engine's cache were lost, what it holds is known roughly: %s", reason)
            self.residency.replace(self._new_table(State.APPROX), State.APPROX)


def _first_state(config: Any, *, generates: bool) -> State:
    if not generates or not config.cache_config.enable_prefix_caching:
        return State.OFF
    events = config.kv_events_config
    if events is None or not events.enable_kv_cache_events or events.publisher != "zmq":
        return State.APPROX
    if not events.endpoint.startswith("ipc://"):
        # The user's own, for somebody else: its address is not ours to guess.
        return State.APPROX
    if config.parallel_config.data_parallel_size > 1 or config.model_config.is_hybrid:
        return State.APPROX
    return State.EXACT

"""KV cache events of vLLM, decoded: which blocks of tokens an engine has stored, removed, forgotten.

    payload = msgpack of [timestamp, [event, ...], data_parallel_rank], or of a map with the names in _BATCH
    event   = {"type": "BlockStored", "block_hashes": [...], ...}       0.32, and since vLLM #42892 (June 2026)
            | ["BlockStored", block_hashes, parent_block_hash, ...]     before that: 0.9 and later

What comes later in an array may be absent, as may any field of a map that has a default; what is unknown is ignored.
Hashes are integers of 64 bits, of either sign, or bytes (VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0), whose last 8 are what
the integer would be. Only the device's own memory counts here: blocks in other tiers and events of a kind that nobody
knows are left out and counted.

Source: vLLM 0.32, distributed/kv_events.py and v1/core/block_pool.py; HabanaAI/vllm-fork at 428c45d for the first form.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

_HASH_MASK = (1 << 64) - 1
_HASH_BYTES = 8

# Names by position, as the structs of vLLM list them; the array form puts the tag in front.
_BATCH = ("ts", "events", "data_parallel_rank")
_STORED = (
    "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys",
    "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality", "ownership",
)  # fmt: skip
_REMOVED = ("block_hashes", "medium", "group_idx", "locality", "ownership")
_NAMES: Mapping[str, tuple[str, ...]] = {"BlockStored": _STORED, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}


class KvEventError(ValueError):
    """A payload is no batch of events: `what` is wrong with it, and `where`, like `events[2].block_size`."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what = what
        self.where = where


class Stored(msgspec.Struct, frozen=True):
    """Blocks that can be hit from now on, one after the other.

    hashes: (n,) uint64; parent: the block before the first, None for the start of a prompt; tokens: uint32, those of
    all blocks. A model whose layers are of several kinds has a group of blocks for each; a block has the same hash in
    all groups and is stored in each. A group whose layers look at a window only leaves out blocks of the range: see
    `is_whole`. The same hash is also stored again when several requests computed the same block, each its own copy;
    one Removed comes for each.

    extra_keys: for each block None or what else than tokens its content depends on: the LoRA adapter's name, then
    [identifier, offset] of images and the like, then the cache_salt (in the first block of a prompt only), then digests
    (bytes) of prompt embeddings. Old versions tell nothing of them.
    """

    hashes: array[int]
    parent: int | None
    tokens: array[int]
    block_tokens: int
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    medium: str | None = None
    lora_id: int | None = None  # all that old versions tell of an adapter
    spec_kind: str | None = None  # of the group: "full_attention", "sliding_window", "mamba", ...
    sliding_window: int | None = None  # tokens

    @property
    def is_whole(self) -> bool:
        """Whether the tokens are those of the blocks, all of them: hash i stands for the i-th `block_tokens`."""
        return len(self.tokens) == len(self.hashes) * self.block_tokens

    @property
    def cache_salt(self) -> str | None:
        """The salt of the request, which vLLM tells with the first block of a prompt."""
        others = self._other_keys(0) if self.parent is None else ()
        return others[0] if len(others) == 1 and isinstance(others[0], str) else None

    @property
    def is_text(self) -> bool:
        """Whether tokens, adapter and salt say all that the blocks depend on; not so with images or embeddings."""
        n_salts = 1 if self.cache_salt is not None else 0
        return sum(len(self._other_keys(block)) for block in range(len(self.hashes))) == n_salts

    def _other_keys(self, block: int) -> list[Any]:
        """The extra keys of a block without the adapter's name."""
        keys = self.extra_keys[block] if self.extra_keys else None
        if keys and self.lora_name is not None and keys[0] == self.lora_name:
            return keys[1:]
        return keys or []


class Removed(msgspec.Struct, frozen=True):
    """One copy of each of these blocks is gone. hashes: (n,) uint64."""

    hashes: array[int]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, frozen=True):
    """No block can be hit any more."""


Event = Stored | Removed | Cleared


class KvBatch(msgspec.Struct, frozen=True):
    """The events of one step of the engine, in their order.

    timestamp: seconds since the epoch, of the engine's clock; sequence: of the message that brought it, if any.
    """

    sequence: int | None
    timestamp: float
    events: tuple[Event, ...]
    dp_rank: int | None = None
    n_skipped: int = 0


def decode(payload: bytes, sequence: int | None = None) -> KvBatch:
    """Decode the payload of one message.

    Raises: KvEventError, and nothing else, for what is no batch; a batch with one bad event is none.
    """
    try:
        content = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise KvEventError(f"no msgpack: {error}", "payload") from error
    batch = _fields(content, _BATCH, "payload")
    timestamp = batch.get("ts")
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not math.isfinite(timestamp):
        raise KvEventError(f"expected seconds, found {_kind(timestamp)}", "ts")
    listed = batch.get("events")
    if not isinstance(listed, list):
        raise KvEventError(f"expected a list, found {_kind(listed)}", "events")
    found = [_event(event, f"events[{number}]") for number, event in enumerate(listed)]
    events = tuple(event for event in found if event is not None)
    return KvBatch(
        sequence=sequence,
        timestamp=float(timestamp),
        events=events,
        dp_rank=_integer(batch, "data_parallel_rank", ""),
        n_skipped=len(found) - len(events),
    )


def _event(content: Any, where: str) -> Event | None:
    """Read one event; None for one that says nothing about the device's memory."""
    if isinstance(content, dict):
        tag = content.get("type")
    elif isinstance(content, list) and content:
        tag = content[0]
    else:
        raise KvEventError(f"expected an event, found {_kind(content)}", where)
    if not isinstance(tag, str):
        raise KvEventError(f"expected the name of an event, found {_kind(tag)}", where)
    if tag not in _NAMES:
        return None
    fields = content if isinstance(content, dict) else dict(zip(_NAMES[tag], content[1:], strict=False))
    if tag == "AllBlocksCleared":
        return Cleared()
    if not _is_own_memory(fields, where):
        return None
    return _stored(fields, where) if tag == "BlockStored" else _removed(fields, where)


def _is_own_memory(fields: Mapping[str, Any], where: str) -> bool:
    # vLLM says GPU on every platform, CPU and TPU included; "cpu", "CPU", "STORAGE" are tiers that it offloads to.
    medium = _text(fields, "medium", where)
    if medium is not None and medium.upper() != "GPU":
        return False
    locality = _text(fields, "locality", where)
    return locality in (None, "LOCAL") and _text(fields, "ownership", where) is None


def _stored(fields: Mapping[str, Any], where: str) -> Stored:
    hashes = _hashes(fields.get("block_hashes"), f"{where}.block_hashes")
    parent = fields.get("parent_block_hash")
    tokens = fields.get("token_ids")
    if not isinstance(tokens, list):
        raise KvEventError(f"expected a list, found {_kind(tokens)}", f"{where}.token_ids")
    try:
        token_ids = array("I", tokens)
    except (TypeError, OverflowError) as error:
        raise KvEventError(f"expected token ids: {error}", f"{where}.token_ids") from error
    block_tokens = _integer(fields, "block_size", where)
    if block_tokens is None or block_tokens < 1:
        raise KvEventError(f"expected tokens per block, found {block_tokens}", f"{where}.block_size")
    return Stored(
        hashes=hashes,
        parent=None if parent is None else _hash(parent, f"{where}.parent_block_hash"),
        tokens=token_ids,
        block_tokens=block_tokens,
        lora_name=_text(fields, "lora_name", where),
        extra_keys=_extra_keys(fields.get("extra_keys"), len(hashes), f"{where}.extra_keys"),
        group_idx=_integer(fields, "group_idx", where),
        medium=_text(fields, "medium", where),
        lora_id=_integer(fields, "lora_id", where),
        spec_kind=_text(fields, "kv_cache_spec_kind", where),
        sliding_window=_integer(fields, "kv_cache_spec_sliding_window", where),
    )


def _removed(fields: Mapping[str, Any], where: str) -> Removed:
    return Removed(
        hashes=_hashes(fields.get("block_hashes"), f"{where}.block_hashes"),
        medium=_text(fields, "medium", where),
        group_idx=_integer(fields, "group_idx", where),
    )


def _hashes(values: Any, where: str) -> array[int]:
    if not isinstance(values, list):
        raise KvEventError(f"expected a list, found {_kind(values)}", where)
    return array("Q", [_hash(value, where) for value in values])


def _hash(value: Any, where: str) -> int:
    if type(value) is int:
        return value & _HASH_MASK
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-_HASH_BYTES:], "big")
    raise KvEventError(f"expected a hash, found {_kind(value)}", where)


def _extra_keys(values: Any, n_blocks: int, where: str) -> list[list[Any] | None] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(keys is None or isinstance(keys, list) for keys in values):
        raise KvEventError("expected a list of keys, or nothing, for each block", where)
    if len(values) != n_blocks:
        raise KvEventError(f"there are {len(values)} for {n_blocks} blocks", where)
    return values


def _fields(content: Any, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if isinstance(content, dict):
        return content
    if isinstance(content, list):
        return dict(zip(names, content, strict=False))
    raise KvEventError(f"expected an array or a map, found {_kind(content)}", where)


def _integer(fields: Mapping[str, Any], name: str, where: str) -> int | None:
    value = fields.get(name)
    if value is None or type(value) is int:
        return value
    raise KvEventError(f"expected a number, found {_kind(value)}", f"{where}.{name}".lstrip("."))


def _text(fields: Mapping[str, Any], name: str, where: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise KvEventError(f"expected text, found {_kind(value)}", f"{where}.{name}")


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__

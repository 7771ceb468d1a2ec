"""Decoding the engine's KV events: frames that the real vLLM published, older layouts, what is skipped or refused."""

from __future__ import annotations

import os
import random
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fixtures.kv_events.record import Truth, read_frames
from tests.model.kv_event_model import ResidencyModel
from xinf.engine.kv_events import Cleared, KvBatch, KvEventError, Removed, Stored, decode

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "kv_events"
RECORDED = "vllm-0.32.0"
KINDS = ("integers", "bytes")
N_FUZZED = 20_000
PIECES = [b"\xc0", b"\xc3", b"\x80", b"\x90", b"\xdd\xff\xff\xff\xff"]  # nil, true, empty and huge containers


def recorded(name: str) -> list[KvBatch]:
    return [decode(payload, sequence) for sequence, payload in read_frames(FIXTURES / f"{name}.txt")]


def truth_of(kind: str) -> Truth:
    return msgspec.json.decode((FIXTURES / f"{RECORDED}-{kind}.json").read_bytes(), type=Truth)


def pack(*events: Any, timestamp: Any = 1.5) -> bytes:
    return msgspec.msgpack.encode([timestamp, list(events), 0])


def stored_map(**fields: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": [7, 8],
        "parent_block_hash": 6,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }
    return event | fields


def decode_one(event: Any) -> Any:
    (found,) = decode(pack(event)).events
    return found


# ---- what the real engine published -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_events_say_what_the_engine_had_cached(kind: str) -> None:
    truth = truth_of(kind)
    batches = recorded(f"{RECORDED}-{kind}")
    model = ResidencyModel(truth.block_tokens)
    n_applied = 0
    wrong = []
    for asked in truth.asked:
        for batch in batches[n_applied : asked.n_before]:
            apply(model, batch)
        n_applied = asked.n_before
        if asked.is_after_reset:
            model.cleared()  # the event comes with the engine's next step
        predicted = model.cached_tokens(asked.prompt, asked.lora, asked.salt)
        if predicted != asked.cached and not asked.is_parallel:
            wrong.append(f"{asked.name}: {predicted} for {asked.cached}")
    assert not wrong
    assert sum(asked.cached > 0 for asked in truth.asked) > 10
    for batch in batches[n_applied:]:
        apply(model, batch)
    assert 0 < model.copies.total() < truth.kv_blocks


def apply(model: ResidencyModel, batch: KvBatch) -> None:
    for event in batch.events:
        match event:
            case Stored():
                assert event.is_whole
                assert event.is_text
                model.stored(event.hashes, event.parent, event.tokens, event.lora_name, event.cache_salt)
            case Removed():
                model.removed(event.hashes)
            case Cleared():
                model.cleared()


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_blocks_hold_the_tokens_that_were_asked(kind: str) -> None:
    truth = truth_of(kind)
    model = ResidencyModel(truth.block_tokens)
    for batch in recorded(f"{RECORDED}-{kind}"):
        apply(model, batch)
    # The last token of an answer is never computed.
    texts = [(asked.lora, asked.salt, *asked.prompt, *asked.answer[:-1]) for asked in truth.asked]
    known = set(model.prefixes.values())
    expected = {
        text[: 2 + end]
        for text in texts
        for end in range(truth.block_tokens, len(text) - 1, truth.block_tokens)
    }  # fmt: skip
    assert known == expected


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_batches_are_whole(kind: str) -> None:
    batches = recorded(f"{RECORDED}-{kind}")
    assert [batch.sequence for batch in batches] == list(range(len(batches)))
    events = [event for batch in batches for event in batch.events]
    assert {type(event) for event in events} == {Stored, Removed, Cleared}
    assert not any(batch.n_skipped for batch in batches)
    assert {batch.dp_rank for batch in batches} == {0}
    for event in events:
        if isinstance(event, Stored):
            assert (event.group_idx, event.spec_kind, event.medium) == (0, "full_attention", "GPU")
            assert event.block_tokens == 32
            assert event.hashes.typecode == "Q"
            assert event.tokens.typecode == "I"
    timestamps = [batch.timestamp for batch in batches]
    assert timestamps == sorted(timestamps)


def test_recorded_duplicates_are_removed_as_often_as_stored() -> None:
    stored = removed = 0
    seen: set[int] = set()
    for batch in recorded(f"{RECORDED}-integers"):
        for event in batch.events:
            if isinstance(event, Stored):
                stored += sum(block_hash in seen for block_hash in event.hashes)
                seen.update(event.hashes)
            elif isinstance(event, Removed):
                removed += len(event.hashes)
    assert stored > 3  # the model above counts that no block goes more often than it came
    assert removed > 20


def test_full_hashes_end_in_the_integers() -> None:
    # An adapter's path is part of its hashes and differs between two recordings: compare what was before.
    def plain(kind: str) -> list[Any]:
        return [batch.events for batch in recorded(f"{RECORDED}-{kind}")[:6]]

    assert plain("bytes") == plain("integers")
    raw = msgspec.msgpack.decode(read_frames(FIXTURES / f"{RECORDED}-bytes.txt")[0][1])
    assert [len(block_hash) for block_hash in raw[1][0]["block_hashes"]] == [32, 32, 32]


@pytest.mark.parametrize(
    ("layout", "source", "lost"),
    [
        ("vllm-0.9-layout", "integers", {"lora_name", "extra_keys", "group_idx", "medium", "spec_kind"}),
        ("vllm-0.11-layout", "bytes", {"lora_name", "extra_keys", "group_idx", "spec_kind"}),
        ("vllm-0.19-layout", "integers", {"spec_kind"}),
    ],
)
def test_older_layouts_say_the_same(layout: str, source: str, lost: set[str]) -> None:
    new = {batch.sequence: batch for batch in recorded(f"{RECORDED}-{source}")}
    old = recorded(layout)
    assert {type(event) for batch in old for event in batch.events} == {Stored, Removed, Cleared}
    for batch in old:
        expected = new[batch.sequence]
        assert batch.timestamp == expected.timestamp
        assert batch.dp_rank == (None if layout == "vllm-0.9-layout" else 0)
        assert list(batch.events) == [without(event, lost) for event in expected.events]


def without(event: Any, names: set[str]) -> Any:
    return msgspec.structs.replace(event, **dict.fromkeys(names & set(event.__struct_fields__)))


def test_old_layouts_tell_adapters_by_number_only() -> None:
    stored = [event for batch in recorded("vllm-0.9-layout") for event in batch.events if isinstance(event, Stored)]
    assert {event.lora_id for event in stored} == {None, 1}
    assert {event.lora_name for event in stored} == {None}


def test_recorded_windows_leave_out_blocks_and_repeat_the_hashes_of_the_others() -> None:
    truth = truth_of("windows")
    model = ResidencyModel(truth.block_tokens)
    n_partial = n_removed = 0
    for batch in recorded(f"{RECORDED}-windows"):
        whole: set[int] = set()
        for event in batch.events:
            match event:
                case Stored(group_idx=0):
                    assert event.is_whole
                    assert (event.spec_kind, event.sliding_window) == ("full_attention", None)
                    whole.update(event.hashes)
                    model.stored(event.hashes, event.parent, event.tokens, None, None)
                case Stored():
                    assert (event.group_idx, event.spec_kind, event.sliding_window) == (1, "sliding_window", 64)
                    assert whole >= set(event.hashes)
                    n_partial += not event.is_whole
                case Removed(group_idx=0):
                    model.removed(event.hashes)
                    n_removed += 1
    assert n_partial > 3
    assert n_removed > 3


def test_recorded_windows_cannot_be_predicted_from_the_whole_blocks_alone() -> None:
    """Why a model with windows is not exact: what its other layers kept decides as well."""
    truth = truth_of("windows")
    batches = recorded(f"{RECORDED}-windows")
    over = set()
    for asked in truth.asked:
        model = ResidencyModel(truth.block_tokens)
        for batch in batches[: asked.n_before]:
            for event in batch.events:
                if isinstance(event, Stored) and event.group_idx == 0:
                    model.stored(event.hashes, event.parent, event.tokens, None, None)
                elif isinstance(event, Removed) and event.group_idx == 0:
                    model.removed(event.hashes)
        predicted = model.cached_tokens(asked.prompt, None, None)
        assert predicted >= asked.cached, asked.name
        if predicted > asked.cached:
            over.add(asked.name)
    assert "again" not in over
    assert "shared" in over


# ---- encodings ----------------------------------------------------------------------------------------------------


def test_map_with_all_fields() -> None:
    event = stored_map(
        lora_id=3,
        lora_name="polite",
        extra_keys=[["polite", "salt"], ["polite"]],
        parent_block_hash=None,
        group_idx=1,
        kv_cache_spec_kind="sliding_window",
        kv_cache_spec_sliding_window=128,
        locality="LOCAL",
        session_id="s",
        lookahead_token_ids=[1],
    )
    assert decode_one(event) == Stored(
        hashes=array("Q", [7, 8]),
        parent=None,
        tokens=array("I", [1, 2, 3, 4]),
        block_tokens=2,
        lora_name="polite",
        extra_keys=[["polite", "salt"], ["polite"]],
        group_idx=1,
        medium="GPU",
        lora_id=3,
        spec_kind="sliding_window",
        sliding_window=128,
    )
    assert decode_one(event).cache_salt == "salt"


def test_array_with_more_fields_than_known() -> None:
    event = ["BlockRemoved", [1], "GPU", 0, None, None, "new", {"newer": 1}]
    assert decode_one(event) == Removed(array("Q", [1]), "GPU", 0)


def test_batch_as_a_map() -> None:
    payload = msgspec.msgpack.encode({"ts": 2, "events": [["AllBlocksCleared"]], "data_parallel_rank": 3, "new": 1})
    assert decode(payload, 9) == KvBatch(sequence=9, timestamp=2.0, events=(Cleared(),), dp_rank=3)


def test_batch_without_a_rank() -> None:
    assert decode(msgspec.msgpack.encode([0.5, []])) == KvBatch(sequence=None, timestamp=0.5, events=())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (-1, 2**64 - 1),
        (-(2**63), 2**63),
        (2**64 - 1, 2**64 - 1),
        (bytes(24) + b"\x01\x02\x03\x04\x05\x06\x07\x08", 0x0102030405060708),
        (b"\x01\x02", 0x0102),
    ],
)
def test_hashes_of_all_kinds(given: int | bytes, expected: int) -> None:
    assert list(decode_one({"type": "BlockRemoved", "block_hashes": [given]}).hashes) == [expected]
    assert decode_one(stored_map(parent_block_hash=given)).parent == expected


def test_order_of_events_is_kept() -> None:
    batch = decode(pack(["BlockRemoved", [1]], ["AllBlocksCleared"], stored_map(), ["BlockRemoved", [2]]))
    assert [type(event) for event in batch.events] == [Removed, Cleared, Stored, Removed]


# ---- what blocks depend on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra_keys", "lora", "parent", "salt", "is_text"),
    [
        (None, None, None, None, True),
        ([None, None], None, None, None, True),
        ([["s"], None], None, None, "s", True),
        ([["a", "s"], ["a"]], "a", None, "s", True),
        ([["a"], ["a"]], "a", None, None, True),
        ([["a"], ["a"]], "a", 6, None, True),
        ([["a", "a"], ["a"]], "a", None, "a", True),  # a salt that is called as the adapter
        ([[["image", 3]], None], None, None, None, False),
        ([["s"], [["image", -1]]], None, None, "s", False),
        ([[["image", 0], "s"], None], None, None, None, False),
        ([[b"digest"], [b"digest"]], None, None, None, False),
        ([["s"], None], None, 6, None, False),  # a salt in the middle of a prompt is none
        ([["old image", "s"], None], None, None, None, False),
    ],
)
def test_what_blocks_depend_on(
    extra_keys: Any, lora: str | None, parent: int | None, salt: str | None, is_text: bool
) -> None:
    event = decode_one(stored_map(extra_keys=extra_keys, lora_name=lora, parent_block_hash=parent))
    assert event.cache_salt == salt
    assert event.is_text is is_text


def test_blocks_of_a_window_are_not_whole() -> None:
    assert decode_one(stored_map()).is_whole
    assert not decode_one(stored_map(block_hashes=[8])).is_whole
    assert not decode_one(stored_map(block_hashes=[])).is_whole
    assert decode_one(stored_map(block_hashes=[])).is_text


# ---- what is skipped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        {"type": "BlockMoved", "block_hashes": "whatever"},
        ["BlockMoved"],
        stored_map(medium="CPU", block_size=0, token_ids=[]),
        stored_map(medium="cpu"),
        stored_map(medium="STORAGE"),
        stored_map(locality="REMOTE"),
        stored_map(ownership="tier-2"),
        {"type": "BlockRemoved", "block_hashes": [1], "medium": "CPU"},
        ["BlockRemoved", [1], "CPU"],
    ],
)
def test_other_memory_and_unknown_kinds_are_skipped_and_counted(event: Any) -> None:
    batch = decode(pack(event, ["BlockRemoved", [1]], event))
    assert batch.events == (Removed(array("Q", [1])),)
    assert batch.n_skipped == 2


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (b"", "payload"),
        (b"\xc1", "payload"),
        (pack()[:-1], "payload"),
        (pack() + b"\x00", "payload"),
        (b"\x91" * 100_000, "payload"),  # deeper than any stack
        (b"\xdd\xff\xff\xff\xff", "payload"),  # an array of 4 billion
        (b"\xa2\xff\xfe", "payload"),  # no UTF-8
        (b"\x81\x80\x01", "payload"),  # a map as a key
        (b"\x05", "payload"),
        (b"\xc0", "payload"),
        (b"\xd4\x05\x00", "payload"),  # an extension
        (pack(timestamp="now"), "ts"),
        (pack(timestamp=None), "ts"),
        (pack(timestamp=True), "ts"),
        (pack(timestamp=float("nan")), "ts"),
        (msgspec.msgpack.encode([]), "ts"),
        (msgspec.msgpack.encode([1.0]), "events"),
        (msgspec.msgpack.encode([1.0, {}]), "events"),
        (msgspec.msgpack.encode([1.0, [], "0"]), "data_parallel_rank"),
        (pack(5), "events[0]"),
        (pack([]), "events[0]"),
        (pack({}), "events[0]"),
        (pack({"type": 1}), "events[0]"),
        (pack([["BlockRemoved"]]), "events[0]"),
        (pack(["AllBlocksCleared"], ["BlockRemoved"]), "events[1].block_hashes"),
        (pack(["BlockRemoved", ["7"]]), "events[0].block_hashes"),
        (pack(["BlockRemoved", [None]]), "events[0].block_hashes"),
        (pack(["BlockRemoved", [True]]), "events[0].block_hashes"),
        (pack(["BlockRemoved", [b""]]), "events[0].block_hashes"),
        (pack(["BlockRemoved", [1], 5]), "events[0].medium"),
        (pack(["BlockRemoved", [1], "GPU", "0"]), "events[0].group_idx"),
        (pack(stored_map(block_hashes=7)), "events[0].block_hashes"),
        (pack(stored_map(parent_block_hash="6")), "events[0].parent_block_hash"),
        (pack(stored_map(token_ids=None)), "events[0].token_ids"),
        (pack(stored_map(token_ids=b"1234")), "events[0].token_ids"),
        (pack(stored_map(token_ids=[-1])), "events[0].token_ids"),
        (pack(stored_map(token_ids=[2**32])), "events[0].token_ids"),
        (pack(stored_map(token_ids=["1"])), "events[0].token_ids"),
        (pack(stored_map(token_ids=[[1, 2], [3, 4]])), "events[0].token_ids"),
        (pack(stored_map(block_size=0)), "events[0].block_size"),
        (pack(stored_map(block_size=None)), "events[0].block_size"),
        (pack(stored_map(block_size=2.0)), "events[0].block_size"),
        (pack(stored_map(lora_name=1)), "events[0].lora_name"),
        (pack(stored_map(locality=1)), "events[0].locality"),
        (pack(stored_map(extra_keys=[None])), "events[0].extra_keys"),
        (pack(stored_map(extra_keys=["a", "b"])), "events[0].extra_keys"),
    ],
)
def test_what_is_no_batch_is_refused(payload: bytes, where: str) -> None:
    with pytest.raises(KvEventError) as caught:
        decode(payload)
    assert caught.value.where == where
    assert str(caught.value) == f"{where}: {caught.value.what}"


def test_damaged_frames_are_refused_or_read() -> None:
    seed = int(os.environ.get("XINF_FUZZ_SEED", random.randrange(2**32)))
    print(f"XINF_FUZZ_SEED={seed}")
    rng = random.Random(seed)
    names = [f"{RECORDED}-integers", f"{RECORDED}-bytes", "vllm-0.9-layout", "vllm-0.11-layout", "vllm-0.19-layout"]
    frames = [payload for name in names for _, payload in read_frames(FIXTURES / f"{name}.txt")]
    n_refused = 0
    for _ in range(N_FUZZED):
        damaged = damage(rng, rng.choice(frames))
        try:
            batch = decode(damaged)
        except KvEventError:
            n_refused += 1
            continue
        for event in batch.events:
            if isinstance(event, Stored):
                assert event.block_tokens > 0
                assert event.is_text in (True, False)
    assert 0 < n_refused < N_FUZZED


def damage(rng: random.Random, payload: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(payload) + 1)
        match rng.randrange(5):
            case 0:
                payload = payload[:at] + rng.randbytes(1) + payload[at + 1 :]
            case 1:
                payload = payload[:at] + payload[at + rng.choice([1, 1, 4, 40]) :]
            case 2:
                payload = payload[:at] + rng.choice(PIECES) + payload[at:]
            case 3:
                source = rng.randrange(len(payload) + 1)
                payload = payload[:at] + payload[source : source + rng.randrange(30)] + payload[at:]
            case _:
                payload = payload[:at] if rng.random() < 0.1 else payload
    return payload

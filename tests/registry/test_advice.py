"""What is said to somebody whose model does not fit: each piece of advice, taken, makes it fit."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.registry.planned_models import CPU, GIB, MODELS, QWEN_7B, QWEN_7B_AWQ, card
from xinf.core.records import EngineSpec
from xinf.registry import LoadOptions, ModelFacts, Room, advise, choose_options, fit_memory, plan_memory


def rooms(*free_gib: float, total_gib: int = 24) -> list[Room]:
    return [
        Room(selector=f"cuda:{n}", free_bytes=int(free * GIB), total_bytes=total_gib * GIB)
        for n, free in enumerate(free_gib)
    ]


def options(**fields: object) -> LoadOptions:
    return replace(choose_options(EngineSpec(model="m"), card(24)), **fields)


def fits(facts: ModelFacts, wished: LoadOptions, found: list[Room]) -> bool:
    room = sorted(found, key=lambda room: -room.free_bytes)[wished.tensor_parallel_size - 1]
    plan = plan_memory(facts, wished)
    return fit_memory(plan, facts, wished, free_bytes=room.free_bytes, total_bytes=room.total_bytes).fits


def taken(wished: LoadOptions, sentence: str) -> LoadOptions | None:
    """What somebody would ask for who follows the advice; None for advice that is no option."""
    if match := re.match(r"--max-model-len (\d+)", sentence):
        return replace(wished, max_model_len=int(match[1]))
    if match := re.match(r"--tensor-parallel-size (\d+)", sentence):
        return replace(wished, tensor_parallel_size=int(match[1]))
    if match := re.match(r"--quantization (\w+)", sentence):
        return replace(wished, quantization=match[1])
    return None


def test_nothing_is_said_when_it_fits() -> None:
    assert advise(QWEN_7B, options(), rooms(24)) == ()


def test_shorter_context_comes_first() -> None:
    context, split, packed = advise(QWEN_7B, options(), rooms(17, 17))
    assert context.startswith("--max-model-len ")
    assert "fits on cuda:0, where 17 GiB are free" in context
    assert split.startswith("--tensor-parallel-size 2 needs ")
    assert packed.startswith("--quantization fp8 needs ")


def test_split_that_the_heads_forbid_is_explained() -> None:
    three = advise(QWEN_7B, options(tensor_parallel_size=2), rooms(7, 7, 7))
    assert any("28 attention heads cannot be split over 3 devices" in sentence for sentence in three)


def test_smaller_split_is_proposed_where_the_heads_forbid_the_asked_one() -> None:
    advice = advise(QWEN_7B, options(tensor_parallel_size=3, max_model_len=4096), rooms(24, 24, 24))
    assert advice[0].startswith("--tensor-parallel-size 2 needs ")


def test_packed_checkpoint_is_not_packed_again() -> None:
    assert not any("4-bit" in one or "fp8" in one for one in advise(QWEN_7B_AWQ, options(), rooms(6.5)))


def test_four_bits_are_proposed_where_eight_are_too_many() -> None:
    advice = advise(QWEN_7B, options(max_model_len=1024), rooms(8.5))
    assert [one for one in advice if "4-bit weights (AWQ, GPTQ)" in one]


def test_processor_is_not_told_to_split() -> None:
    wished = choose_options(EngineSpec(model="m"), CPU)
    advice = advise(QWEN_7B, wished, [Room(selector="cpu", free_bytes=8 * GIB)])
    assert not any("tensor" in sentence or "fp8" in sentence for sentence in advice)


@given(st.sampled_from(MODELS), st.lists(st.floats(0.5, 24), min_size=1, max_size=8))
def test_advice_that_is_taken_makes_it_fit(facts: ModelFacts, free_gib: list[float]) -> None:
    found = rooms(*free_gib)
    for sentence in advise(facts, options(), found):
        wished = taken(options(), sentence)
        if wished is not None:
            assert fits(facts, wished, found), sentence


def test_engine_on_a_processor_of_two_sockets_is_told_to_take_both() -> None:
    """15 GiB of weights and a cache on nodes of 16 GiB: one does not do, two do, and a third is not there."""
    processor = replace(CPU, extra={"numa_nodes": 2, "numa_memory_bytes": 16 * GIB})
    wished = choose_options(EngineSpec(model="m", max_model_len=32768), processor)
    room = Room(selector="cpu", free_bytes=32 * GIB)
    split = next(one for one in advise(QWEN_7B, wished, [room]) if one.startswith("--tensor-parallel-size 2"))
    assert split.endswith("on 2 NUMA nodes, which fits")
    following = taken(wished, split)
    assert following is not None
    assert advise(QWEN_7B, following, [room]) == (), "it fits"
    whole = choose_options(EngineSpec(model="m", max_model_len=32768), CPU)
    assert advise(QWEN_7B, whole, [room]) == (), "of whose nodes nobody tells"

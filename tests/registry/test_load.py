"""From what a deployment asks for to how its model is loaded."""

from __future__ import annotations

import pytest

from tests.registry.planned_models import CPU, card
from xinf.core.device import Device
from xinf.core.errors import InvalidRequest
from xinf.core.records import ArgValue, EngineSpec
from xinf.registry import LoadOptions, choose_options


def read(device: Device | None = None, **fields: object) -> LoadOptions:
    return choose_options(EngineSpec(model="m", **fields), device or card(24))  # type: ignore[arg-type]


def read_args(**arguments: ArgValue) -> LoadOptions:
    return read(engine_args=arguments)


@pytest.mark.parametrize(
    ("device", "tokens", "sequences"),
    [
        (card(24), 2048, 256),
        (card(80, name="NVIDIA H100 80GB HBM3"), 8192, 1024),
        (card(80, name="NVIDIA A100-SXM4-80GB"), 2048, 256),
        (card(180), 16384, 1024),
        (CPU, 2048, 128),
    ],
)
def test_defaults_are_the_engines_for_such_a_device(device: Device, tokens: int, sequences: int) -> None:
    found = read(device)
    assert (found.max_batched_tokens, found.max_num_seqs) == (tokens, sequences)


def test_processor_gets_the_defaults_of_xinf() -> None:
    assert (read(CPU).is_eager, read(CPU).block_tokens) == (True, 32)
    assert (read().is_eager, read().block_tokens) == (False, 16)


def test_short_contexts_make_small_steps() -> None:
    assert read_args(max_num_seqs=4, max_model_len=100).max_batched_tokens == 400
    assert read_args(max_num_seqs=4, max_model_len=100, max_num_batched_tokens=4096).max_batched_tokens == 4096


def test_fields_and_arguments_say_the_same() -> None:
    by_field = read(dtype="bf16", quantization="FP8", max_model_len=8192, tensor_parallel_size=2)
    by_argument = read_args(
        **{"dtype": "bfloat16", "--quantization": "fp8", "max-model-len": 8192, "tensor_parallel_size": 2}
    )
    assert by_field == by_argument


@pytest.mark.parametrize(
    ("value", "n_tokens"), [("32k", 32_000), ("32K", 32_768), ("1m", 1_000_000), (8192, 8192), ("8192", 8192)]
)
def test_numbers_are_read_as_the_engine_reads_them(value: ArgValue, n_tokens: int) -> None:
    assert read_args(max_model_len=value).max_model_len == n_tokens


@pytest.mark.parametrize("value", ["auto", -1, 0, "many", float("inf"), float("nan")])
def test_what_is_no_number_cannot_be_planned(value: ArgValue) -> None:
    with pytest.raises(InvalidRequest, match="no number to plan with"):
        read_args(max_model_len=value)


@pytest.mark.parametrize("name", ["cpu_offload_gb", "--pipeline-parallel-size", "hf_overrides.num_hidden_layers"])
def test_arguments_of_unknown_effect_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name.removeprefix("--").replace("-", "_").split(".")[0]):
        read_args(**{name: 1})


def test_eager_can_be_asked_for_and_taken_back() -> None:
    assert read_args(enforce_eager=True).is_eager
    assert not read(CPU, engine_args={"no-enforce-eager": True}).is_eager

"""From an engine spec to vLLM's command line, without vLLM."""

from __future__ import annotations

import msgspec
import pytest

from xinf.core.errors import EngineStartFailed
from xinf.core.records import ArgValue, EngineSpec
from xinf.engine.vllm_args import (
    ModelFamily,
    choose_arguments,
    command_line,
    memory_arguments,
    remedy_of,
    revision_arguments,
)

NOBODY = ModelFamily()
QWEN = ModelFamily(model_type="qwen2", chat_template="... <tool_call> ...")


def spec(**fields: object) -> EngineSpec:
    return EngineSpec(model="m", **fields)  # type: ignore[arg-type]


def chosen(family: ModelFamily = NOBODY, *, is_cpu: bool = True, **arguments: ArgValue) -> dict[str, ArgValue]:
    return choose_arguments(spec(engine_args=arguments), is_cpu=is_cpu, family=family)


def test_cpu_gets_what_a_first_try_misses() -> None:
    assert chosen() == {"enable-prompt-tokens-details": True, "enforce-eager": True, "block-size": 32}


def test_accelerators_keep_the_engines_defaults() -> None:
    assert chosen(is_cpu=False) == {"enable-prompt-tokens-details": True}


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [("block_size", 64, "block-size"), ("--block-size", 64, "block-size"), ("no_enforce_eager", True, "enforce-eager")],
)
def test_arguments_of_the_user_win(name: str, value: ArgValue, option: str) -> None:
    found = choose_arguments(spec(engine_args={name: value}), is_cpu=True, family=NOBODY)
    assert found[name.removeprefix("--").replace("_", "-")] == value
    assert option not in found or found[option] == value


def test_fields_of_the_spec_become_arguments() -> None:
    found = choose_arguments(
        spec(dtype="bf16", quantization="awq", tensor_parallel_size=2, max_model_len=100, trust_remote_code=True),
        is_cpu=False,
        family=NOBODY,
    )
    assert found == {
        "enable-prompt-tokens-details": True,
        "dtype": "bfloat16",
        "quantization": "awq",
        "tensor-parallel-size": 2,
        "max-model-len": 100,
        "trust-remote-code": True,
    }


@pytest.mark.parametrize("name", ["port", "--api_key", "served-model-name", "model"])
def test_what_would_go_around_the_gateway_is_refused(name: str) -> None:
    with pytest.raises(EngineStartFailed, match="set by xinf") as caught:
        choose_arguments(spec(engine_args={name: "x"}), is_cpu=True, family=NOBODY)
    assert caught.value.fields["cause"] == "bad_arguments"


@pytest.mark.parametrize(
    ("model_type", "template", "parsers"),
    [
        ("qwen2", "<tool_call>", {"tool-call-parser": "hermes"}),
        ("qwen2", "<tool_call> </think>", {}),  # a distilled reasoning model: another format
        ("qwen2", "no tools", {}),
        ("qwen3", "<tool_call> </think>", {"tool-call-parser": "hermes", "reasoning-parser": "qwen3"}),
        ("qwen3", "<tool_call>", {"tool-call-parser": "hermes"}),
        ("qwen3_moe", "<tool_call> <function=", {}),  # the coder writes XML
        ("llama", "<|python_tag|>", {"tool-call-parser": "llama3_json"}),
        ("llama", "plain", {}),
        ("gpt_oss", "", {"tool-call-parser": "openai", "reasoning-parser": "openai_gptoss"}),
        ("unheard_of", "<tool_call>", {}),
    ],
)
def test_parsers_are_set_where_the_format_is_certain(
    model_type: str, template: str, parsers: dict[str, ArgValue]
) -> None:
    found = ModelFamily(model_type=model_type, chat_template=template).parsers()
    assert found.pop("enable-auto-tool-choice", False) is ("tool-call-parser" in parsers)
    assert found == parsers


def test_parser_of_the_user_replaces_that_of_the_family() -> None:
    found = chosen(QWEN, tool_call_parser="pythonic")
    assert (found["tool-call-parser"], found["enable-auto-tool-choice"]) == ("pythonic", True)


def test_tools_can_be_turned_off() -> None:
    found = chosen(QWEN, enable_auto_tool_choice=False)
    assert found["enable-auto-tool-choice"] is False
    assert "tool-call-parser" not in found


OPTIONS = {"--model", "--flag", "--switch", "--no-switch", "--size", "--json", "--many"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"flag": True}, ["--flag"]),
        ({"flag": False}, []),
        ({"switch": False}, ["--no-switch"]),
        ({"unknown": False}, ["--unknown"]),  # the parser shall complain, not silence
        ({"size": -1}, ["--size=-1"]),
        ({"json": '{"a": 1}'}, ['--json={"a": 1}']),
        ({"json.a_b": 1}, ["--json.a_b=1"]),
        ({"many": "a=b c=d"}, ["--many", "a=b", "c=d"]),
    ],
)
def test_command_line_is_what_the_parser_reads(arguments: dict[str, ArgValue], line: list[str]) -> None:
    made = command_line(spec(served_names=("x", "y")), arguments, options=OPTIONS, lists={"--many"})
    assert made == ["--model", "m", "--served-model-name", "x", "y", *line]


def test_model_is_served_under_its_own_name_without_others() -> None:
    assert command_line(spec(), {}, options=OPTIONS, lists=()) == ["--model", "m", "--served-model-name", "m"]


def test_share_of_the_memory_is_what_is_free_unless_the_user_says() -> None:
    more = memory_arguments(0.4213)
    assert choose_arguments(spec(), is_cpu=False, family=NOBODY, more=more)["gpu-memory-utilization"] == 0.4213
    given = spec(engine_args={"gpu_memory_utilization": 0.8})
    found = choose_arguments(given, is_cpu=False, family=NOBODY, more=more)
    assert found["gpu-memory-utilization"] == 0.8
    assert memory_arguments(None) == {}


KNOWN = ["-h", "--help", "--port", "--model", "--max-num-seqs", "--max-model-len", "--enable-prefix-caching"]


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("unrecognized arguments: --max-nun-seqs=4", "did you mean --engine-arg max-num-seqs?"),
        ("unrecognized arguments: --enable-prefx-cachng", "did you mean --engine-arg enable-prefix-caching?"),
    ],
)
def test_argument_that_vllm_has_not_is_answered_with_the_nearest(message: str, remedy: str) -> None:
    assert remedy_of(message, KNOWN) == remedy


@pytest.mark.parametrize("name", ["zork", "prt", "modl"])
def test_no_argument_is_offered_that_is_unlike_or_not_the_users_to_give(name: str) -> None:
    said = remedy_of(f"unrecognized arguments: --{name}=1", KNOWN)
    assert said.startswith("vLLM has no argument like it; `")
    assert said.endswith("/vllm serve --help=all` lists them")


def test_wrong_value_of_an_argument_is_not_taken_for_a_wrong_name() -> None:
    said = remedy_of("argument --max-num-seqs: invalid int value: 'zork'", KNOWN)
    assert said.startswith("correct the --engine-arg it names; `")


@pytest.mark.parametrize(("fields", "revision"), [
    ({"commit": "c" * 40}, "c" * 40),
    ({"revision": "v1", "commit": "c" * 40}, "c" * 40),
    ({"revision": "v1"}, "v1"),
    ({}, None),
    ({"model": "/models/x", "commit": "c" * 40}, None),
])  # fmt: skip
def test_engine_that_fetches_its_model_itself_is_held_to_the_commit(
    fields: dict[str, str], revision: str | None
) -> None:
    made = msgspec.structs.replace(EngineSpec(model="Org/Name"), **fields)
    assert revision_arguments(made).get("revision") == revision


@pytest.mark.parametrize(("arguments", "held"), [
    ({"tokenizer": "Other/Tokens"}, {"revision": "c" * 40, "tokenizer-revision": "main"}),
    ({"--tokenizer": "Org/Name"}, {"revision": "c" * 40}),
    ({"hf_config_path": "Other/Config"}, {}),
    ({"hf_config_path": "Org/Name"}, {"revision": "c" * 40}),
])  # fmt: skip
def test_commit_of_the_model_is_asked_of_no_other_repository(
    arguments: dict[str, ArgValue], held: dict[str, ArgValue]
) -> None:
    made = EngineSpec(model="Org/Name", commit="c" * 40, engine_args=arguments)
    assert revision_arguments(made) == held


def test_revision_of_the_user_beats_that_of_the_other_repository() -> None:
    arguments: dict[str, ArgValue] = {"tokenizer": "Other/Tokens", "tokenizer-revision": "v2"}
    made = EngineSpec(model="Org/Name", commit="c" * 40, engine_args=arguments)
    found = choose_arguments(made, is_cpu=False, family=NOBODY, more=revision_arguments(made))
    assert (found["revision"], found["tokenizer-revision"]) == ("c" * 40, "v2")

"""From an engine spec to vLLM's command line, with the defaults that a first try usually misses.

An engine argument of the user's wins over every default here. Names are compared as vLLM does: `max_model_len`,
`max-model-len` and `--max-model-len` are the same, `no-` in front turns a flag off.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from xinf.core.errors import EngineStartFailed
from xinf.core.own_arguments import own_argument
from xinf.core.records import ArgValue, EngineSpec

# As people write them, and as `Dtype` of xinf/core/device.py does; vLLM knows the long names.
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

# How alike a name must be to be offered in the place of one that vLLM has not: `zork` is no `port`.
_NEAR = 0.7

# Blocks of 32 tokens: what vLLM's attention for CPU likes, and a fourth of its default: more of a prefix is shared.
_CPU_DEFAULTS: Mapping[str, ArgValue] = {"enforce-eager": True, "block-size": 32}
_DEFAULTS: Mapping[str, ArgValue] = {"enable-prompt-tokens-details": True}
_DEFAULT_BRANCH = "main"  # of Hugging Face, which alone engines ask themselves


class ModelFamily(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model's files tells how it writes tool calls and thoughts."""

    model_type: str = ""
    chat_template: str = ""

    def parsers(self) -> dict[str, ArgValue]:
        """Arguments for models whose format is certain; nothing for others, a wrong parser is worse than none."""
        template = self.chat_template
        thinks = "</think>" in template
        match self.model_type:
            case "qwen2" | "qwen2_moe" if "<tool_call>" in template and not thinks:
                return _tools("hermes")
            case "qwen3" | "qwen3_moe" if "<tool_call>" in template and "<function=" not in template:
                return _tools("hermes") | ({"reasoning-parser": "qwen3"} if thinks else {})
            case "llama" if "<|python_tag|>" in template or "Environment: ipython" in template:
                return _tools("llama3_json")
            case "mistral" | "mixtral" if "[TOOL_CALLS]" in template:
                return _tools("mistral")
            case "gpt_oss":
                return _tools("openai") | {"reasoning-parser": "openai_gptoss"}
            case "glm4_moe" if "<tool_call>" in template:
                return _tools("glm45") | {"reasoning-parser": "glm45"}
        return {}


def _tools(parser: str) -> dict[str, ArgValue]:
    return {"enable-auto-tool-choice": True, "tool-call-parser": parser}


def choose_arguments(
    spec: EngineSpec, *, is_cpu: bool, family: ModelFamily, more: Mapping[str, ArgValue] | None = None
) -> dict[str, ArgValue]:
    """Choose all arguments but the model's name and served names. `more`: further defaults.

    Raises: EngineStartFailed (bad_arguments) for an argument that is not the user's to give.
    """
    given = {name.removeprefix("--").replace("_", "-"): value for name, value in _split_names(spec.engine_args)}
    for name in given:
        if own_argument(name) is not None:
            raise bad_arguments(
                f"engine argument {name!r} is set by xinf itself", "leave it out; see `xinf launch --help`"
            )
    chosen: dict[str, ArgValue] = {**_DEFAULTS, **(more or {})}
    if is_cpu:
        chosen |= _CPU_DEFAULTS
    parsers = family.parsers()
    if "tool-call-parser" in given:
        # A parser alone does nothing in vLLM; whoever names one wants tools.
        parsers["enable-auto-tool-choice"] = True
    elif any(is_about(name, ("enable-auto-tool-choice",)) for name in given):
        parsers.pop("tool-call-parser", None)
    chosen |= parsers
    if spec.dtype != "auto":
        chosen["dtype"] = _DTYPES.get(spec.dtype, spec.dtype)
    if spec.quantization is not None:
        chosen["quantization"] = spec.quantization
    if spec.tensor_parallel_size != 1:
        chosen["tensor-parallel-size"] = spec.tensor_parallel_size
    if spec.max_model_len is not None:
        chosen["max-model-len"] = spec.max_model_len
    if spec.trust_remote_code:
        chosen["trust-remote-code"] = True
    kept = {name: value for name, value in chosen.items() if not any(is_about(other, (name,)) for other in given)}
    return kept | given


def memory_arguments(share: float | None) -> dict[str, ArgValue]:
    """Limit the engine to a share of its devices: what is free, not what vLLM takes of all that there is (0.92)."""
    return {} if share is None else {"gpu-memory-utilization": share}


def revision_arguments(spec: EngineSpec) -> dict[str, ArgValue]:
    """Hold an engine that fetches its model itself to the commit that was meant.

    Tokenizer and code of the same repository follow the model's revision. Another repository has no such commit, but
    is asked for it unless something else is said; for a configuration of its own nothing else can be.
    Source: vLLM 0.32, `config/model.py`; transformers 5.19, `dynamic_module_utils.py`.
    """
    given = {name.removeprefix("--").replace("_", "-"): value for name, value in spec.engine_args.items()}
    has_own = given.get("hf-config-path", spec.model) != spec.model
    revision = spec.revision if has_own else spec.commit or spec.revision
    if revision is None or Path(spec.model).is_absolute():
        return {}
    held: dict[str, ArgValue] = {"revision": revision}
    if given.get("tokenizer", spec.model) != spec.model:
        held["tokenizer-revision"] = _DEFAULT_BRANCH
    return held


def is_about(name: str, options: Collection[str]) -> bool:
    """Whether an argument sets one of the options: itself, its negation, or a part of it (`option.key`)."""
    return name.partition(".")[0].removeprefix("no-") in {option.removeprefix("no-") for option in options}


def _split_names(arguments: Mapping[str, ArgValue]) -> list[tuple[str, ArgValue]]:
    # Underscores after a dot belong to a JSON key and stay.
    names = []
    for name, value in arguments.items():
        head, dot, rest = name.partition(".")
        names.append((head.replace("_", "-") + dot + rest, value))
    return names


def command_line(
    spec: EngineSpec, arguments: Mapping[str, ArgValue], *, options: Collection[str], lists: Collection[str]
) -> list[str]:
    """Write the arguments as vLLM's parser reads them.

    `options`: all that it knows, with dashes in front; `lists`: those that take several values.
    """
    line = ["--model", spec.model, "--served-model-name", *(spec.served_names or (spec.model,))]
    for name, value in arguments.items():
        flag = f"--{name}"
        if value is True:
            line.append(flag)
        elif value is False:
            # Without a negation the flag is off when it is absent; one that is unknown is left to the parser's error.
            negation = f"--no-{name}"
            if negation in options or flag not in options:
                line.append(negation if negation in options else flag)
        elif flag in lists and not str(value).lstrip().startswith(("{", "[")):
            line += [flag, *shlex.split(str(value))]
        else:
            line.append(f"{flag}={value}")
    return line


def parse(spec: EngineSpec, arguments: Mapping[str, ArgValue]) -> Any:
    """Parse with vLLM's own parser. Returns its namespace. Raises: EngineStartFailed (bad_arguments)."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:  # moved in 0.33
        from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # a class of vLLM's, without types
        def error(self, message: str) -> NoReturn:
            raise bad_arguments(f"vLLM refuses its arguments: {message}", remedy_of(message, options))

    parser = Parser()
    options: list[str] = []
    make_arg_parser(parser)
    actions = parser._option_string_actions
    options += actions
    lists = {option for option, action in actions.items() if action.nargs in ("+", "*")}
    try:
        parsed = parser.parse_args(command_line(spec, arguments, options=options, lists=lists))
        validate_parsed_serve_args(parsed)
        _check_parsers(parsed)
    except SystemExit as error:
        raise bad_arguments(f"vLLM ended with status {error.code} on its arguments", "see the engine's log") from error
    except (TypeError, ValueError, KeyError) as error:
        raise bad_arguments(f"vLLM refuses its arguments: {error}", "correct the --engine-arg it names") from error
    return parsed


def _check_parsers(parsed: Any) -> None:
    """Load the user's parser plugins and check the parsers' names, as `vllm serve` does when it makes its socket.

    Source: vLLM 0.32, entrypoints/launchers/launcher.py, `setup_server`. Raises: KeyError.
    """
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if parsed.tool_parser_plugin:
        ToolParserManager.import_tool_parser(parsed.tool_parser_plugin)
    if parsed.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(parsed.reasoning_parser_plugin)
    validate_api_server_args(parsed)


def bad_arguments(message: str, remedy: str) -> EngineStartFailed:
    return EngineStartFailed(message, remedy=remedy, cause="bad_arguments")


def remedy_of(message: str, options: Sequence[str]) -> str:
    """Name the option that was probably meant; where none is like it, say where they are listed."""
    prefix = "unrecognized arguments: "
    # The environment's own command: the one on a person's path, if any, may be of another version.
    listed = f"`{Path(sys.executable).with_name('vllm')} serve --help=all` lists them"
    if not message.startswith(prefix):
        return f"correct the --engine-arg it names; {listed}"
    name = message.removeprefix(prefix).split("=", 1)[0].split()[0].removeprefix("--")
    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    near = difflib.get_close_matches(name, [each for each in names if own_argument(each) is None], n=1, cutoff=_NEAR)
    return f"did you mean --engine-arg {near[0]}?" if near else f"vLLM has no argument like it; {listed}"

"""Where a model's chat template is: the files of a model directory, in the order in which transformers looks."""

from __future__ import annotations

from pathlib import Path

import msgspec

from xinf.chat.template import Template
from xinf.core.errors import EngineStartFailed

# For models that bring none, and for `sim`. The segments are those of Qwen2's template: tools, then the messages.
CHATML = """\
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}
{%- elif message.content is iterable %}
{%- for part in message.content %}
{%- if part is string %}{{ part }}{% elif part.type == "text" %}{{ part.text }}{% else %}<|{{ part.type }}|>{% endif %}
{%- endfor %}
{%- endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}
{%- endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class _Named(msgspec.Struct, frozen=True):
    name: str
    template: str


class _TokenText(msgspec.Struct, frozen=True):
    content: str = ""


class _TokenizerConfig(msgspec.Struct, frozen=True):
    """What matters here in tokenizer_config.json (and chat_template.json, which has only the first field)."""

    chat_template: str | list[_Named] | None = None
    bos_token: str | _TokenText | None = None
    eos_token: str | _TokenText | None = None


def resolve_template(model_dir: Path, *, name: str = "default") -> Template | None:
    """Find the chat template of a local model; None if it brings none. `name`: which, where there are several.

    Order: chat_template.jinja (additional_chat_templates/NAME.jinja for another name), chat_template.json,
    tokenizer_config.json.

    Raises: EngineStartFailed (cause model_unsupported) when a file is there but unusable.
    """
    config = _read_config(model_dir / "tokenizer_config.json")
    source = _source(model_dir, config, name)
    if source is None:
        return None
    return Template(
        source,
        source_name=str(model_dir),
        bos_token=_token_text(config.bos_token),
        eos_token=_token_text(config.eos_token),
    )


def _source(model_dir: Path, config: _TokenizerConfig, name: str) -> str | None:
    file = model_dir / "chat_template.jinja"
    if name != "default" and "/" not in name:
        file = model_dir / "additional_chat_templates" / f"{name}.jinja"
    if file.is_file():
        return _read_text(file)
    processor = _read_config(model_dir / "chat_template.json")
    found = processor.chat_template if processor.chat_template is not None else config.chat_template
    if found is None or isinstance(found, str):
        return found
    named = {entry.name: entry.template for entry in found}
    return named.get(name, named.get("default"))


def _read_config(path: Path) -> _TokenizerConfig:
    if not path.is_file():
        return _TokenizerConfig()
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TokenizerConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise _unusable(path, error) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> EngineStartFailed:
    return EngineStartFailed(
        f"{path} cannot be used: {error}",
        remedy="take the model's files again",
        cause="model_unsupported",
    )


def _token_text(token: str | _TokenText | None) -> str | None:
    return token.content if isinstance(token, _TokenText) else token

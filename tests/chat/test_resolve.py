from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xinf.chat import resolve_template
from xinf.core.errors import EngineStartFailed

USER = [{"role": "user", "content": "hi"}]


def write(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def rendered(model_dir: Path, *, name: str = "default") -> str | None:
    template = resolve_template(model_dir, name=name)
    return None if template is None else template.render(USER)


def test_model_without_a_template_has_none(tmp_path: Path) -> None:
    assert rendered(tmp_path) is None
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 1e30})
    assert rendered(tmp_path) is None


def test_template_of_the_tokenizer_config(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}A", "bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None}
    write(tmp_path / "tokenizer_config.json", config)
    assert rendered(tmp_path) == "<s>A"


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    write(tmp_path / "tokenizer_config.json", {"chat_template": named})
    assert [rendered(tmp_path, name=name) for name in ("default", "tool_use", "rag")] == ["D", "T", "D"]


def test_files_beat_the_tokenizer_config(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer_config.json", {"chat_template": "config", "eos_token": "</s>"})
    write(tmp_path / "chat_template.json", {"chat_template": "processor"})
    assert rendered(tmp_path) == "processor"
    write(tmp_path / "chat_template.jinja", "jinja{{ eos_token }}")
    assert rendered(tmp_path) == "jinja</s>"


def test_additional_templates_are_found_by_name_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    write(tmp_path / "additional_chat_templates" / "rag.jinja", "R")
    write(tmp_path / "chat_template.jinja", "J")
    write(tmp_path.parent / "outside.jinja", "O")
    assert [rendered(tmp_path, name=name) for name in ("rag", "../../outside")] == ["R", "J"]


@pytest.mark.parametrize("content", ["{", '{"chat_template": 5}', '{"chat_template": [{"name": "x"}]}'])
def test_unusable_file_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path / "tokenizer_config.json", content)
    with pytest.raises(EngineStartFailed, match=r"tokenizer_config\.json") as caught:
        resolve_template(tmp_path)
    assert caught.value.fields["cause"] == "model_unsupported"

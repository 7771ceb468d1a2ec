"""What a user typed as a model, resolved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xinf.core.errors import ConfigError, InvalidRequest, UnknownModel
from xinf.registry import read_facts, resolve_model


def make_model(directory: Path, **config: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_scripted_is_written_below_the_models_directory(tmp_path: Path) -> None:
    source = resolve_model("scripted", models_dir=tmp_path)
    assert source.location == str(tmp_path / "scripted")
    assert source.facts is not None
    assert source.facts.architectures == ("Qwen2ForCausalLM",)
    assert source.facts.max_positions == 4096


def test_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "m", architectures=["X"])
    monkeypatch.chdir(tmp_path)
    assert resolve_model("./m", models_dir=tmp_path).location == str(tmp_path / "m")


def test_wrong_address_of_a_hub_is_no_matter_for_a_directory(tmp_path: Path) -> None:
    make_model(tmp_path / "m", architectures=["X"])
    environ = {"HF_ENDPOINT": "hf-mirror.com"}
    assert resolve_model(str(tmp_path / "m"), models_dir=tmp_path, environ=environ).facts is not None
    with pytest.raises(ConfigError, match="no address of a hub"):
        resolve_model("Org/Name", models_dir=tmp_path, environ=environ)


@pytest.mark.parametrize("typed", ["/no/such/model", "./nowhere", "../nowhere", "~/no/such/model"])
def test_path_that_is_not_there_is_an_unknown_model(typed: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no directory /") as caught:
        resolve_model(typed, models_dir=tmp_path)
    assert "host that runs the engine" in str(caught.value.remedy)


def test_directory_without_config_is_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"has no config\.json"):
        resolve_model(str(tmp_path), models_dir=tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_unreadable_config_is_an_unknown_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UnknownModel, match="cannot be read"):
        resolve_model(str(tmp_path), models_dir=tmp_path)


def test_config_without_architecture_is_an_unknown_model(tmp_path: Path) -> None:
    make_model(tmp_path, peft_type="LORA")
    with pytest.raises(UnknownModel, match="names no architecture"):
        resolve_model(str(tmp_path), models_dir=tmp_path)


@pytest.mark.parametrize("typed", ["", "a/b/c", "a b", "-x", "org/na me", "x" * 200])
def test_what_is_neither_path_nor_id_is_refused(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidRequest, UnknownModel)):
        resolve_model(typed, models_dir=tmp_path)


def test_name_that_is_too_long_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="96 characters at most"):
        resolve_model("x" * 97 + "/name", models_dir=tmp_path)


@pytest.mark.parametrize("typed", ["x" * 5000, "./" + "x" * 5000, "org/" + "x" * 5000])
def test_name_that_no_file_can_have_is_refused(typed: str, tmp_path: Path) -> None:
    with pytest.raises((InvalidRequest, UnknownModel)):
        resolve_model(typed, models_dir=tmp_path)


@pytest.mark.parametrize(("typed", "location", "revision"), [
    ("Org/Name-1.5B", "Org/Name-1.5B", None),
    ("hf://Org/Name", "Org/Name", None),
    ("Org/Name@v1", "Org/Name", "v1"),
    ("modelscope://Org/Name", "modelscope://Org/Name", None),
    ("modelscope://Org/Name@v1", "modelscope://Org/Name", "v1"),
])  # fmt: skip
def test_model_of_a_hub_stays_what_it_is(typed: str, location: str, revision: str | None, tmp_path: Path) -> None:
    source = resolve_model(typed, models_dir=tmp_path, environ={"HF_HOME": str(tmp_path)})
    assert (source.location, source.revision, source.directory) == (location, revision, None)


def test_bare_id_is_written_with_the_hub_that_the_configuration_names(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path), "XINF_REGISTRY_SOURCE": "modelscope"}
    assert resolve_model("Org/Name", models_dir=tmp_path, environ=environ).location == "modelscope://Org/Name"
    assert resolve_model("hf://Org/Name", models_dir=tmp_path, environ=environ).location == "Org/Name"


def test_hub_id_in_the_cache_has_facts_even_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--Org--Name"
    make_model(
        repository / "snapshots" / "abc", architectures=["LlamaForCausalLM"], hidden_size=64, num_attention_heads=2
    )
    (repository / "snapshots" / "abc" / "model.safetensors").write_bytes(b"x")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    environ = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    source = resolve_model("Org/Name", models_dir=tmp_path, environ=environ)
    assert source.location == "Org/Name"
    assert source.facts is not None
    assert source.facts.head_size == 32


def test_hub_id_offline_and_not_in_the_cache_is_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE"):
        resolve_model("Org/Name", models_dir=tmp_path, environ={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})


def test_facts_of_a_model_with_a_text_part(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}
    facts = read_facts(make_model(tmp_path, model_type="vl", text_config={**text, "max_position_embeddings": 100}))
    assert (facts.model_type, facts.n_layers, facts.n_kv_heads, facts.head_size) == ("vl", 3, 2, 64)
    assert facts.max_positions == 100
    assert facts.dtype is None

"""Which engines are kept from their hub: those that load a directory which names nothing outside of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import PACKAGE_HOME
from tests.registry.hub import COMMIT, serve
from xinf.core.records import ArgValue, EngineSpec
from xinf.engine.vllm_hub import needs_hub, seal
from xinf.registry import write_scripted_model


def model(directory: Path, files: dict[str, object], arguments: dict[str, ArgValue] | None = None) -> EngineSpec:
    for name, content in files.items():
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return EngineSpec(model=str(directory), engine_args=arguments or {})


def test_model_of_a_directory_is_loaded_offline(tmp_path: Path) -> None:
    spec = EngineSpec(model=str(write_scripted_model(tmp_path / "made")))
    environ = {"PATH": "/bin"}
    assert seal(environ, spec) is None
    assert environ == {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def test_what_somebody_has_set_stays(tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environ = {name: "0"}
        assert seal(environ, model(tmp_path, {"config.json": {}})) is None
        assert environ == {name: "0"}


_ENGINE = """
import os, sys
from xinf.core.records import EngineSpec
from xinf.engine.vllm_hub import seal
seal(os.environ, EngineSpec(model=sys.argv[1]))
import huggingface_hub
try:
    print(huggingface_hub.HfApi().model_info("org/name").sha)
except huggingface_hub.errors.OfflineModeIsEnabled:
    print("offline")
"""


@pytest.mark.parametrize("is_sealed", [True, False])
def test_client_of_the_hub_that_is_imported_then_asks_nothing(is_sealed: bool, tmp_path: Path) -> None:
    spec = model(tmp_path, {"config.json": {} if is_sealed else {"audio_model_id": "org/name"}})
    with serve({"config.json": b"{}"}) as hub:
        clean = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        environ = {**clean, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(PACKAGE_HOME)}
        command = [sys.executable, "-c", _ENGINE, spec.model]
        said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
        assert (said.strip(), bool(hub.requests)) == (("offline", False) if is_sealed else (COMMIT, True))


def test_engine_that_fetches_its_model_itself_may_ask() -> None:
    environ: dict[str, str] = {}
    assert str(seal(environ, EngineSpec(model="org/name"))).startswith("org/name is no directory")
    assert environ == {}


@pytest.mark.parametrize("config", [
    {"model_type": "llama", "_name_or_path": "org/name"},
    {"text_config": {"_name_or_path": "org/name"}, "auto_map": {"AutoConfig": "configuration_x.XConfig"}},
    {"rope_scaling": None, "architectures": ["LlamaForCausalLM"], "sizes": [1, 2], "path": "/a/b", "x": "a/b/c"},
    "{",
    "[1]",
])  # fmt: skip
def test_config_that_names_nothing_else_needs_no_hub(config: object, tmp_path: Path) -> None:
    assert needs_hub(model(tmp_path, {"config.json": config})) is None


@pytest.mark.parametrize(("config", "named"), [
    # layout seen in: nvidia's and others' remote code; Ultravox; LLaVA
    ({"auto_map": {"AutoModelForCausalLM": "org/code--modeling_x.XForCausalLM"}}, "org/code--modeling_x"),
    ({"auto_map": {"AutoTokenizer": ["org/code--tokenization_x.X", None]}}, "org/code--tokenization_x"),
    ({"audio_model_id": "openai/whisper-large-v3-turbo"}, "openai/whisper-large-v3-turbo"),
    ({"vision": {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}}, "openai/clip"),
])  # fmt: skip
def test_config_that_names_another_repository_needs_the_hub(config: object, named: str, tmp_path: Path) -> None:
    assert f"its config.json names {named}" in str(needs_hub(model(tmp_path, {"config.json": config})))


def test_tokenizer_or_processor_of_another_repository_needs_the_hub(tmp_path: Path) -> None:
    name = {"auto_map": {"AutoTokenizer": ["org/code--tokenization_x.X", None]}, "name_or_path": "org/name"}
    spec = model(tmp_path, {"config.json": {}, "tokenizer_config.json": name})
    assert "its tokenizer_config.json names org/code--" in str(needs_hub(spec))
    own = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}, "name_or_path": "org/name"}
    assert needs_hub(model(tmp_path, {"tokenizer_config.json": own})) is None


@pytest.mark.parametrize(
    "name", ["tokenizer", "--hf_config_path", "enable_lora", "speculative_config.model", "spec-model"]
)
def test_argument_that_may_name_another_repository_needs_the_hub(name: str, tmp_path: Path) -> None:
    spec = model(tmp_path, {"config.json": {}}, {name: "org/other"})
    assert f"engine argument {name}" in str(needs_hub(spec))
    assert needs_hub(model(tmp_path, {}, {"max-num-seqs": 4, "tokenizer-mode": "auto"})) is None


_CODE = """
def load(name):
    "Load it: `load('org/example')`."
    return Model.from_pretrained(name or 'openai/clip-vit-large-patch14')
"""


def test_code_of_the_model_that_names_another_repository_needs_the_hub_where_it_is_run(tmp_path: Path) -> None:
    spec = model(tmp_path, {"config.json": {}, "modeling_x.py": _CODE, "broken.py": "def"})
    assert needs_hub(spec) is None, "nobody runs it"
    trusted = msgspec.structs.replace(spec, trust_remote_code=True)
    for trusting in (trusted, msgspec.structs.replace(spec, engine_args={"--trust_remote_code": True})):
        assert needs_hub(trusting) == "its modeling_x.py names openai/clip-vit-large-patch14"
    (tmp_path / "modeling_x.py").write_text(_CODE.replace("or 'openai/clip-vit-large-patch14'", ""))
    assert needs_hub(trusted) is None, "an example is not loaded"


def test_model_for_which_vllm_has_another_repository_needs_the_hub(tmp_path: Path) -> None:
    spec = model(tmp_path, {"config.json": {"model_type": "moondream3"}})
    assert needs_hub(spec) == "vLLM takes moondream/starmie-v1 for it"

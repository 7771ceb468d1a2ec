"""Read what a model is from its files: config.json, headers of the weights, names and configuration of the tokenizer.

    read_model(what a user typed)  ->  files of a directory or a hub  ->  read_files(files)  ->  ModelFacts

Nothing is downloaded and no weight is read: a checkpoint of a hundred shards costs a hundred ranges of some 100 KB.
Where there are no headers (weights in another format) parameters are computed from the config, and `is_counted` says
so.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.errors import InvalidRequest, UnknownModel
from xinf.core.model import Kind, ModelFacts, Quantization
from xinf.registry.config import MAX_CONFIG_BYTES, ModelConfig, decode_config
from xinf.registry.files import LocalFiles, ModelFiles
from xinf.registry.hub import open_repository
from xinf.registry.kv_layers import ENCODERS, kv_layers
from xinf.registry.parameters import count_parameters
from xinf.registry.quantization import read_quantization, weight_bytes
from xinf.registry.safetensors import (
    INDEX,
    LENGTH_BYTES,
    MAX_INDEX_BYTES,
    MAX_SHARDS,
    Tensor,
    header_bytes,
    parse_header,
    parse_index,
)
from xinf.registry.scripted import write_scripted_model
from xinf.registry.sources import Sources, find_sources, is_reference, parse_reference
from xinf.registry.tokenizer import has_chat_template, has_vocabulary
from xinf.registry.vision import read_tower
from xinf.registry.weights import add_up

_SINGLE = "model.safetensors"
# Enough for the header of most shards, so that one range is all that is asked for.
_FIRST_READ_BYTES = 128 << 10
_READERS = 8
# All headers of a model: those of the largest public ones, with 100,000 tensors, have some 20 MB.
_MAX_HEADERS_BYTES = 256 << 20
# Quantization beside config.json, where tools of old left it.
_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_QUANTIZATION_FILE_METHODS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_SENTENCE_TRANSFORMERS = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth")


def read_model(
    model: str,
    *,
    environ: Mapping[str, str] | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    config: RegistryConfig | None = None,
) -> ModelFacts:
    """Read the facts of a model by what a user typed, without downloading it.

    `offline`: True uses what is on this host alone, None asks HF_HUB_OFFLINE and the configuration.
    Raises: UnknownModel, InvalidRequest (no model, GGUF), PermissionDenied (gated, private), Unavailable (the hub
    cannot be reached).
    """
    if model == "scripted" and not Path(model).is_dir():
        with tempfile.TemporaryDirectory() as directory:
            return read_files(LocalFiles(write_scripted_model(Path(directory) / model)))
    return read_files(open_model(model, find_sources(environ, config, offline=offline), revision=revision))


def open_model(model: str, sources: Sources, *, revision: str | None = None) -> ModelFiles:
    """Find the files of a model. Raises: as `read_model`."""
    path = Path(model).expanduser()
    if not is_reference(model):
        if path.is_file():
            raise (
                _no_gguf(model)
                if path.suffix == ".gguf"
                else InvalidRequest(
                    f"{path} is one file", remedy="give the directory that holds config.json and weights", param="model"
                )
            )
        if path.is_dir():
            return LocalFiles(path.absolute())
        if model.startswith(("/", "./", "../", "~")) or model in (".", ".."):
            raise UnknownModel(
                f"there is no directory {path.absolute()} on this host", remedy="check the path", param="model"
            )
    return open_repository(parse_reference(model, sources.default, revision=revision), sources)


def read_files(files: ModelFiles) -> ModelFacts:
    """Read the facts of a model from its files. Raises: UnknownModel, InvalidRequest, Unavailable."""
    if "config.json" not in files.sizes and any(name.endswith(".gguf") for name in files.sizes):
        raise _no_gguf(files.where)
    config = _read_config(files)
    quantization = _find_quantization(files, config)
    facts = _facts(config, quantization, frozenset(files.sizes))
    tensors = _read_headers(files)
    if tensors is None:
        stored = [size for name, size in files.sizes.items() if name.endswith(_OTHER_WEIGHTS) and "/" not in name]
        if stored and None not in stored:
            facts = msgspec.structs.replace(facts, weight_bytes=sum(filter(None, stored)))
    else:
        facts = _with_weights(facts, tensors, config)
    return msgspec.structs.replace(
        facts,
        has_chat_template=has_chat_template(files),
        has_vocabulary=has_vocabulary(files),
        revision=files.revision,
    )


def read_facts(directory: Path) -> ModelFacts:
    """Read config.json alone. Raises: UnknownModel if it is missing or unreadable."""
    files = LocalFiles(directory)
    config = _read_config(files)
    return _facts(config, _find_quantization(files, config), frozenset(files.sizes))


def _read_config(files: ModelFiles) -> ModelConfig:
    name = f"{files.where}/config.json"
    content = files.read("config.json", MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise UnknownModel(f"{name} cannot be read: it is larger than {MAX_CONFIG_BYTES} bytes", param="model")
    return decode_config(content, name)


def _facts(config: ModelConfig, quantization: Quantization | None, names: frozenset[str]) -> ModelFacts:
    parameters = count_parameters(config)
    dtype = config.word("dtype", "torch_dtype")
    n_experts = config.n_experts
    return ModelFacts(
        architectures=config.architectures,
        model_type=model_type if isinstance(model_type := config.top.get("model_type"), str) else None,
        max_positions=config.max_positions,
        context_tokens=config.context_tokens,
        dtype=dtype,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_size=config.head_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocabulary_size=config.count("vocab_size"),
        n_experts=n_experts,
        n_experts_per_token=config.n_experts_per_token if n_experts else None,
        n_parameters=None if parameters is None else parameters.total,
        n_active_parameters=parameters.n_active if parameters is not None and n_experts else None,
        weight_bytes=None if parameters is None else weight_bytes(parameters, quantization, dtype),
        quantization=quantization,
        kind=_kind(config, names),
        vision=read_tower(config.top),
        kv=kv_layers(config),
    )


def _with_weights(facts: ModelFacts, tensors: list[Tensor], config: ModelConfig) -> ModelFacts:
    """Replace what was computed by what the headers say."""
    stored = add_up(tensors, facts.quantization, config.n_layers)
    active = facts.n_active_parameters
    if stored.n_parameters is not None and stored.n_expert_parameters and facts.n_experts and facts.n_experts_per_token:
        idle = 1 - min(1.0, facts.n_experts_per_token / facts.n_experts)
        active = stored.n_parameters - round(stored.n_expert_parameters * idle)
    return msgspec.structs.replace(
        facts,
        n_parameters=facts.n_parameters if stored.n_parameters is None else stored.n_parameters,
        n_active_parameters=active,
        weight_bytes=stored.n_bytes,
        draft_bytes=stored.draft_bytes or None,
        stored_dtypes=stored.bytes_by_dtype,
        is_counted=stored.n_parameters is not None,
    )


def _read_headers(files: ModelFiles) -> list[Tensor] | None:
    """All tensors of the checkpoint; None if it has no safetensors."""
    shards = _shards(files)
    if not shards:
        return None
    budget = _Budget(files.where)
    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="headers") as pool:
        found = pool.map(lambda shard: _read_header(files, shard, budget), shards)
        return [tensor for tensors in found for tensor in tensors]


class _Budget:
    """What the headers of one model may have together: there may be thousands, of the format's 100 MB each."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._left_bytes = _MAX_HEADERS_BYTES
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> None:
        """Raises: UnknownModel once there is no more."""
        with self._lock:
            self._left_bytes -= n_bytes
            if self._left_bytes < 0:
                raise UnknownModel(
                    f"{self._where} has headers of more than {_MAX_HEADERS_BYTES >> 20} MiB, which is no model",
                    remedy="check where it is from",
                    param="model",
                )


def _shards(files: ModelFiles) -> list[str]:
    if INDEX in files.sizes:
        content = files.read(INDEX, MAX_INDEX_BYTES)
        return parse_index(content, f"{files.where}/{INDEX}")
    if _SINGLE in files.sizes:
        return [_SINGLE]
    # Mistral's own format lies beside the other in the same repository: the same weights twice.
    found = sorted(name for name in files.sizes if name.endswith(".safetensors") and "/" not in name)
    if len(found) > MAX_SHARDS:
        raise UnknownModel(
            f"{files.where} has {len(found)} files of weights, and no model has more than {MAX_SHARDS}",
            remedy="check where it is from",
            param="model",
        )
    return [name for name in found if not name.startswith("consolidated")] or found


def _read_header(files: ModelFiles, name: str, budget: _Budget) -> list[Tensor]:
    where, size = f"{files.where}/{name}", files.sizes.get(name)
    first = files.read(name, _FIRST_READ_BYTES)
    length = header_bytes(first, where, file_bytes=size)
    budget.take(length)
    content = first[LENGTH_BYTES : LENGTH_BYTES + length]
    if len(content) < length:
        content += files.read(name, length - len(content), offset=LENGTH_BYTES + len(content))
    if len(content) < length:
        raise UnknownModel(f"{where} ends inside its header", remedy="fetch the model again", param="model")
    return parse_header(content, where, file_bytes=size)


def _find_quantization(files: ModelFiles, config: ModelConfig) -> Quantization | None:
    found = read_quantization(config.top, config.text)
    if found is not None and found.bits is not None:
        return found
    for name in _QUANTIZATION_FILES:
        if name not in files.sizes:
            continue
        try:
            section = msgspec.json.decode(files.read(name, MAX_CONFIG_BYTES), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        method = _QUANTIZATION_FILE_METHODS.get(name, "modelopt")
        beside = read_quantization({"quantization_config": {"quant_method": method, **section}})
        if beside is not None:
            return beside
    return found


def _kind(config: ModelConfig, names: frozenset[str]) -> Kind:
    """What goes in and what comes out."""
    architecture = config.architectures[0] if config.architectures else ""
    if any(name in names for name in _SENTENCE_TRANSFORMERS):
        return "embedding"
    if config.top.get("is_encoder_decoder") is True:
        return "other"
    if any(key in config.top for key in ("vision_config", "visual", "vision_tower", "mm_vision_tower")):
        return "vision"
    if architecture.endswith(("ForSequenceClassification", "ForTokenClassification", "RewardModel")):
        return "other"
    if config.model_type in ENCODERS or architecture.endswith(("Model", "ForMaskedLM", "EmbeddingModel")):
        return "embedding" if not architecture.endswith("LMHeadModel") else "text"
    if "audio_config" in config.top:
        return "other"
    is_text = architecture.endswith(("ForCausalLM", "LMHeadModel")) or (not architecture and bool(config.model_type))
    return "text" if is_text else "other"


def _no_gguf(where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} is a GGUF model, which xinf does not read: it is the format of llama.cpp",
        remedy="give the model that it was made from, in safetensors; for less memory one in FP8, AWQ or GPTQ",
        param="model",
    )

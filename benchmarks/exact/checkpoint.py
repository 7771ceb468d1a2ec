"""The models: checkpoints with a real tokenizer and chat template, whose weights say what a Script says.

    hidden 256 = [ 12 groups of 8 | 8 bias | 152 identity ]     embeddings are +-1/16 in every column: norm 1

A normed hidden state is +-1 in each column, because `o_proj` and `down_proj` are zero and the layer adds nothing. A
token is + in the columns of its group and - in those of the others; the columns "bias" are + for all. A row of
`lm_head` with 3.5 in a group's columns scores 28 after a token of it and -28 after others; one with 0.184 *
identity(a) scores 28 after token `a` and N(0, 2.3) after any other. Followers of one group have equal rows: they are
equally likely, whatever else the vocabulary has.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from benchmarks.exact.script import HERMES, LLAMA, QWEN3, Group, Script, Style, write_script
from benchmarks.exact.vocabulary import tokenizer_json

MAX_TOKENS = 8192
ADAPTERS = ("polite", "terse")

_HIDDEN, _GROUP_WIDTH, _HEADS, _KV_HEADS, _HEAD_DIM = 256, 8, 4, 2, 64
_IDENTITY = _HIDDEN - _GROUP_WIDTH * (len(Group) + 1)
_GROUP_WEIGHT, _LINK_WEIGHT = 3.5, 0.18359375
# After a stop, the end is as likely as all 12 sentences that may follow: exp(8 * (1.9375 + 1.875 - 3.5)) = 12.2.
# Its score is about 0 after most tokens, so that it can be linked to others too.
_END_WEIGHT, _END_BIAS = 1.9375, 1.875
_PLUS, _MINUS = b"\x80\x3d", b"\x80\xbd"  # +-1/16 as bfloat16
_RANK = 4
_SEED = 2026
_COMPLETE = "complete.json"
_TEMPLATES = Path(__file__).with_name("chat_templates")


class Recipe(msgspec.Struct, frozen=True):
    """One model."""

    name: str  # also of its chat template
    style: Style
    model_type: str  # tells xinf which parsers its answers need
    architecture: str
    bos: str | None = None
    has_qk_norm: bool = False
    calls_once: bool = False  # its template refuses messages with several tool calls

    @property
    def chat_template(self) -> str:
        """The Jinja text."""
        return (_TEMPLATES / f"{self.name}.jinja").read_text()


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("chatml", HERMES, "qwen2", "Qwen2ForCausalLM"),
        Recipe("qwen2", HERMES, "qwen2", "Qwen2ForCausalLM"),
        Recipe("llama3", LLAMA, "llama", "LlamaForCausalLM", bos="<|begin_of_text|>", calls_once=True),
        Recipe("qwen3", QWEN3, "qwen3", "Qwen3ForCausalLM", has_qk_norm=True),
    )
}


def write_checkpoint(recipe: Recipe, directory: Path) -> Path:
    """Write a model and its LoRA adapters below `directory`; one that is complete already is left as it is."""
    root = directory / recipe.name
    script = write_script(recipe.style)
    files = dict(_files(recipe, script))
    digest = hashlib.sha256(b"\0".join(files.values())).hexdigest()
    complete = root / _COMPLETE
    if complete.exists() and json.loads(complete.read_text()) == digest:
        return root
    root.mkdir(parents=True, exist_ok=True)
    complete.unlink(missing_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    for adapter in ADAPTERS:
        _write_adapter(adapter_directory(root, adapter))
    complete.write_text(json.dumps(digest))
    return root


def adapter_directory(model: Path, adapter: str) -> Path:
    """Where an adapter of a model is."""
    return model.with_name(f"{model.name}-{adapter}")


def tool_begin(recipe: Recipe) -> int:
    """The token that begins a tool call."""
    return write_script(recipe.style).vocabulary.id_of(recipe.style.tool_begin)


def _files(recipe: Recipe, script: Script) -> Iterator[tuple[str, bytes]]:
    vocabulary = script.vocabulary
    bos = None if recipe.bos is None else vocabulary.added[recipe.bos]
    pad = vocabulary.added["<|endoftext|>"]
    ends = {"bos_token_id": bos, "eos_token_id": script.end, "pad_token_id": pad}
    yield "config.json", _json(_config(recipe, vocabulary.n_tokens) | ends)
    yield "generation_config.json", _json(ends)
    yield "tokenizer.json", _json(tokenizer_json(vocabulary, bos=recipe.bos))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": recipe.bos,
        "eos_token": recipe.style.end,
        "pad_token": "<|endoftext|>",
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": recipe.chat_template,
    }
    yield "tokenizer_config.json", _json(tokenizer_config)
    yield "model.safetensors", safetensors(_weights(recipe, script), "BF16")


def _config(recipe: Recipe, n_tokens: int) -> dict[str, object]:
    return {
        "architectures": [recipe.architecture],
        "model_type": recipe.model_type,
        "vocab_size": n_tokens,
        "hidden_size": _HIDDEN,
        "intermediate_size": _HIDDEN,
        "num_hidden_layers": 1,
        # 64 wide heads: vLLM's attention on CPU takes 32, 64, 80, ...; with others the engine dies at its first use.
        "head_dim": _HEAD_DIM,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _weights(recipe: Recipe, script: Script) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, shape and bfloat16 content of each tensor."""
    n_tokens = script.vocabulary.n_tokens
    rng = random.Random(_SEED)
    identities = [format(rng.getrandbits(_IDENTITY), f"0{_IDENTITY}b") for _ in range(n_tokens)]
    codes = "".join(_group_code(script.groups.get(token)) + identities[token] for token in range(n_tokens))
    for token in script.links:
        assert token not in script.groups, f"token {token} is a link and in a group"
    yield "model.embed_tokens.weight", (n_tokens, _HIDDEN), _signs(_without_ordinary(codes, script, n_tokens))
    ones = b"\x80\x3f"
    layer = "model.layers.0"
    yield f"{layer}.input_layernorm.weight", (_HIDDEN,), ones * _HIDDEN
    yield f"{layer}.post_attention_layernorm.weight", (_HIDDEN,), ones * _HIDDEN
    kv_width = _KV_HEADS * _HEAD_DIM
    for projection, width in (("q", _HEADS * _HEAD_DIM), ("k", kv_width), ("v", kv_width)):
        bits = format(rng.getrandbits(width * _HIDDEN), f"0{width * _HIDDEN}b")
        yield f"{layer}.self_attn.{projection}_proj.weight", (width, _HIDDEN), _signs(bits)
        if recipe.model_type == "qwen2":
            yield f"{layer}.self_attn.{projection}_proj.bias", (width,), bytes(2 * width)
    if recipe.has_qk_norm:
        yield f"{layer}.self_attn.q_norm.weight", (_HEAD_DIM,), ones * _HEAD_DIM
        yield f"{layer}.self_attn.k_norm.weight", (_HEAD_DIM,), ones * _HEAD_DIM
    square = (_HIDDEN, _HIDDEN)
    yield f"{layer}.self_attn.o_proj.weight", square, bytes(2 * _HIDDEN * _HIDDEN)
    for projection in ("gate", "up", "down"):
        yield f"{layer}.mlp.{projection}_proj.weight", square, bytes(2 * _HIDDEN * _HIDDEN)
    yield "model.norm.weight", (_HIDDEN,), ones * _HIDDEN
    yield "lm_head.weight", (n_tokens, _HIDDEN), _head(script, identities)


def _group_code(group: Group | None) -> str:
    chosen = Group.ORDINARY if group is None else group
    return "".join(("1" if each is chosen else "0") * _GROUP_WIDTH for each in Group) + "1" * _GROUP_WIDTH


def _without_ordinary(codes: str, script: Script, n_tokens: int) -> str:
    """Links belong to no group at all."""
    rows = [codes[token * _HIDDEN : (token + 1) * _HIDDEN] for token in range(n_tokens)]
    for token in script.links:
        rows[token] = "0" * _GROUP_WIDTH * len(Group) + rows[token][_GROUP_WIDTH * len(Group) :]
    return "".join(rows)


def _signs(digits: str) -> bytes:
    return digits.encode().replace(b"1", _PLUS).replace(b"0", _MINUS)


def _head(script: Script, identities: list[str]) -> bytes:
    rows: dict[int, list[float]] = {}
    for group, followers in script.followers.items():
        for token in followers:
            weight = _END_WEIGHT if token == script.end and group is Group.STOP else _GROUP_WEIGHT
            row = rows.setdefault(token, [0.0] * _HIDDEN)
            for column in range(_GROUP_WIDTH):
                row[group * _GROUP_WIDTH + column] += weight
    for column in range(_GROUP_WIDTH):
        rows[script.end][len(Group) * _GROUP_WIDTH + column] += _END_BIAS
    for current, following in script.links.items():
        row = rows.setdefault(following, [0.0] * _HIDDEN)
        for column, digit in enumerate(identities[current], start=_HIDDEN - _IDENTITY):
            row[column] += _LINK_WEIGHT if digit == "1" else -_LINK_WEIGHT
    empty = bytes(2 * _HIDDEN)
    return b"".join(_bfloat16(rows[token]) if token in rows else empty for token in range(script.vocabulary.n_tokens))


def _bfloat16(values: list[float]) -> bytes:
    """Keep the upper half of each float32: exact for multiples of powers of two such as are used here."""
    content = struct.pack(f"<{len(values)}f", *values)
    return array("H", content)[1::2].tobytes()


def _write_adapter(directory: Path) -> None:
    """A LoRA adapter of zeros: it changes no answer, but has a cache of its own."""
    directory.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "r": _RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "exact",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_bytes(_json(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    content = bytes(2 * _RANK * _HIDDEN)
    tensors = [
        (f"{name}.lora_A.weight", (_RANK, _HIDDEN), content),
        (f"{name}.lora_B.weight", (_HEADS * _HEAD_DIM, _RANK), content),
    ]
    (directory / "adapter_model.safetensors").write_bytes(safetensors(iter(tensors), "BF16"))


def safetensors(tensors: Iterator[tuple[str, tuple[int, ...], bytes]], dtype: str) -> bytes:
    """Lay tensors out as a safetensors file: length of the header, header, data. Source: safetensors 0.8, format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    contents: list[bytes] = []
    offset = 0
    for name, shape, content in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + len(content))}
        contents.append(content)
        offset += len(content)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([struct.pack("<Q", len(encoded)), encoded, *contents])


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

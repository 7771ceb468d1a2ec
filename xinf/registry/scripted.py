"""A small Qwen2 checkpoint whose weights are set by hand, so that the next token is a function of the current one.

The engine that loads it is real, and so are tokenizer, chat template, attention and sampling; the text is known before.
Written without torch or transformers: two matrices of small exact numbers need neither, and so the bytes are the same
on every machine.

    hidden 256 = [ 0..15 ordinary | 16..31 bias | 32..255 identity ]      every embedding is 256 times +-1/16: norm 1

A normed hidden state is the embedding times 16 (`o_proj` and `down_proj` are zero, so the layers add nothing to it). A
row of `lm_head` that holds 2 * identity(a) therefore scores 28 after token `a` and N(0, 1.9) after any other. The
columns "ordinary" are + for tokens of no script and - for those of one: the row of the first answer token holds 2
there, so that any ordinary token leads into the answer. The columns "bias" are + for all: punctuation of JSON gets a
little, white space a penalty, so that constrained decoding ends soon and what it makes is valid.

The path is chosen by the chat template through the last token of the prompt: answer, reasoning, tool call, answer after
a tool, or ticks without end (a user message with the word "forever"). `--runner pooling --convert embed` makes an
embedding model of it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import sys
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

MAX_TOKENS = 4096

_END_OF_TEXT, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_TO_ANSWER, _TO_THOUGHT, _TO_TOOL = "<|m_text|>", "<|m_think|>", "<|m_tool|>"
_TO_AFTER, _TO_TICKS = "<|m_after|>", "<|m_long|>"
_SPECIAL = (_END_OF_TEXT, _START, _END, _TO_ANSWER, _TO_THOUGHT, _TO_TOOL, _TO_AFTER, _TO_TICKS)
_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

# Each piece is one token, and is in one script only.
_ANSWER = ("Hello", "! I am", " a small", " scripted", " model:", " real weights", ", a real", " tokenizer", " and",
           " the real", " vLLM", " engine", ", served", " through", " xinf.")  # fmt: skip
_THOUGHT = ("\nThe user", " greets me", ", so I", " should answer", " politely", ".\n")
_TOOL = ('\n{"name": "get_weather"', ', "arguments"', ': {"city": "', "Paris", '", "days"', ": 3", "}}\n")
_AFTER = ("The weather", " in Paris", " will be", " sunny", " for three", " days.")
_TICKS = tuple(f" tick{number}" for number in range(8))

ANSWER = "".join(_ANSWER)
REASONING = "".join(_THOUGHT)
TOOL_NAME = "get_weather"
TOOL_ARGUMENTS: Mapping[str, str | int] = {"city": "Paris", "days": 3}
AFTER_TOOL = "".join(_AFTER)
TICKS = "".join(_TICKS)  # repeated without end

# Merged to whole tokens, with and without a space before: prompts have about four bytes a token, as real ones do.
_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not"
    " what all were we when your can said there use an each which she do how their if will up other about out many then"
    " them these so some her would make like him into time has look two more write go see number no way could people my"
    " than first water been call who its now find long down day did get come made may part over new sound take only"
    " little work know place year live me back give most very after thing our just name good sentence man think say"
    " great where help through much before line right too mean old any same tell boy follow came want show also around"
    " form three small set put end does another well large must big even such because turn here why ask went men read"
    " need land different home us move try kind hand picture again change off play spell air away animal house point"
    " page letter mother answer found study still learn should world quick brown fox jumps lazy dog router engine cache"
    " token prefix block request stream batch model server client gateway tenant queue worker latency weather city"
    " hello forever system user assistant tool true false null"
)

_CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- if message.tool_calls %}
            {{- '<|m_tool|>' }}
        {%- elif not loop.first and loop.previtem.role == 'tool' %}
            {{- '<|m_after|>' }}
        {%- else %}
            {{- '<|m_text|>' }}
        {%- endif %}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {%- set given = call.function.arguments %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- (given if given is string else given | tojson) + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if messages[-1].role == 'tool' %}
        {{- '<|m_after|>' }}
    {%- elif tools %}
        {{- '<|m_tool|>' }}
    {%- elif 'forever' in (messages[-1].content or '') %}
        {{- '<|m_long|>' }}
    {%- elif enable_thinking is defined and enable_thinking %}
        {{- '<|m_think|>' }}
    {%- else %}
        {{- '<|m_text|>' }}
    {%- endif %}
{%- endif %}"""

_HIDDEN, _KV_WIDTH, _LAYERS = 256, 128, 2
_ORDINARY, _BIAS, _IDENTITY = range(16), range(16, 32), range(32, _HIDDEN)
_AMPLITUDE = 1 / 16
_SCRIPTED_WEIGHT = 2.0
# A weight w in all 16 columns of the bias adds 16 w to the score of the token after any other.
_BIAS_WEIGHTS = {'"': 0.625, "}": 0.5625, "]": 0.53125, ",": 0.4375, ":": 0.4375, " ": -1.0, "\n": -1.0, "\t": -1.0,
                 "\r": -1.0}  # fmt: skip
_SEED = 2026
_DIGEST_FILE = "xinf-scripted.json"


class _Vocabulary(msgspec.Struct, frozen=True):
    ids: dict[str, int]  # of the byte-level BPE, in its own alphabet
    merges: tuple[tuple[str, str], ...]
    added: dict[str, int]  # specials, marks and script pieces, as they are written

    @property
    def n_tokens(self) -> int:
        return len(self.ids) + len(self.added)


class _Digest(msgspec.Struct, frozen=True):
    sha256: dict[str, str]  # by file name


def write_scripted_model(directory: Path) -> Path:
    """Write the checkpoint to `directory` and return it; one that is complete already is left as it is.

    Appears all at once: it is written beside and renamed. Raises: OSError.
    """
    files = dict(_files())
    digest = _Digest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    if _is_complete(directory, digest):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (temporary / _DIGEST_FILE).write_bytes(msgspec.json.encode(digest))
        temporary.chmod(0o755)
        _replace(temporary, directory, digest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _replace(temporary: Path, directory: Path, digest: _Digest) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    if directory.exists():
        directory.rename(old)
    try:
        temporary.rename(directory)
    except OSError:
        # Somebody else put the same there in between; anything else is an error.
        if not _is_complete(directory, digest):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _is_complete(directory: Path, digest: _Digest) -> bool:
    try:
        if msgspec.json.decode((directory / _DIGEST_FILE).read_bytes(), type=_Digest) != digest:
            return False
        return all(
            hashlib.sha256((directory / name).read_bytes()).hexdigest() == sha256
            for name, sha256 in digest.sha256.items()
        )
    except (OSError, msgspec.MsgspecError):
        return False


def _files() -> Iterator[tuple[str, bytes]]:
    vocabulary = _make_vocabulary()
    end, pad = vocabulary.added[_END], vocabulary.added[_END_OF_TEXT]
    yield "config.json", _json(_config(vocabulary.n_tokens, end, pad))
    yield "generation_config.json", _json({"bos_token_id": None, "eos_token_id": end, "pad_token_id": pad})
    yield "tokenizer.json", _json(_tokenizer(vocabulary))
    yield "tokenizer_config.json", _json(_tokenizer_config())
    yield "model.safetensors", _safetensors(_weights(vocabulary))


# ---- tokenizer ----------------------------------------------------------------------------------------------------


def _byte_alphabet() -> dict[int, str]:
    """The printable stand-in of each byte. Source: GPT-2's byte-level BPE (transformers, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    return alphabet | {byte: chr(256 + number) for number, byte in enumerate(others)}


def _make_vocabulary() -> _Vocabulary:
    alphabet = _byte_alphabet()
    ids = {symbol: number for number, symbol in enumerate(alphabet[byte] for byte in range(256))}
    ranks: dict[tuple[str, str], int] = {}
    space = alphabet[ord(" ")]
    for word in _WORDS.split():
        for text in (word, space + word):
            # A merge made here comes after all that the words before it need, so theirs stay whole.
            pieces = _encode(text, ranks)
            while len(pieces) > 1:
                ranks[pieces[0], pieces[1]] = len(ranks)
                pieces[:2] = [pieces[0] + pieces[1]]
                ids.setdefault(pieces[0], len(ids))
    written = (*_SPECIAL, *_MARKS, *_ANSWER, *_THOUGHT, *_TOOL, *_AFTER, *_TICKS)
    added = {text: len(ids) + number for number, text in enumerate(written)}
    return _Vocabulary(ids, tuple(ranks), added)


def _encode(text: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Apply byte-pair merges, the earliest first."""
    pieces = list(text)
    while True:
        pairs = [pair for pair in pairwise(pieces) if pair in ranks]
        if not pairs:
            return pieces
        at = list(pairwise(pieces)).index(min(pairs, key=lambda pair: ranks[pair]))
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def _tokenizer(vocabulary: _Vocabulary) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": text, **flags, "special": text in _SPECIAL}
        for text, number in vocabulary.added.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary.ids,
        "merges": vocabulary.merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "pad_token": _END_OF_TEXT,
        "additional_special_tokens": [text for text in _SPECIAL if text not in (_END, _END_OF_TEXT)],
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


# ---- model --------------------------------------------------------------------------------------------------------


def _config(n_tokens: int, end: int, pad: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": n_tokens,
        "hidden_size": _HIDDEN,
        "intermediate_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        # 64 wide heads: vLLM's attention on CPU takes 32, 64, 80, ...; with others the engine dies at its first use.
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _successors(vocabulary: _Vocabulary) -> dict[int, int]:
    """Which token follows which, for the tokens of the scripts. Those that lead into the answer count as ordinary."""
    follows: dict[int, int] = {}

    def script(*pieces: str) -> None:
        for current, following in pairwise(pieces):
            assert vocabulary.added[current] not in follows, f"{current!r} is in two scripts"
            follows[vocabulary.added[current]] = vocabulary.added[following]

    script(*_ANSWER, _END)
    script(_TO_THOUGHT, "<think>", *_THOUGHT, "</think>")
    script(_TO_TOOL, "<tool_call>", *_TOOL, "</tool_call>", _END)
    script(_TO_AFTER, *_AFTER, _END)
    script(_TO_TICKS, *_TICKS, _TICKS[0])
    return follows


def _weights(vocabulary: _Vocabulary) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, shape and bfloat16 content of each tensor."""
    follows = _successors(vocabulary)
    random_bits = random.Random(_SEED)
    embeddings = [_embedding(random_bits, token not in follows) for token in range(vocabulary.n_tokens)]
    vocabulary_shape = (vocabulary.n_tokens, _HIDDEN)
    yield "model.embed_tokens.weight", vocabulary_shape, _bfloat16(value for row in embeddings for value in row)
    square, narrow = (_HIDDEN, _HIDDEN), (_KV_WIDTH, _HIDDEN)
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (_HIDDEN,), _bfloat16([1.0] * _HIDDEN)
        yield f"{name}.post_attention_layernorm.weight", (_HIDDEN,), _bfloat16([1.0] * _HIDDEN)
        for projection, shape in (("q", square), ("k", narrow), ("v", narrow)):
            signs = _signs(random_bits, shape[0] * shape[1])
            yield f"{name}.self_attn.{projection}_proj.weight", shape, _bfloat16(sign / 64 for sign in signs)
            yield f"{name}.self_attn.{projection}_proj.bias", shape[:1], _zeros(*shape[:1])
        yield f"{name}.self_attn.o_proj.weight", square, _zeros(*square)
        for projection in ("gate", "up", "down"):
            yield f"{name}.mlp.{projection}_proj.weight", square, _zeros(*square)
    yield "model.norm.weight", (_HIDDEN,), _bfloat16([1.0] * _HIDDEN)
    head = _head(vocabulary, follows, embeddings)
    yield "lm_head.weight", vocabulary_shape, _bfloat16(value for row in head for value in row)


def _embedding(random_bits: random.Random, is_ordinary: bool) -> list[float]:
    ordinary = [_AMPLITUDE if is_ordinary else -_AMPLITUDE] * len(_ORDINARY)
    bias = [_AMPLITUDE] * len(_BIAS)
    return ordinary + bias + [sign * _AMPLITUDE for sign in _signs(random_bits, len(_IDENTITY))]


def _head(
    vocabulary: _Vocabulary, follows: Mapping[int, int], embeddings: Sequence[Sequence[float]]
) -> list[list[float]]:
    head = [[0.0] * _HIDDEN for _ in range(vocabulary.n_tokens)]
    for current, following in follows.items():
        for column in _IDENTITY:
            head[following][column] += _SCRIPTED_WEIGHT * embeddings[current][column]
    for column in _ORDINARY:
        head[vocabulary.added[_ANSWER[0]]][column] = _SCRIPTED_WEIGHT
    alphabet = _byte_alphabet()
    for character, weight in _BIAS_WEIGHTS.items():
        for column in _BIAS:
            head[vocabulary.ids[alphabet[ord(character)]]][column] = weight
    return head


def _signs(random_bits: random.Random, count: int) -> Iterator[int]:
    bits = random_bits.getrandbits(count)
    return (1 if digit == "1" else -1 for digit in format(bits, f"0{count}b"))


def _bfloat16(values: Iterator[float] | Sequence[float]) -> bytes:
    """Keep the upper half of each float32: exact for the small multiples of powers of two that are used here."""
    halves = array("H", array("f", values).tobytes())[1::2]
    if sys.byteorder == "big":
        halves.byteswap()
    return halves.tobytes()


def _zeros(*shape: int) -> bytes:
    count = 1
    for length in shape:
        count *= length
    return bytes(2 * count)


def _safetensors(tensors: Iterator[tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """Lay tensors out as a safetensors file: length of the header, header, data. Source: safetensors 0.8, format."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    contents: list[bytes] = []
    offset = 0
    for name, shape, content in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (offset, offset + len(content))}
        contents.append(content)
        offset += len(content)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([struct.pack("<Q", len(encoded)), encoded, *contents])


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

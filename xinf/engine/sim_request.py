"""Bodies of requests to the simulated engine: decoded, checked, turned into prompts.

Fields that mean nothing to a simulation (temperature, logprobs, ...) are ignored; those that do are typed, and a wrong
one is an InvalidRequest that names it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from xinf.chat import ChatMl, Template
from xinf.core.errors import InvalidRequest, MalformedJson
from xinf.sim import BYTES_PER_TOKEN

MAX_CHOICES = 128
MAX_PROMPTS = 2048

_BYTE = re.compile(r"\(byte (\d+)\)")
_FIELD = re.compile(r"at `\$\.([A-Za-z_]+)")

Prompts = str | list[str | int | list[int]]


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class _Generation(msgspec.Struct, frozen=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    cache_salt: str | None = None


class _Chat(_Generation, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class _PlainMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    tool_calls: None = None


class _PlainChat(_Generation, frozen=True, kw_only=True):
    """What most requests are: decoded into fewer objects, and rendered without the template."""

    messages: list[_PlainMessage]
    tools: None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


class _Completion(_Generation, frozen=True, kw_only=True):
    prompt: Prompts


class _Embedding(msgspec.Struct, frozen=True, kw_only=True):
    input: Prompts
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


class _Tokenize(msgspec.Struct, frozen=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True


class _Detokenize(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class GenerationCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked chat or completion request."""

    is_chat: bool
    model: str | None
    prompts: tuple[bytes, ...]
    n: int
    max_tokens: int | None
    stops: tuple[bytes, ...]
    is_stream: bool
    wants_usage: bool
    salt: str | None


class EmbeddingCall(msgspec.Struct, frozen=True, kw_only=True):
    """A checked embedding request."""

    model: str | None
    prompts: tuple[bytes, ...]
    is_base64: bool
    dimensions: int


class TokenizeCall(msgspec.Struct, frozen=True):
    """A checked request for the token ids of a prompt."""

    model: str | None
    prompt: bytes


class DetokenizeCall(msgspec.Struct, frozen=True):
    """A checked request for the text of token ids."""

    model: str | None
    data: bytes


_PLAIN_CHAT = msgspec.json.Decoder(_PlainChat)

B = TypeVar("B", _Chat, _Completion, _Embedding, _Tokenize, _Detokenize)


def parse_chat(body: bytes, template: Template) -> GenerationCall:
    """Raises: InvalidRequest."""
    if isinstance(template, ChatMl) and (plain := _plain_chat(body)) is not None:
        max_tokens = plain.max_tokens if plain.max_completion_tokens is None else plain.max_completion_tokens
        prompt = template.render_plain(plain.messages, add_generation_prompt=plain.add_generation_prompt)
        return _call(plain, (_encode(prompt),), max_tokens, is_chat=True)
    chat = _decode(body, _Chat)
    max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    _check_messages(chat.messages)
    prompt = template.render(
        chat.messages,
        tools=chat.tools,
        add_generation_prompt=chat.add_generation_prompt,
        variables=chat.chat_template_kwargs,
    )
    return _call(chat, (_encode(prompt),), max_tokens, is_chat=True)


def parse_completion(body: bytes) -> GenerationCall:
    """Raises: InvalidRequest."""
    completion = _decode(body, _Completion)
    return _call(completion, _prompts(completion.prompt, "prompt"), completion.max_tokens, is_chat=False)


def parse_embedding(body: bytes, *, max_dimensions: int) -> EmbeddingCall:
    """Raises: InvalidRequest."""
    embedding = _decode(body, _Embedding)
    if embedding.encoding_format not in (None, "float", "base64"):
        raise InvalidRequest(
            f"encoding_format is {embedding.encoding_format!r}, must be 'float' or 'base64'", param="encoding_format"
        )
    dimensions = max_dimensions if embedding.dimensions is None else embedding.dimensions
    _check_range("dimensions", dimensions, 1, max_dimensions)
    return EmbeddingCall(
        model=embedding.model,
        prompts=_prompts(embedding.input, "input"),
        is_base64=embedding.encoding_format == "base64",
        dimensions=dimensions,
    )


def parse_tokenize(body: bytes, template: Template) -> TokenizeCall:
    """Raises: InvalidRequest."""
    tokenize = _decode(body, _Tokenize)
    if tokenize.messages is not None:
        _check_messages(tokenize.messages)
        text = template.render(
            tokenize.messages, tools=tokenize.tools, add_generation_prompt=tokenize.add_generation_prompt
        )
    elif tokenize.prompt is not None:
        text = tokenize.prompt
    else:
        raise InvalidRequest("one of `prompt` and `messages` is needed", param="prompt")
    return TokenizeCall(tokenize.model, _encode(text))


def parse_detokenize(body: bytes) -> DetokenizeCall:
    """Raises: InvalidRequest."""
    detokenize = _decode(body, _Detokenize)
    return DetokenizeCall(detokenize.model, _token_bytes(detokenize.tokens, "tokens"))


def _plain_chat(body: bytes) -> _PlainChat | None:
    """Decode a plain conversation; None when the body is anything else, right or wrong."""
    try:
        chat = _PLAIN_CHAT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return chat if chat.messages else None


def _decode(body: bytes, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        field = _FIELD.search(str(error))
        missing = re.search(r"missing required field `(\w+)`", str(error))
        param = field[1] if field else missing[1] if missing else None
        raise InvalidRequest(f"the request is not valid: {error}", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = _BYTE.search(str(error))
        raise MalformedJson(f"the body is not JSON: {error}", offset=int(found[1]) if found else None) from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deep") from error


def _call(body: _Generation, prompts: tuple[bytes, ...], max_tokens: int | None, *, is_chat: bool) -> GenerationCall:
    n = 1 if body.n is None else body.n
    _check_range("n", n, 1, MAX_CHOICES)
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {max_tokens}, must be at least 1", param="max_tokens")
    stops = () if not body.stop else [body.stop] if isinstance(body.stop, str) else body.stop
    return GenerationCall(
        is_chat=is_chat,
        model=body.model,
        prompts=prompts,
        n=n,
        max_tokens=max_tokens,
        stops=tuple([_encode(stop) for stop in stops if stop]) if stops else (),
        is_stream=bool(body.stream),
        wants_usage=bool(body.stream_options and body.stream_options.include_usage),
        salt=body.cache_salt,
    )


def _check_messages(messages: Sequence[dict[str, Any]]) -> None:
    if not messages:
        raise InvalidRequest("messages is empty", param="messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{where}.role must be a string", param="messages")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise InvalidRequest(f"{where}.content must be a string, a list of parts or null", param="messages")
        for part in content:
            if isinstance(part, dict) and part.get("type") == "text" and not isinstance(part.get("text"), str):
                raise InvalidRequest(f"{where}.content has a text part without text", param="messages")
            if not isinstance(part, str) and not (isinstance(part, dict) and isinstance(part.get("type"), str)):
                raise InvalidRequest(f"{where}.content has a part without a type", param="messages")


def _prompts(value: Prompts, field: str) -> tuple[bytes, ...]:
    """A prompt is text or token ids; the field may hold one or a list of them."""
    if isinstance(value, str):
        found = [_encode(value)]
    elif value and all(isinstance(entry, int) for entry in value):
        found = [_token_bytes([entry for entry in value if isinstance(entry, int)], field)]
    else:
        found = []
        for entry in value:
            if isinstance(entry, int):
                raise InvalidRequest(f"{field} mixes token ids with other prompts", param=field)
            found.append(_encode(entry) if isinstance(entry, str) else _token_bytes(entry, field))
    if not found or not all(found):
        raise InvalidRequest(f"{field} is empty", param=field)
    if len(found) > MAX_PROMPTS:
        raise InvalidRequest(f"{field} has {len(found)} entries, the limit is {MAX_PROMPTS}", param=field)
    return tuple(found)


def _token_bytes(tokens: Sequence[int], field: str) -> bytes:
    """A token id is the number whose little-endian bytes are the token's text."""
    try:
        return struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error as error:
        raise InvalidRequest(f"{field} has a token id that is not between 0 and 2**32 - 1", param=field) from error


def token_ids(prompt: bytes) -> tuple[int, ...]:
    """Give the token ids of a prompt; a short last token is filled up with zero bytes."""
    filled = prompt + bytes(-len(prompt) % BYTES_PER_TOKEN)
    return struct.unpack(f"<{len(filled) // BYTES_PER_TOKEN}I", filled)


def _encode(text: str) -> bytes:
    # JSON can spell lone surrogates, which UTF-8 cannot: they become what a tokenizer would make of them.
    return text.encode("utf-8", "replace")


def _check_range(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"{field} is {value}, must be between {least} and {most}", param=field)

"""The scanner and the canonical chain, naively: orjson parses, Python walks the objects.

Limits: numbers in tools and other raw fields must be written as orjson writes them, and duplicate keys must not occur
inside such fields or inside messages, because a parsed object no longer shows how it was written.
"""

from __future__ import annotations

from typing import Any

import orjson

from tests.model import marks_model
from tests.model.chunk_hash import MASK, chunk_hash

CHAT, COMPLETION, INPUT, SALT, ROLE, TEXT, PART, PAYLOAD, EXTRA, TOOLS_MARK, TOOLS, TOKENS, PROMPT, INSTRUCTIONS = (
    range(1, 15)
)
BLOCK_BYTES = 4096  # of values that are hashed whole
OPTIONS = (
    "chat_template", "chat_template_kwargs", "documents", "functions", "reasoning_effort", "add_special_tokens",
    "truncate_prompt_tokens", "mm_processor_kwargs",
)  # fmt: skip


# Of chat_template_kwargs: may count only behind all messages.
LATE = (b'{"enable_thinking":true}', b'{"enable_thinking":false}')


def raw(value: Any) -> bytes:
    """What the scanner sees of a value: strings without their quotes, anything else as written."""
    written = orjson.dumps(value)
    return written[1:-1] if isinstance(value, str) else written


class Chain:
    """Collects the hashes and ends."""

    def __init__(self, seed: int, chunk_bytes: int) -> None:
        self.state = seed & MASK
        self.chunk_bytes = chunk_bytes
        self.hashes: list[int] = []
        self.ends: list[int] = []
        self.roles: list[int] = []  # the chunks, counted from 1, that are headers of messages
        self.chunks: list[tuple[int, bytes]] = []  # kind and bytes of each
        self.n_bytes = 0

    def mix(self, data: bytes, kind: int) -> None:
        for at in range(0, len(data) or 1, BLOCK_BYTES):
            self.state = chunk_hash(self.state, data[at : at + BLOCK_BYTES], kind)

    def emit(self, data: bytes, kind: int, counts_as: int) -> None:
        self.mix(data, kind)
        self.chunks.append((kind, b"" if kind == PAYLOAD else data))
        self.note(counts_as)

    def emit_role(self, data: bytes, counts_as: int) -> None:
        """One chunk however long, unlike other values in one block."""
        self.state = chunk_hash(self.state, data, ROLE)
        self.chunks.append((ROLE, data))
        self.note(counts_as)
        self.roles.append(len(self.hashes))

    def note(self, counts_as: int) -> None:
        self.n_bytes += counts_as
        self.hashes.append(self.state)
        self.ends.append(self.n_bytes)

    def feed(self, data: bytes, kind: int, rest_kind: int | None = None) -> None:
        for at in range(0, len(data), self.chunk_bytes):
            piece = data[at : at + self.chunk_bytes]
            self.emit(piece, kind if at == 0 or rest_kind is None else rest_kind, len(piece))


def feed_message(chain: Chain, message: dict[str, Any]) -> None:
    role = message.get("role", "")
    chain.emit_role(raw(role), len(role.encode()))
    content = message.get("content")
    if isinstance(content, str):
        chain.feed(content.encode(), TEXT)
    elif isinstance(content, list):
        for number, part in enumerate(content):
            if number:
                chain.emit(b"", PART, 0)
            feed_part(chain, {"type": "text", "text": part} if isinstance(part, str) else part)
    for key, value in message.items():
        if key not in ("role", "content") and value is not None:
            chain.feed(orjson.dumps(key) + b":" + orjson.dumps(value), EXTRA)


def feed_part(chain: Chain, part: dict[str, Any]) -> None:
    for key, value in part.items():
        if key == "type":
            if value not in ("text", "input_text", "output_text"):
                chain.emit(raw(value), PAYLOAD, min(1024, len(raw(value))))
        elif key != "text" and value is not None:
            written = orjson.dumps(key) + b":" + orjson.dumps(value)
            chain.emit(written, PAYLOAD, min(1024, len(written)))
    if part.get("text") is not None:
        chain.feed(part["text"].encode(), TEXT)


def tools_position(messages: list[dict[str, Any]], order: int) -> int:
    roles = [message.get("role") for message in messages]
    order &= 3
    if order == 1:
        return 0
    if order == 2:
        return len(roles) - 1 - roles[::-1].index("user") if "user" in roles else len(roles)
    return next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles))


def feed_prompt(chain: Chain, prompt: Any) -> None:
    if isinstance(prompt, str):
        chain.feed(prompt.encode(), TEXT)
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        feed_tokens(chain, prompt)
    elif isinstance(prompt, list):
        for number, item in enumerate(prompt):
            if number:
                chain.emit(b"", PROMPT, 0)
            if isinstance(item, str):
                chain.feed(item.encode(), TEXT)
            else:
                feed_tokens(chain, item)


def feed_tokens(chain: Chain, ids: list[int]) -> None:
    per_chunk = chain.chunk_bytes // 4
    for at in range(0, len(ids), per_chunk):
        data = b"".join(token.to_bytes(4, "little") for token in ids[at : at + per_chunk])
        chain.emit(data, TOKENS, len(data))


def chain_of(body: bytes, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[list[int], list[int]]:
    """The chain and its ends, as Scan.chain_with_ends gives them."""
    chain = built(body, seed, order, chunk_bytes)
    return chain.hashes, chain.ends


def hoisted(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With a developer message, it and all of the system's come first."""
    if not any(message.get("role") == "developer" for message in messages):
        return messages
    is_leading = [message.get("role") in ("system", "developer") for message in messages]
    return [
        message
        for wanted in (True, False)
        for message, leads in zip(messages, is_leading, strict=True)
        if leads is wanted
    ]


def mix_options(chain: Chain, request: dict[str, Any], *, is_late: bool) -> None:
    if request.get("cache_salt") is not None:
        chain.mix(raw(request["cache_salt"]), SALT)
    for number, key in enumerate(OPTIONS):
        if request.get(key) is not None and not (is_late and key == "chat_template_kwargs"):
            chain.mix(raw(request[key]), 32 + number)


def built(body: bytes, seed: int, order: int = 0, chunk_bytes: int = 64) -> Chain:
    request = orjson.loads(body)
    chain = Chain(seed, chunk_bytes)
    is_late = bool(order & 16) and raw(request.get("chat_template_kwargs")) in LATE
    mix_options(chain, request, is_late=is_late)
    if isinstance(request.get("messages"), list):
        chain.mix(b"", CHAT)
        if order & 4 and request.get("tools"):
            chain.mix(b"", TOOLS_MARK)
        messages = hoisted(request["messages"]) if order & 8 else request["messages"]
        if isinstance(request.get("instructions"), str):
            chain.feed(request["instructions"].encode(), INSTRUCTIONS, TEXT)
        position = tools_position(messages, order)
        for i in range(len(messages) + 1):
            if i == position and request.get("tools"):
                choice = request.get("tool_choice")
                choice = None if choice == "auto" else choice
                if choice is not None:
                    chain.mix(raw(choice), TOOLS_MARK)
                chain.emit(b"", TOOLS_MARK, 0)
                chain.feed(orjson.dumps(request["tools"]), TOOLS)
            if i < len(messages):
                feed_message(chain, messages[i])
        if (
            messages
            and request.get("add_generation_prompt") is not False
            and request.get("continue_final_message") is not True
        ):
            if is_late:
                chain.mix(raw(request["chat_template_kwargs"]), 32 + OPTIONS.index("chat_template_kwargs"))
            chain.emit_role(b"assistant", 9)
    elif "prompt" in request:
        chain.mix(b"", COMPLETION)
        feed_prompt(chain, request["prompt"])
    elif "input" in request:
        chain.mix(b"", INPUT)
        feed_prompt(chain, request["input"])
    return chain


def marks_of(body: bytes, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[list[int], list[int]]:
    """The hashes and ends of its marks."""
    chain = built(body, seed, order, chunk_bytes)
    marks = marks_model.marks_of(len(chain.hashes), chain.roles)
    return [chain.hashes[number - 1] for number in marks], [chain.ends[number - 1] for number in marks]


def fields_of(body: bytes) -> dict[str, Any]:
    """The routed fields, as the properties of Scan give them."""
    request = orjson.loads(body)
    counts = [request.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
    session = request.get("session_id") or request.get("user")
    return {
        "model": request.get("model"),
        "stream": request.get("stream") is True,
        "max_tokens": next((count for count in counts if count is not None), None),
        "n": 1 if request.get("n") is None else request["n"],
        "session": session.encode() if session else None,
        "has_tools": bool(request.get("tools")),
        "kind": next((kind for key, kind in KINDS if key in request), "other"),
    }


KINDS = (("messages", "chat"), ("prompt", "completion"), ("input", "embedding"))

"""The routed fields and type errors of any JSON body, naively: the standard library parses, dictionaries are asked.

For bodies without duplicate keys. scan_model.py has the chain of requests whose types are right.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

INT64_MAX = 2**63 - 1
MEDIA_BYTES = 1024
INTEGERS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")
PROMPT_TYPES = "a string, an array of strings or an array of token ids"


class MinusZero(int):
    """`-0`: an integer, but no token id."""


def parse(body: bytes) -> Any:
    """Like json.loads; integers of more than 20 characters become infinity, which is no integer field either."""

    def integer(text: str) -> Any:
        return MinusZero() if text == "-0" else int(text) if len(text) <= 20 else float("inf")

    return json.loads(body.decode(), parse_int=integer, parse_float=float)


def has_duplicate_keys(body: bytes) -> bool:
    found = False

    def note(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found |= len(dict(pairs)) != len(pairs)

    json.loads(body.decode(), object_pairs_hook=note, parse_int=str)
    return found


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= INT64_MAX


def is_token_id(value: Any) -> bool:
    return is_integer(value) and not isinstance(value, MinusZero) and 0 <= value < 2**32


def is_prompt(value: Any) -> bool:
    if value is None or isinstance(value, str) or value == []:
        return True
    return isinstance(value, list) and (
        all(isinstance(item, str) for item in value)
        or all(is_token_id(item) for item in value)
        or all(isinstance(item, list) and all(map(is_token_id, item)) for item in value)
    )


def is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def fields_of(request: Any) -> dict[str, Any]:
    """What the properties of Scan give."""
    body = request if isinstance(request, dict) else {}
    sessions = [body.get(key) for key in ("session_id", "user")]
    counts = [body.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
    model, salt, prompt_input = body.get("model"), body.get("cache_salt"), body.get("input")
    kind = "other"
    if "messages" in body:
        kind = "chat"
    elif "prompt" in body:
        kind = "completion"
    elif "input" in body and not is_dialogue(prompt_input):
        kind = "embedding"
    return {
        "model": model if isinstance(model, str) else None,
        "stream": body.get("stream") is True,
        "max_tokens": next((count for count in counts if is_integer(count)), None),
        "n": body["n"] if is_integer(body.get("n")) else 1,
        "session": next((text.encode() for text in sessions if isinstance(text, str) and text), None),
        "cache_salt": salt.encode() if isinstance(salt, str) else None,
        "has_tools": isinstance(body.get("tools"), list) and bool(body["tools"]),
        "kind": kind,
    }


def type_error_of(request: Any) -> tuple[str, str] | None:
    """What Scan.type_error gives."""
    if not isinstance(request, dict):
        return "body", "an object"
    checks: list[tuple[str, str, bool]] = [
        ("model", "a string", isinstance(request.get("model"), str)),
        ("stream", "a boolean", isinstance(request.get("stream"), bool)),
        *((key, "an integer", is_integer(request.get(key))) for key in INTEGERS),
        *((key, "a string", isinstance(request.get(key), str)) for key in ("user", "session_id", "cache_salt")),
        ("tools", "an array", isinstance(request.get("tools"), list)),
    ]
    for key, expected, is_right in checks:
        if request.get(key) is not None and not is_right:
            return key, expected
    if "messages" in request and not isinstance(request["messages"], list):
        return "messages", "an array"
    for key in ("prompt", "input"):
        if not is_prompt(request.get(key)) and not (key == "input" and is_dialogue(request[key])):
            return key, PROMPT_TYPES
    return message_error_of(request.get("messages") or [])


def message_error_of(messages: list[Any]) -> tuple[str, str] | None:
    """The first thing wrong in the order of the text; objects are counted, other items are not."""
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            return "messages", "an array of objects"
        content, where = message.get("content"), f"messages[{number}]"
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and not isinstance(part.get("text"), str | None):
                    return f"{where}.content", "text parts whose text is a string"
                if not isinstance(part, dict | str):
                    return f"{where}.content", "an array of content parts"
        elif not isinstance(content, str | None):
            return f"{where}.content", "a string, an array of content parts or null"
        if not isinstance(message.get("role", ""), str):
            return f"{where}.role", "a string"
    return None


def counts_of(request: dict[str, Any]) -> dict[str, int]:
    """n_messages, n_token_ids and n_text_bytes of a request whose types are right, as orjson would write it."""
    messages = request.get("messages", [])
    if "messages" not in request and is_dialogue(request.get("input")):
        messages = [item for item in request["input"] if isinstance(item, dict)]
    texts, ids = [], 0
    for prompt in (request.get("prompt"), request.get("input")):
        if isinstance(prompt, str):
            texts.append(prompt.encode())
        elif isinstance(prompt, list) and not is_dialogue(prompt):
            flat = [item for inner in prompt for item in (inner if isinstance(inner, list) else [inner])]
            texts += [item.encode() for item in flat if isinstance(item, str)]
            ids += sum(isinstance(item, int) for item in flat)
    n_bytes = sum(map(len, texts)) + 4 * ids
    for message in messages:
        n_bytes += message_bytes(message)
    if request.get("tools"):
        n_bytes += len(orjson.dumps(request["tools"]))
    if isinstance(request.get("instructions"), str):
        n_bytes += len(request["instructions"].encode())
    return {"n_messages": len(messages), "n_token_ids": ids, "n_text_bytes": n_bytes}


def message_bytes(message: dict[str, Any]) -> int:
    def member_bytes(key: str, value: Any) -> int:
        return len(orjson.dumps(key)) + 1 + len(orjson.dumps(value))

    n_bytes = len(message.get("role", "").encode())
    content = message.get("content")
    if isinstance(content, str):
        n_bytes += len(content.encode())
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            n_bytes += len(part.encode())
            continue
        for key, value in part.items():
            if key == "type" and value not in ("text", "input_text", "output_text"):
                written = len(value.encode()) if isinstance(value, str) else len(orjson.dumps(value))
                n_bytes += min(MEDIA_BYTES, written)
            elif key == "text":
                n_bytes += len(value.encode()) if value is not None else 0
            elif key != "type" and value is not None:
                n_bytes += min(MEDIA_BYTES, member_bytes(key, value))
    return n_bytes + sum(
        member_bytes(key, value)
        for key, value in message.items()
        if key not in ("role", "content") and value is not None
    )

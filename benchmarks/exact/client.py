"""Asks the gateway, and reads what it predicted, what the engine says it served, and what a next turn goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from benchmarks.exact.workload import Ask, Told

_DECISION = "x-xinf-decision"


class Answer(msgspec.Struct, frozen=True):
    """What came back. Times are of time.time()."""

    status: int
    error: str
    decision: Mapping[str, str]
    told: Told
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prompt_ids: Sequence[int]
    sent_s: float
    ended_s: float


async def knows_adapter(client: httpx.AsyncClient, adapter: str) -> bool:
    """Whether the gateway takes the name of a LoRA adapter for a model."""
    body = {"model": adapter, "prompt": "Hello", "max_tokens": 1}
    return (await client.post("/v1/completions", json=body)).status_code == 200


async def ask(client: httpx.AsyncClient, request: Ask, *, prefix: str = "") -> Answer:
    """Send one request and wait for the end of its answer. `prefix`: of the path, where that has to name the model."""
    body = json.dumps(request.body | {"return_token_ids": True}, ensure_ascii=False).encode()
    headers = {"content-type": "application/json", _DECISION: "1"}
    sent_s = time.time()
    answer = await client.post(prefix + request.path, content=body, headers=headers)
    ended_s = time.time()
    is_ok = answer.status_code == 200
    whole: dict[str, Any] = {}
    if is_ok:
        whole = _joined(answer.text) if request.body.get("stream") else answer.json()
    usage = whole.get("usage") or {}
    choice = (whole.get("choices") or [{}])[0]
    return Answer(
        status=answer.status_code,
        error="" if is_ok else answer.text[:500],
        decision=_fields(answer.headers.get(_DECISION, "")),
        told=_told(choice),
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        prompt_ids=whole.get("prompt_token_ids") or choice.get("prompt_token_ids") or (),
        sent_s=sent_s,
        ended_s=ended_s,
    )


def _fields(header: str) -> dict[str, str]:
    pairs = (field.partition("=") for field in header.split(";") if field)
    return {name: value for name, _, value in pairs}


def _told(choice: Mapping[str, Any]) -> Told:
    message = choice.get("message")
    if message is None:
        return Told(choice.get("text", ""))
    return Told(
        content=message.get("content"),
        reasoning=message.get("reasoning") or message.get("reasoning_content"),
        tool_calls=[_call(call) for call in message.get("tool_calls") or ()],
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    kept = {"name": function["name"], "arguments": function["arguments"]}
    return {"id": call["id"], "type": "function", "function": kept}


def _joined(events: str) -> dict[str, Any]:
    """Make of a stream what would have come at once."""
    message: dict[str, Any] = {}
    whole: dict[str, Any] = {"choices": [{"message": message}]}
    calls: dict[int, dict[str, Any]] = {}
    for line in events.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        for name in ("usage", "prompt_token_ids"):
            if chunk.get(name):
                whole[name] = chunk[name]
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            for name in ("content", "reasoning"):
                if delta.get(name) is not None:
                    message[name] = message.get(name, "") + delta[name]
            for part in delta.get("tool_calls") or ():
                _add_part(calls, part)
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return whole


def _add_part(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(part["index"], {"id": "", "function": {"name": "", "arguments": ""}})
    call["id"] = call["id"] or part.get("id") or ""
    function = part.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""

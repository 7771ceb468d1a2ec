"""The routes of the simulated engine: exact usage, exact text, errors with the right status."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine.link_client import shim_spec
from xinf.core.errors import EngineDied, EngineStartFailed
from xinf.engine.adapter import RawHeader, Request, Usage
from xinf.engine.sim_adapter import ANSWER_TOKENS, SimAdapter

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = {"role": "user", "content": "hello there"}


class Collected:
    """A reply that is kept."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.usage = Usage()

    def start(self, status: int, headers: list[RawHeader]) -> None:
        assert not self.status
        self.status = status
        self.headers = dict(headers)

    def chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    def json(self) -> Any:
        return json.loads(b"".join(self.chunks))

    def events(self) -> list[Any]:
        parts = b"".join(self.chunks).decode().split("\n\n")
        assert parts[-2:] == ["data: [DONE]", ""]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


async def opened(directory: Path, **arguments: Any) -> SimAdapter:
    adapter = SimAdapter(shim_spec(directory, **arguments))
    adapter.build(lambda _: None)
    await adapter.open()
    await adapter.warm_up()
    return adapter


async def ask(adapter: SimAdapter, path: str, body: Any, *, method: str = "POST") -> Collected:
    reply = Collected()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with asyncio.timeout(30):
        reply.usage = await adapter.handle(Request(method=method, path=path, body=data, request_id="q"), reply)
    return reply


async def test_chat_answer_has_openai_shape_and_exact_usage(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    reply = await ask(adapter, CHAT, {"model": "sim", "messages": [USER], "max_tokens": 7})
    answer = reply.json()
    rendered = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert reply.headers[b"content-type"] == b"application/json"
    assert (answer["id"], answer["object"], answer["model"]) == ("chatcmpl-q", "chat.completion", "sim")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 28
    assert answer["usage"] == {
        "prompt_tokens": math.ceil(len(rendered) / 4),
        "completion_tokens": 7,
        "total_tokens": math.ceil(len(rendered) / 4) + 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (math.ceil(len(rendered) / 4), 7)


@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"stop": ["a"]}, {"stop": "ab", "n": 2}, {"max_tokens": None}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_stream_says_what_the_whole_answer_says(tmp_path: Path, path: str, extra: dict[str, Any]) -> None:
    adapter = await opened(tmp_path)
    body = {"model": "sim", "max_tokens": 20, **extra}
    body |= {"messages": [USER]} if path == CHAT else {"prompt": ["one prompt", "another"]}
    whole = (await ask(adapter, path, body)).json()
    reply = await ask(adapter, path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    *events, last = reply.events()
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for event in events:
        assert "usage" not in event
        (choice,) = event["choices"]
        assert choice["index"] not in reasons
        text = choice["delta"]["content"] if path == CHAT else choice["text"]
        texts[choice["index"]] = texts.get(choice["index"], "") + text
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    for choice in whole["choices"]:
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        assert texts[choice["index"]] == text
        assert reasons[choice["index"]] == choice["finish_reason"]
    assert last["choices"] == []
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][field] == whole["usage"][field]
    assert len(texts) == len(whole["choices"])


async def test_stream_sends_one_event_per_token_and_usage_only_if_asked(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    reply = await ask(adapter, COMPLETIONS, {"model": "sim", "prompt": "x", "max_tokens": 9, "stream": True})
    assert len(reply.events()) == 9
    assert reply.usage.completion_tokens == 9
    reply = await ask(adapter, CHAT, {"model": "sim", "messages": [USER], "max_tokens": 9, "stream": True})
    first, *others = reply.events()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(others) == 9


@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"stop": ["a"]}, {"cache_salt": 'a"b'}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_answer_is_the_same_at_once_and_in_steps(tmp_path: Path, path: str, extra: dict[str, Any]) -> None:
    at_once = await opened(tmp_path)
    in_steps = await opened(tmp_path, step_ms=0.001)
    body = {"max_tokens": 20, **extra} | ({"messages": [USER]} if path == CHAT else {"prompt": ["one " * 40, "two"]})
    for _ in range(2):  # the second one finds the first one's blocks
        one, other = await ask(at_once, path, body), await ask(in_steps, path, body)
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.usage.cached_tokens == other.usage.cached_tokens
        assert one.json() == other.json() | {"created": one.json()["created"]}
        # Put together by hand, and exactly what an encoder makes of it.
        assert b"".join(one.chunks) == msgspec.json.encode(one.json())


async def test_name_that_needs_escapes_is_escaped(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, model='a "b"\\')
    for is_stream in (False, True):
        reply = Collected()
        data = json.dumps({"messages": [USER], "max_tokens": 2, "stream": is_stream}).encode()
        await adapter.handle(Request(method="POST", path=CHAT, body=data, request_id='é"'), reply)
        for answer in reply.events() if is_stream else [reply.json()]:
            assert (answer["model"], answer["id"]) == ('a "b"\\', 'chatcmpl-é"')


async def test_engine_without_a_cache_finds_nothing_again(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, cache=False)
    body = {"prompt": "again and again " * 50, "max_tokens": 2}
    replies = [await ask(adapter, COMPLETIONS, body) for _ in range(2)]
    assert [reply.usage.cached_tokens for reply in replies] == [0, 0]
    assert replies[0].json()["choices"] == replies[1].json()["choices"]


async def test_answer_without_a_limit_ends_by_itself(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    answer = (await ask(adapter, COMPLETIONS, {"model": "sim", "prompt": "x"})).json()
    assert answer["usage"]["completion_tokens"] == ANSWER_TOKENS
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_stop_string_cuts_the_text_and_the_work(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    body = {"model": "sim", "prompt": "x", "max_tokens": 50}
    full = (await ask(adapter, COMPLETIONS, body)).json()["choices"][0]["text"]
    stop = full[42:47]
    at = full.index(stop)
    answer = (await ask(adapter, COMPLETIONS, {**body, "stop": ["QQ", stop]})).json()
    assert answer["choices"][0]["text"] == full[:at]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == math.ceil((at + len(stop)) / 4)


async def test_cached_tokens_are_exact_over_a_conversation(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, block_tokens=4)
    messages: list[dict[str, str]] = []
    known = b""
    for turn in range(4):
        messages.append({"role": "user", "content": f"question {turn} " * 5})
        rendered = adapter._template.render(messages).encode()
        reply = await ask(adapter, CHAT, {"model": "sim", "messages": messages, "max_tokens": 11})
        shared = next((i for i, (a, b) in enumerate(zip(known, rendered, strict=False)) if a != b), len(known))
        most = (math.ceil(len(rendered) / 4) - 1) // 4 * 4
        assert reply.usage.cached_tokens == min(shared // 16 * 4, most)
        assert reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == reply.usage.cached_tokens
        text = reply.json()["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})
        # All but the last token of an answer is in the cache.
        known = rendered + text.encode()
        known = known[: (math.ceil(len(rendered) / 4) + 10) * 4]


async def test_n_and_lists_of_prompts_add_up(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, block_tokens=4)
    body = {"model": "sim", "prompt": ["a" * 40, "b" * 80], "n": 2, "max_tokens": 5}
    reply = await ask(adapter, COMPLETIONS, body)
    answer = reply.json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    assert answer["usage"]["prompt_tokens"] == 10 + 20
    assert answer["usage"]["completion_tokens"] == 4 * 5
    assert (reply.usage.prompt_tokens, reply.usage.cached_tokens, reply.usage.completion_tokens) == (30, 0, 20)


async def test_token_ids_are_the_same_prompt_as_their_text(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, block_tokens=2)
    text = "sixteen bytes ok" * 2
    tokens = (await ask(adapter, "/tokenize", {"model": "sim", "prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"]) == 8
    back = (await ask(adapter, "/detokenize", {"model": "sim", "tokens": tokens["tokens"]})).json()
    assert back["prompt"] == text
    first = await ask(adapter, COMPLETIONS, {"model": "sim", "prompt": text, "max_tokens": 3})
    second = await ask(adapter, COMPLETIONS, {"model": "sim", "prompt": tokens["tokens"], "max_tokens": 3})
    assert second.json()["choices"] == first.json()["choices"]
    assert second.usage.cached_tokens == 6
    chat = (await ask(adapter, "/tokenize", {"messages": [USER]})).json()
    assert chat["count"] == (await ask(adapter, CHAT, {"messages": [USER]})).usage.prompt_tokens


async def test_embeddings_are_unit_vectors_of_the_text(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    reply = await ask(adapter, "/v1/embeddings", {"model": "sim", "input": ["one", "two", "one"]})
    vectors = [entry["embedding"] for entry in reply.json()["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert math.isclose(sum(value * value for value in vectors[0]), 1.0)
    assert reply.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    body = {"model": "sim", "input": "one", "encoding_format": "base64", "dimensions": 8}
    packed = (await ask(adapter, "/v1/embeddings", body)).json()["data"][0]["embedding"]
    assert len(struct.unpack("<8f", base64.b64decode(packed))) == 8


async def test_models_lists_what_is_served(tmp_path: Path) -> None:
    spec = shim_spec(tmp_path, model="/some/path", max_model_len=512)
    spec = msgspec.structs.replace(spec, engine=msgspec.structs.replace(spec.engine, served_names=("big", "alias")))
    adapter = SimAdapter(spec)
    adapter.build(lambda _: None)
    description = await adapter.open()
    assert description.served_names == ("big", "alias")
    listed = (await ask(adapter, "/v1/models", b"", method="GET")).json()["data"]
    assert [(entry["id"], entry["max_model_len"]) for entry in listed] == [("big", 512), ("alias", 512)]
    reply = await ask(adapter, COMPLETIONS, {"model": "/some/path", "prompt": "x"})
    assert reply.status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHAT, b"", 400, "malformed_json", None),
        (CHAT, b'{"model": "sim", ', 400, "malformed_json", None),
        (CHAT, b"\xff\xfe{}", 400, "malformed_json", None),
        (CHAT, b"[]", 400, "invalid_request", None),
        (CHAT, {"model": "sim"}, 400, "invalid_request", "messages"),
        (CHAT, {"model": "sim", "messages": "hi"}, 400, "invalid_request", "messages"),
        (CHAT, {"model": "sim", "messages": []}, 400, "invalid_request", "messages"),
        (CHAT, {"model": "sim", "messages": [{"content": "x"}]}, 400, "invalid_request", "messages"),
        (CHAT, {"model": "sim", "messages": [{"role": "user", "content": 5}]}, 400, "invalid_request", "messages"),
        (CHAT, {"model": "sim", "messages": [{"role": "user", "content": [3]}]}, 400, "invalid_request", "messages"),
        (CHAT, {"model": 5, "messages": [USER]}, 400, "invalid_request", "model"),
        (CHAT, {"model": "nope", "messages": [USER]}, 404, "model_not_found", "model"),
        (CHAT, {"messages": [USER], "max_tokens": "many"}, 400, "invalid_request", "max_tokens"),
        (CHAT, {"messages": [USER], "max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        (CHAT, {"messages": [USER], "max_tokens": 10**30}, 400, "invalid_request", "max_tokens"),
        (CHAT, {"messages": [USER], "max_tokens": 500}, 400, "invalid_request", "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "invalid_request", "messages"),
        (CHAT, {"messages": [USER], "n": 0}, 400, "invalid_request", "n"),
        (CHAT, {"messages": [USER], "stream": "yes"}, 400, "invalid_request", "stream"),
        (CHAT, {"messages": [USER], "stop": {}}, 400, "invalid_request", "stop"),
        (COMPLETIONS, {"prompt": ""}, 400, "invalid_request", "prompt"),
        (COMPLETIONS, {"prompt": []}, 400, "invalid_request", "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, 400, "invalid_request", "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, 400, "invalid_request", "prompt"),
        (COMPLETIONS, {"prompt": [2**40]}, 400, "invalid_request", "prompt"),
        (COMPLETIONS, {"prompt": None}, 400, "invalid_request", "prompt"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, 400, "invalid_request", "encoding_format"),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, 400, "invalid_request", "dimensions"),
        ("/tokenize", {}, 400, "invalid_request", "prompt"),
        ("/nowhere", {}, 404, "not_found", None),
        ("/v1/models", {}, 400, "invalid_request", None),
    ],
)
async def test_bad_request_is_answered(
    tmp_path: Path, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    adapter = await opened(tmp_path, max_model_len=500)
    reply = await ask(adapter, path, body)
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param), error
    assert error["message"]
    assert adapter.load().running == 0


async def test_malformed_json_says_where(tmp_path: Path) -> None:
    adapter = await opened(tmp_path)
    reply = await ask(adapter, CHAT, b'{"model": "sim", x}')
    assert reply.json()["error"]["offset"] == 17


async def test_cancel_frees_the_engine(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, step_ms=1)
    body = json.dumps({"prompt": ["a", "b"], "n": 2, "max_tokens": 9000}).encode()
    reply = Collected()
    stepped = asyncio.Event()
    adapter.on_step(stepped.set)
    task = asyncio.create_task(adapter.handle(Request(method="POST", path=COMPLETIONS, body=body), reply))
    async with asyncio.timeout(30):
        while adapter.load().running < 4:
            stepped.clear()
            await stepped.wait()
    assert adapter.last_step_age_s() is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert adapter.load().kv_blocks_used == 0
    assert adapter.last_step_age_s() is None
    assert reply.status == 0


async def test_dead_engine_raises_and_says_why(tmp_path: Path) -> None:
    adapter = await opened(tmp_path, die_after_tokens=3)
    with pytest.raises(EngineDied, match="after 3 tokens"):
        await ask(adapter, COMPLETIONS, {"prompt": "x", "max_tokens": 9})
    assert "after 3 tokens" in (adapter.dead_reason() or "")
    with pytest.raises(EngineDied):
        await ask(adapter, COMPLETIONS, {"prompt": "x", "max_tokens": 1})


async def test_model_directory_brings_its_own_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    adapter = await opened(tmp_path, model=str(tmp_path))
    reply = await ask(adapter, CHAT, {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 1})
    assert reply.usage.prompt_tokens == 10


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"step-mss": 5}, "did you mean step_ms?"),
        ({"gpu_memory": 1}, "known are"),
        ({"max_model_len": 1000, "kv_blocks": 10}, "holds 160"),
        ({"max_running": "many"}, "max_running"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(EngineStartFailed) as caught:
        SimAdapter(shim_spec(tmp_path, **arguments)).build(lambda _: None)
    assert caught.value.fields["cause"] == "bad_arguments"
    assert word in str(caught.value)


def test_arguments_may_come_as_text_with_hyphens(tmp_path: Path) -> None:
    adapter = SimAdapter(shim_spec(tmp_path, **{"step-ms": "2.5", "kv-blocks": "7"}))
    adapter.build(lambda _: None)
    assert (adapter._settings.step_ms, adapter._settings.kv_blocks) == (2.5, 7)

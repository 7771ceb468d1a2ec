"""The real vLLM through the real shim: its own protocol work, exact to the letter with the scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.engine.link_client import Answer, LinkClient, generate
from tests.engine_fixtures import SERVED_NAME, VllmEngine
from xinf._pb import engine_service_pb2 as pb
from xinf.registry import scripted

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
FOREVER: list[dict[str, Any]] = [{"role": "user", "content": "go on forever"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": scripted.TOOL_NAME,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture
async def link(vllm_engine: VllmEngine) -> AsyncIterator[LinkClient]:
    async with LinkClient(vllm_engine.target) as made:
        yield made


async def chat(link: LinkClient, messages: list[dict[str, Any]] = HELLO, **fields: Any) -> Answer:
    return await link.ask("POST", CHAT, {"model": SERVED_NAME, "messages": messages, **fields})


def message(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["choices"][0]["message"]
    return found


async def test_engine_says_what_it_is(link: LinkClient) -> None:
    info = link.info
    assert info is not None
    assert (info.engine, list(info.served_names)) == ("vllm", [SERVED_NAME])
    assert (info.block_tokens, info.max_model_len, info.max_running) == (32, scripted.MAX_TOKENS, 32)
    assert info.kv_blocks > 0
    assert "generate" in info.tasks
    assert list(info.segment_order) == ["tools", "messages", "thinking", "developer"]
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /tokenize", "GET /v1/models"} <= set(info.routes)


async def test_chat_gives_the_exact_text(link: LinkClient) -> None:
    answer = await chat(link)
    assert answer.status == 200
    assert answer.headers[b"content-type"] == b"application/json"
    assert b"content-length" not in answer.headers
    assert message(answer)["content"] == scripted.ANSWER
    assert answer.end.error == ""


async def test_stream_gives_the_same_text_in_pieces(link: LinkClient) -> None:
    answer = await chat(link, stream=True)
    assert answer.status == 200
    assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in answer.events()]
    assert "".join(deltas) == scripted.ANSWER
    assert len([delta for delta in deltas if delta]) > 1


@pytest.mark.parametrize("is_stream", [False, True])
async def test_usage_comes_with_every_answer(link: LinkClient, is_stream: bool) -> None:
    """The client did not ask for usage in the stream; the end of the request has it all the same."""
    told = (await chat(link)).json()["usage"]
    end = (await chat(link, stream=is_stream)).end
    assert (end.prompt_tokens, end.completion_tokens) == (told["prompt_tokens"], told["completion_tokens"])
    assert end.completion_tokens > 10


async def test_usage_counts_cached_tokens(link: LinkClient) -> None:
    messages = [{"role": "user", "content": "the quick brown fox " * 60 + "counts cached tokens"}]
    first = await chat(link, messages, max_tokens=1)
    second = await chat(link, messages, max_tokens=1)
    assert first.end.cached_tokens < 32
    n_whole_blocks = (second.end.prompt_tokens - 1) // 32 * 32
    assert second.end.cached_tokens == n_whole_blocks > 200
    assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == n_whole_blocks


async def test_usage_adds_up_a_request_that_fans_out(link: LinkClient) -> None:
    body = {"model": SERVED_NAME, "prompt": ["hello", "hello world"], "n": 2, "max_tokens": 3}
    answer = await link.ask("POST", "/v1/completions", body)
    told = answer.json()["usage"]
    assert len(answer.json()["choices"]) == 4
    assert (answer.end.prompt_tokens, answer.end.completion_tokens) == (3, 12)
    assert (told["prompt_tokens"], told["completion_tokens"]) == (3, 12)


async def test_n_gives_as_many_choices(link: LinkClient) -> None:
    answer = await chat(link, n=3, temperature=1.0)
    assert [choice["message"]["content"] for choice in answer.json()["choices"]] == [scripted.ANSWER] * 3


async def test_logprobs_come_with_alternatives(link: LinkClient) -> None:
    answer = await chat(link, logprobs=True, top_logprobs=2, max_tokens=3)
    tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["Hello", "! I am", " a small"]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


async def test_stop_string_ends_the_answer(link: LinkClient) -> None:
    answer = await chat(link, stop=["scripted"])
    assert message(answer)["content"] == scripted.ANSWER.partition("scripted")[0]


async def test_tool_is_called_and_its_result_used(link: LinkClient) -> None:
    answer = await chat(link, tools=[WEATHER])
    (call,) = message(answer)["tool_calls"]
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == scripted.TOOL_NAME
    assert json.loads(call["function"]["arguments"]) == scripted.TOOL_ARGUMENTS
    after = [*HELLO, message(answer), {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    assert message(await chat(link, after, tools=[WEATHER]))["content"] == scripted.AFTER_TOOL


async def test_tool_call_streams(link: LinkClient) -> None:
    answer = await chat(link, tools=[WEATHER], stream=True)
    calls = [call for event in answer.events() for call in event["choices"][0]["delta"].get("tool_calls") or []]
    assert calls[0]["function"]["name"] == scripted.TOOL_NAME
    assert json.loads("".join(call["function"].get("arguments") or "" for call in calls)) == scripted.TOOL_ARGUMENTS


async def test_reasoning_is_apart_from_the_answer(link: LinkClient) -> None:
    answer = await chat(link, chat_template_kwargs={"enable_thinking": True})
    assert message(answer)["content"] == scripted.ANSWER
    told = message(answer)
    assert (told.get("reasoning") or told.get("reasoning_content")).strip() == scripted.REASONING.strip()


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]},
        {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"]},
        {"properties": {"list": {"type": "array", "items": {"type": "string"}}}, "required": ["list"]},
    ],
)
async def test_json_schema_is_kept(link: LinkClient, schema: dict[str, Any]) -> None:
    whole = {"type": "object", "additionalProperties": False, **schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": whole}}
    answer = await chat(link, response_format=wanted, max_tokens=64, temperature=0)
    assert set(json.loads(message(answer)["content"])) == set(schema["properties"])


async def test_plain_completion_and_other_routes(link: LinkClient) -> None:
    completion = await link.ask("POST", "/v1/completions", {"model": SERVED_NAME, "prompt": "the weather"})
    assert completion.json()["choices"][0]["text"].startswith(scripted.ANSWER[:20])
    tokens = await link.ask("POST", "/tokenize", {"model": SERVED_NAME, "prompt": "hello world"})
    assert tokens.json()["count"] == 2
    assert (tokens.end.prompt_tokens, tokens.end.completion_tokens) == (0, 0)
    models = await link.ask("GET", "/v1/models")
    assert [model["id"] for model in models.json()["data"]] == [SERVED_NAME]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, {"model": SERVED_NAME, "messages": "hello"}, 400),
        (CHAT, {"model": SERVED_NAME, "messages": HELLO, "max_tokens": 10_000_000}, 400),
        (CHAT, {"model": SERVED_NAME, "messages": HELLO, "temperature": -1}, 400),
        (CHAT, {"model": SERVED_NAME, "messages": [{"role": "user", "content": "fox " * 9000}]}, 400),
        (CHAT, {"model": "nope", "messages": HELLO}, 404),
        (CHAT, b"{", 400),
        ("/v1/no/such/route", {}, 404),
        ("/v1/embeddings", {"model": SERVED_NAME, "input": "x"}, 404),
    ],
)
async def test_errors_are_the_engines_own(link: LinkClient, path: str, body: Any, status: int) -> None:
    answer = await link.ask("POST", path, body)
    assert answer.status == status
    assert answer.end.error == ""
    assert message(await chat(link))["content"] == scripted.ANSWER


@pytest.mark.parametrize("is_stream", [False, True])
async def test_cancel_stops_the_engines_work(link: LinkClient, is_stream: bool) -> None:
    body = {"model": SERVED_NAME, "messages": FOREVER, "max_tokens": 4000, "ignore_eos": True, "stream": is_stream}
    answer = await link.submit("POST", CHAT, body)
    await link.wait_load(lambda load: load.running == 1, "the request running")
    await link.cancel(answer.id)
    await link.wait_load(lambda load: load.running + load.waiting == 0, "the engine being idle")


async def test_requests_beside_each_other_keep_their_own_counts(link: LinkClient) -> None:
    body = {"model": SERVED_NAME, "messages": FOREVER, "ignore_eos": True, "stream": True}
    answers = [await link.submit("POST", CHAT, {**body, "max_tokens": 10 + number}) for number in range(16)]
    await link.wait(lambda: all(answer.ends for answer in answers), "the end of all")
    assert [answer.end.completion_tokens for answer in answers] == [10 + number for number in range(16)]


async def test_generate_call_has_the_same_semantics(link: LinkClient) -> None:
    body = json.dumps({"model": SERVED_NAME, "messages": HELLO}).encode()
    answer = await generate(link.stub, pb.Submit(method="POST", path=CHAT, body=body))
    assert message(answer)["content"] == scripted.ANSWER
    assert answer.end.completion_tokens > 10

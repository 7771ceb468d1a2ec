"""The official openai package against the real vLLM, through the real gateway, Link and shim.

The model is the scripted checkpoint: its text is known, so that answers can be compared to the letter. It proves the
serving path, not model quality.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.e2e.conftest import EMBEDDER, MODEL
from tests.e2e.stack import Stack
from xinf.registry import scripted

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

HELLO: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


def test_chat_gives_the_exact_text_and_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == scripted.ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_deltas_add_up_and_end_with_usage(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == scripted.ANSWER
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 1
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_repeated_prompt_is_served_from_the_prefix_cache(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "the quick brown fox " * 60}]
    client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    again = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_completion_of_a_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["hello", "world"], max_tokens=3, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


def test_chat_n_gives_as_many_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [choice.message.content for choice in answer.choices] == [scripted.ANSWER] * 3


def test_chat_logprobs_come_with_alternatives(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 3
    assert all(len(token.top_logprobs) >= 2 for token in logprobs.content)


def test_chat_stop_string_ends_the_answer(client: OpenAI) -> None:
    word = scripted.ANSWER.split()[2]
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, stop=[word])
    assert answer.choices[0].message.content == scripted.ANSWER.split(word)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_chat_calls_a_tool_and_uses_its_result(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"]
    assert json.loads(calls[0].function.arguments) == {"city": "Paris", "days": 3}
    messages: Any = [
        *HELLO,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"},
    ]
    after = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert after.choices[0].message.content == scripted.AFTER_TOOL


def test_chat_tool_call_streams(client: OpenAI) -> None:
    arguments = ""
    for chunk in client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            arguments += (call.function.arguments if call.function else None) or ""
    assert json.loads(arguments) == {"city": "Paris", "days": 3}


def test_chat_keeps_to_a_json_schema(client: OpenAI) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "choice",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format=schema, max_tokens=64, temperature=0
    )
    made = json.loads(answer.choices[0].message.content or "")
    assert made["a"] in (1, 2)
    assert made["b"] in ("x", "y")


def test_chat_template_arguments_reach_the_engine(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_body={"chat_template_kwargs": {"enable_thinking": True}}
    )
    text = answer.choices[0].message.content or ""
    assert text == f"<think>{scripted.REASONING}</think>{scripted.ANSWER}"


def test_embeddings_have_one_width_and_tell_texts_apart(client: OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input=["hello world", "hello world", "quick brown fox"])
    first, same, other = (item.embedding for item in answer.data)
    assert len(first) == len(other) > 1
    assert first == pytest.approx(same, abs=1e-3)
    assert sum(a * b for a, b in zip(first, other, strict=True)) < 0.99
    assert answer.usage.prompt_tokens > 0


def test_route_that_a_model_lacks_names_those_it_has(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as caught:
        client.embeddings.create(model=MODEL, input="hello")
    assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.chat.completions.create(model=EMBEDDER, messages=HELLO)


def test_models_lists_what_is_deployed(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == [EMBEDDER, MODEL]


def test_engine_route_beyond_openai_passes_through(vllm_stack: Stack) -> None:
    answer = httpx.post(f"{vllm_stack.url}/tokenize", json={"model": MODEL, "prompt": "hello world"}, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["count"] == len(answer.json()["tokens"]) > 0


def test_many_at_once_all_get_the_right_text(client: OpenAI) -> None:
    def ask(number: int) -> str | None:
        messages: Any = [{"role": "user", "content": f"hello {number}"}]
        return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(48))) == {scripted.ANSWER}


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        ({"model": "nope", "messages": HELLO}, openai.NotFoundError, "model_not_found"),
        ({"model": 7, "messages": HELLO}, openai.BadRequestError, "invalid_request"),
    ],
)
def test_gateway_errors_raise_the_clients_own_classes(
    client: OpenAI, body: Any, error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**body)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "body",
    [
        {"model": MODEL, "messages": "hello"},
        {"model": MODEL, "messages": HELLO, "max_tokens": 10_000_000},
        {"model": MODEL, "messages": HELLO, "temperature": -1},
        {"model": MODEL, "messages": [{"role": "user", "content": "the quick brown fox " * 4000}]},
    ],
)
def test_engine_refusals_pass_through_as_400(client: OpenAI, body: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**body)
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content == scripted.ANSWER


def test_json_is_json_whatever_curl_calls_it(vllm_stack: Stack) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO})
    headers = {"content-type": "application/x-www-form-urlencoded"}  # what `curl -d` says unasked
    answer = httpx.post(f"{vllm_stack.url}/v1/chat/completions", content=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == scripted.ANSWER


def test_malformed_json_names_the_byte(vllm_stack: Stack) -> None:
    answer = httpx.post(f"{vllm_stack.url}/v1/chat/completions", content=b'{"model": "scripted",, }', timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "malformed_json"
    assert answer.json()["error"]["offset"] == 21

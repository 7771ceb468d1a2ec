"""What the shim says when vLLM dies, hangs or cannot be built. Real processes, killed and stopped for real."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.engine.link_client import Answer, LinkClient, until
from tests.engine_fixtures import (
    ENGINE_ARGS,
    SERVED_NAME,
    StartVllm,
    is_alive,
    production_shim,
    vllm_spec,
    wait_until,
)
from xinf.core.records import Phase
from xinf.registry import scripted

pytestmark = [pytest.mark.engine, pytest.mark.crash]

CHAT = "/v1/chat/completions"
FOREVER: dict[str, Any] = {
    "model": SERVED_NAME,
    "messages": [{"role": "user", "content": "go on forever"}],
    "max_tokens": 4000,
    "ignore_eos": True,
}
HELLO: dict[str, Any] = {"model": SERVED_NAME, "messages": [{"role": "user", "content": "hello"}]}


async def ask_forever(link: LinkClient, *, is_stream: bool) -> Answer:
    answer = await link.submit("POST", CHAT, {**FOREVER, "stream": is_stream})
    await link.wait_load(lambda load: load.running == 1, "the request running")
    if is_stream:
        await link.wait(lambda: len(answer.chunks) > 4, "some tokens")
    return answer


async def test_engine_core_killed_in_a_stream_is_told_once_and_by_the_shim(start_vllm: StartVllm) -> None:
    engine = start_vllm()
    async with LinkClient(engine.target) as link:
        answer = await ask_forever(link, is_stream=True)
        other = await link.submit("POST", CHAT, FOREVER)
        await link.wait_load(lambda load: load.running == 2, "both running")
        os.kill(engine.core_pids()[0], signal.SIGKILL)
        await link.wait(lambda: answer.ends and other.ends, "both ends")
    assert (answer.status, answer.end.error, answer.end.retryable) == (200, "engine_died", False)
    # vLLM's own error event and [DONE] must not reach the client beside the gateway's.
    assert b'"error"' not in answer.body
    assert b"[DONE]" not in answer.body
    assert (other.status, other.end.error, other.end.retryable) == (None, "engine_died", True)
    status = engine.wait_failed()
    assert status.failure is not None
    assert status.failure.cause == "engine_died"


async def test_engine_core_killed_while_idle_is_noticed(start_vllm: StartVllm) -> None:
    engine = start_vllm()
    os.kill(engine.core_pids()[0], signal.SIGKILL)
    failure = engine.wait_failed().failure
    assert failure is not None
    assert failure.cause == "engine_died"
    assert "killed" in failure.message


async def test_engine_core_that_hangs_is_noticed_by_the_watchdog(start_vllm: StartVllm) -> None:
    engine = start_vllm(limits={"watchdog_timeout_s": 1.0})
    async with LinkClient(engine.target) as link:
        answer = await ask_forever(link, is_stream=True)
        core = engine.core_pids()[0]
        os.kill(core, signal.SIGSTOP)
        try:
            await link.wait(lambda: answer.ends, "the end of the request")
        finally:
            os.kill(core, signal.SIGCONT)
    assert answer.end.error == "engine_died"
    failure = engine.wait_failed().failure
    assert failure is not None
    assert failure.cause == "hung"


def test_term_ends_the_engine_and_is_no_failure(start_vllm: StartVllm) -> None:
    engine = start_vllm()
    below = engine.core_pids()
    os.kill(engine.pid, signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, (engine.pid, *below))), "the end of shim and EngineCore", 30)
    assert engine.status is not None
    assert (engine.status.phase, engine.status.failure) == (Phase.DRAINING, None)
    assert not (engine.directory / "tmp").exists()


@pytest.mark.parametrize(
    ("arguments", "others", "cause", "words"),
    [
        ({"max-modl-len": 1024}, {}, "bad_arguments", "max-model-len"),
        ({"max-num-seqs": "many"}, {}, "bad_arguments", "max-num-seqs"),
        ({"port": 80}, {}, "bad_arguments", "'port'"),
        ({"tool-call-parser": "nonsense"}, {}, "bad_arguments", "nonsense"),
        ({}, {"model": "/no/such/model"}, "model_not_found", "/no/such/model"),
        ({}, {"max_model_len": 1 << 20}, "bad_arguments", "max_model_len"),
        ({"kv-cache-memory-bytes": 1 << 16, "block-size": 32}, {}, "out_of_memory", "KV cache"),
    ],
)
def test_start_that_fails_says_why(
    start_vllm: StartVllm, arguments: dict[str, Any], others: dict[str, Any], cause: str, words: str
) -> None:
    failure = start_vllm(arguments, is_awaited=False, **others).wait_failed().failure
    assert failure is not None
    assert failure.cause == cause, failure
    assert words in f"{failure.message} {failure.remedy}", failure
    assert failure.remedy


def test_model_of_unknown_architecture_is_unsupported(
    start_vllm: StartVllm, scripted_model: Path, tmp_path: Path
) -> None:
    for path in scripted_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["NobodyKnowsForCausalLM"], "model_type": "nobody_knows"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    failure = start_vllm(model=tmp_path, is_awaited=False).wait_failed().failure
    assert failure is not None
    assert failure.cause == "model_unsupported", failure


def test_head_size_that_kills_the_engine_fails_the_warm_up(
    start_vllm: StartVllm, scripted_model: Path, tmp_path: Path
) -> None:
    """vLLM is ready and healthy with such a model, and its engine dies of the first request."""
    for path in scripted_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_attention_heads": 16, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    failure = start_vllm(model=tmp_path, is_awaited=False).wait_failed().failure
    assert failure is not None
    assert failure.cause == "warmup_failed", failure
    assert "head" in failure.message.lower(), failure


async def test_pooling_model_embeds(start_vllm: StartVllm) -> None:
    engine = start_vllm({"runner": "pooling", "convert": "embed"})
    async with LinkClient(engine.target) as link:
        answer = await link.ask("POST", "/v1/embeddings", {"model": SERVED_NAME, "input": ["hello", "the world"]})
        assert answer.status == 200
        vectors = [entry["embedding"] for entry in answer.json()["data"]]
        assert [len(vector) for vector in vectors] == [256, 256]
        assert vectors[0] != vectors[1]
        assert answer.end.prompt_tokens == answer.json()["usage"]["prompt_tokens"] == 3
        assert link.info is not None
        assert "embed" in link.info.tasks
        refused = await link.ask("POST", CHAT, HELLO)
        assert refused.status == 404


@pytest.mark.timeout(400)
async def test_production_start_spawns_and_nothing_outlives_a_killed_shim(
    installed_python: Path, scripted_model: Path, short_dir: Path
) -> None:
    """No zygote, no guard, no checkout on the path: the interpreter and the wheel of the engine environment alone."""
    spec = vllm_spec(short_dir, scripted_model, ENGINE_ARGS)
    with production_shim(installed_python, spec) as engine:
        engine.wait_ready(240)
        async with LinkClient(engine.target) as link:
            answer = await link.ask("POST", CHAT, HELLO)
            assert answer.json()["choices"][0]["message"]["content"] == scripted.ANSWER
        below = engine.core_pids()
        assert below
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: not any(map(is_alive, below)), "the end of EngineCore")

"""The adapter's parts that need no vLLM: the exchange with the ASGI app, usage, load, memory, log, scratch directory.

The engine and the apps here are fakes of a few lines; they prove the parts' own logic, and nothing about vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from jinja2 import Environment

from xinf.engine.adapter import RawHeader, Request
from xinf.engine.vllm_app import CollectedReply, Exchange
from xinf.engine.vllm_cpu import free_memory_bytes, hold_to_grant, kv_cache_bytes
from xinf.engine.vllm_failure import EngineLog, explain
from xinf.engine.vllm_load import StepMonitor
from xinf.engine.vllm_scratch import Scratch
from xinf.engine.vllm_segments import segment_order
from xinf.engine.vllm_usage import EngineProxy, RequestRecord

SEEN = Path(__file__).parent.parent / "fixtures" / "vllm-0.32.0-kv-too-small.txt"


class Died(Exception):
    pass


# ---- exchange -----------------------------------------------------------------------------------------------------


def exchange(**fields: Any) -> tuple[Exchange, CollectedReply, RequestRecord]:
    reply, record = CollectedReply(), RequestRecord()
    return Exchange(Request(method="POST", path="/x", **fields), reply, record), reply, record


def headers_of(**fields: Any) -> dict[bytes, bytes]:
    made, _, _ = exchange(**fields)
    found: Sequence[RawHeader] = made.scope(None, has_priorities=True)["headers"]
    assert len(found) == len(dict(found))
    return dict(found)


def test_scope_carries_path_query_and_what_the_gateway_knows() -> None:
    request = Request(method="GET", path="/v1/a%20b?x=1&y", trace="00-1", request_id="r", priority=3, body=b"{}")
    scope = Exchange(request, CollectedReply(), RequestRecord()).scope(None, has_priorities=True)
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/v1/a b", b"/v1/a%20b", b"x=1&y")
    headers = dict(scope["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert (headers[b"content-length"], headers[b"x-request-id"], headers[b"traceparent"]) == (b"2", b"r", b"00-1")
    assert headers[b"x-vllm-priority"] == b"3"


def test_priority_is_kept_from_engines_that_would_refuse_it() -> None:
    made, _, _ = exchange(priority=3)
    assert b"x-vllm-priority" not in dict(made.scope(None, has_priorities=False)["headers"])


def test_headers_of_the_connection_and_keys_do_not_reach_the_app() -> None:
    given = ((b"Authorization", b"secret"), (b"Content-Length", b"99"), (b"Accept", b"x"), (b"content-type", b"text/x"))
    headers = headers_of(headers=given, body=b"abc")
    assert b"authorization" not in headers
    assert (headers[b"content-length"], headers[b"accept"], headers[b"content-type"]) == (b"3", b"x", b"text/x")


async def test_start_is_held_back_until_there_is_a_byte() -> None:
    made, reply, _ = exchange()
    await made.send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1"), (b"a", b"b")]}
    )
    await made.send({"type": "http.response.body", "body": b"", "more_body": True})
    assert reply.status == 0
    await made.send({"type": "http.response.body", "body": b"x", "more_body": True})
    assert (reply.status, reply.headers, reply.body) == (200, [(b"a", b"b")], b"x")


async def test_answer_without_a_body_starts_at_its_end() -> None:
    made, reply, _ = exchange()
    await made.send({"type": "http.response.start", "status": 204, "headers": []})
    await made.send({"type": "http.response.body"})
    assert (reply.status, reply.body, made.has_answered) == (204, b"", True)


async def test_nothing_is_said_after_the_engine_died() -> None:
    made, reply, record = exchange()
    record.death = Died()
    await made.send({"type": "http.response.start", "status": 500, "headers": []})
    await made.send({"type": "http.response.body", "body": b"vLLM's own words"})
    assert (reply.status, reply.body, made.has_answered) == (0, b"", False)


async def test_disconnect_is_told_when_the_client_left() -> None:
    made, reply, _ = exchange(body=b"abc")
    assert await made.receive() == {"type": "http.request", "body": b"abc", "more_body": False}
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    made.leave()
    assert await waiting == {"type": "http.disconnect"}
    await made.send({"type": "http.response.body", "body": b"too late"})
    assert reply.body == b""


# ---- usage --------------------------------------------------------------------------------------------------------


def output(n_prompt: int, *n_answers: int, cached: int = 0, queued_s: float = 0.0) -> Any:
    answers = [SimpleNamespace(index=index, token_ids=[0] * n_tokens) for index, n_tokens in enumerate(n_answers)]
    metrics = SimpleNamespace(queued_ts=1.0, scheduled_ts=1.0 + queued_s)
    return SimpleNamespace(prompt_token_ids=[0] * n_prompt, num_cached_tokens=cached, outputs=answers, metrics=metrics)


class FakeEngine:
    """Yields the outputs it was given; waits for ever at the end if told so."""

    is_fine = True

    def __init__(self, outputs: Sequence[Any], *, ends: str = "well") -> None:
        self._outputs = outputs
        self._ends = ends
        self.was_closed = False

    async def generate(self, prompt: str, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        try:
            for one in self._outputs:
                yield one
            if self._ends == "never":
                await asyncio.Event().wait()
            if self._ends == "dead":
                raise Died
        finally:
            self.was_closed = True

    def encode(self, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        return self.generate("", None, "")


def parameters(kind: str) -> Any:
    return SimpleNamespace(output_kind=SimpleNamespace(name=kind))


async def consume(outputs: AsyncGenerator[Any, None]) -> None:
    async for _ in outputs:
        pass


async def count(engine: FakeEngine, kind: str = "DELTA", n_calls: int = 1) -> RequestRecord:
    record, proxy = RequestRecord(), EngineProxy(engine, Died)

    async def handler() -> None:
        record.enter()
        calls = [asyncio.create_task(consume(proxy.generate("p", parameters(kind), "id"))) for _ in range(n_calls)]
        await asyncio.gather(*calls)

    await asyncio.create_task(handler())
    return record


@pytest.mark.parametrize(
    ("kind", "outputs", "n_completion"),
    [
        ("DELTA", [output(5, 1), output(5, 3)], 4),
        ("CUMULATIVE", [output(5, 1), output(5, 3)], 3),
        ("FINAL_ONLY", [output(5, 7, 2)], 9),
    ],
)
async def test_usage_counts_new_tokens_whatever_an_output_holds(
    kind: str, outputs: list[Any], n_completion: int
) -> None:
    usage = (await count(FakeEngine(outputs), kind)).usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, n_completion)


async def test_usage_adds_up_several_calls_of_one_request() -> None:
    usage = (await count(FakeEngine([output(5, 2, cached=3, queued_s=0.5)]), n_calls=3)).usage()
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (15, 9, 6)
    assert usage.queued_s == 0.5


async def test_usage_of_encode_is_its_prompt() -> None:
    record = RequestRecord()
    record.enter()
    await consume(EngineProxy(FakeEngine([output(4)]), Died).encode("p", None, "id"))
    assert record.usage().prompt_tokens == 4


async def test_death_of_the_engine_is_noted_and_goes_on() -> None:
    record = RequestRecord()
    record.enter()
    with pytest.raises(Died):
        await consume(
            EngineProxy(FakeEngine([output(4, 1)], ends="dead"), Died).generate("p", parameters("DELTA"), "id")
        )
    assert isinstance(record.death, Died)
    await record.wait_idle()


async def test_call_that_is_cancelled_is_over_only_when_the_engine_let_go() -> None:
    engine, record = FakeEngine([output(4, 1)], ends="never"), RequestRecord()
    record.enter()
    call = asyncio.create_task(consume(EngineProxy(engine, Died).generate("p", parameters("DELTA"), "id")))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(record.wait_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    call.cancel()
    await waiting
    assert engine.was_closed


def test_proxy_is_the_engine_in_everything_else() -> None:
    assert EngineProxy(FakeEngine([]), Died).is_fine


# ---- load ---------------------------------------------------------------------------------------------------------


def test_load_combines_the_last_step_with_what_is_newer() -> None:
    monitor = StepMonitor()
    told: list[int] = []
    monitor.on_step(lambda: told.append(1))
    monitor.record(SimpleNamespace(num_running_reqs=4, num_waiting_reqs=1, kv_cache_usage=0.5))
    assert told == [1]
    now = monitor.report(n_unfinished=7, queued_prefill_tokens=9, kv_blocks_total=100)
    assert (now.running, now.waiting, now.kv_blocks_used, now.queued_prefill_tokens) == (4, 3, 50, 9)
    # All ended since the last step told of itself.
    for _ in range(100):
        monitor.note_prompt(prompt_tokens=100, cached_tokens=75)
    monitor.note_prompt(prompt_tokens=0, cached_tokens=0)  # of a route that generates nothing
    hits = monitor.report(n_unfinished=7, queued_prefill_tokens=400, kv_blocks_total=100)
    assert hits.queued_prefill_tokens == 100
    idle = monitor.report(n_unfinished=0, queued_prefill_tokens=0, kv_blocks_total=100)
    assert (idle.running, idle.waiting, idle.kv_blocks_used) == (0, 0, 0)


# ---- memory -------------------------------------------------------------------------------------------------------


def config_of(max_model_len: int, n_layers: int = 2) -> Any:
    model = SimpleNamespace(
        max_model_len=max_model_len,
        dtype=SimpleNamespace(itemsize=2),
        get_num_layers=lambda parallel: n_layers,
        get_num_kv_heads=lambda parallel: 2,
        get_head_size=lambda: 64,
    )
    return SimpleNamespace(model_config=model, parallel_config=None, cache_config=SimpleNamespace(block_size=32))


@pytest.mark.parametrize(
    ("max_model_len", "free_gib", "n_tokens"),
    [
        (4096, 64, 32768),  # at least so many
        (8192, 64, 8 * 8192),  # eight full requests
        (1 << 20, 16, 1 << 22),  # not more than a share of what is free ...
        (1 << 20, 1, (1 << 20) + 32),  # ... unless one request needs it
    ],
)
def test_kv_cache_fits_the_model_and_the_host(max_model_len: int, free_gib: int, n_tokens: int) -> None:
    assert kv_cache_bytes(config_of(max_model_len), free_gib << 30) == n_tokens * 1024


def test_size_that_is_set_for_the_whole_host_is_no_grant() -> None:
    variable = "VLLM_CPU_KVCACHE_SPACE"
    environ = {variable: "40", "HOME": "/h"}
    hold_to_grant(environ, {variable: "40"})
    assert environ == {variable: "40", "HOME": "/h"}, "the deployment asks for it, and that is what was granted"
    hold_to_grant(environ, {"OTHER": "1"})
    assert environ == {"HOME": "/h"}


def test_free_memory_is_within_the_limit_of_the_group(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   80 kB\n")
    assert free_memory_bytes(tmp_path) == 80 << 10
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{10 << 10}\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) == 80 << 10
    (group / "memory.max").write_text(f"{50 << 10}\n")
    assert free_memory_bytes(tmp_path) == 40 << 10


# ---- failures -----------------------------------------------------------------------------------------------------

ABOVE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


def test_root_cause_is_found_in_what_this_start_wrote(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("ValueError: of an earlier start\n")
    log = EngineLog(path)
    assert log.root_cause() is None
    with path.open("ab") as file:
        file.write(SEEN.read_bytes())
    failure = explain(ABOVE, log)
    assert failure.fields["cause"] == "out_of_memory"
    assert "KV cache" in failure.message


def test_core_that_the_kernel_killed_was_out_of_memory(tmp_path: Path) -> None:
    error = RuntimeError("Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}")
    assert explain(error, EngineLog(tmp_path / "none")).fields["cause"] == "out_of_memory"


def test_wrong_value_is_named_and_not_only_counted(tmp_path: Path) -> None:
    text = (
        "1 validation error for ModelConfig\n  Value error, the length is too much [type=value_error, input=1]\n  For"
    )
    failure = explain(ValueError(text), EngineLog(tmp_path / "none"))
    assert failure.message == "the length is too much"
    assert failure.fields["cause"] == "bad_arguments"


def test_value_out_of_its_range_is_told_with_its_name(tmp_path: Path) -> None:
    text = (
        "1 validation error for CacheConfig\ngpu_memory_utilization\n"
        "  Input should be less than or equal to 1 [type=less_than_equal, input_value=2.0, input_type=float]\n  For"
    )
    failure = explain(ValueError(text), EngineLog(tmp_path / "none"))
    assert failure.message == "gpu_memory_utilization = 2.0: Input should be less than or equal to 1"
    assert failure.fields["cause"] == "bad_arguments"


# ---- segments -----------------------------------------------------------------------------------------------------


def template(source: str) -> Any:
    return lambda messages, tools, **options: (
        Environment(autoescape=False).from_string(source).render(messages=messages, tools=tools, **options)
    )


REST = "{% for m in messages %}{{ m.content }}{% endfor %}"
TOOLS = "{{ tools | tojson }}"


@pytest.mark.parametrize(
    ("source", "order"),
    [
        (TOOLS + REST, ("tools", "messages")),
        ("{% for m in messages %}{{ m.content }}{% if loop.first %}" + TOOLS + "{% endif %}{% endfor %}",
         ("system", "tools", "messages")),
        ("{% for m in messages %}{% if loop.last %}" + TOOLS + "{% endif %}{{ m.content }}{% endfor %}",
         ("system", "messages", "tools", "last_user")),
        # What stands in front of the system message depends on tools behind it.
        ("{% if tools %}Environment: ipython{% endif %}{% for m in messages %}{{ m.content }}"
         "{% if loop.first %}" + TOOLS + "{% endif %}{% endfor %}", ("has_tools", "system", "tools", "messages")),
        (TOOLS + REST + "{% if enable_thinking %}<think>{% endif %}", ("tools", "messages", "thinking")),
        (TOOLS + "{% if enable_thinking %}Think.{% endif %}" + REST, ("tools", "messages")),
        (REST, ("system", "messages")),
        ("{% if messages[0].role == 'system' %}{{ no.such.thing }}{% endif %}" + TOOLS + REST, ("tools", "messages")),
        ("{{ no.such.thing }}", ()),
    ],
)  # fmt: skip
def test_order_of_segments_is_read_from_a_rendered_prompt(source: str, order: tuple[str, ...]) -> None:
    assert segment_order(template(source)) == order


# ---- scratch directory --------------------------------------------------------------------------------------------


def test_scratch_is_emptied_of_what_an_earlier_start_left(short_dir: Path) -> None:
    (short_dir / "tmp").mkdir()
    (short_dir / "tmp" / "old.sock").touch()
    scratch = Scratch(short_dir)
    assert scratch.path == short_dir / "tmp"
    assert list(scratch.path.iterdir()) == []
    scratch.remove()
    assert not scratch.path.exists()


def test_scratch_is_short_enough_for_sockets(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / ("long" * 20))
    assert len(str(scratch.path)) + 1 + 36 <= 107
    scratch.remove()


# ---- reset --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reset", [True, False])
async def test_reset_is_told_as_soon_as_the_engine_did_it(is_reset: bool) -> None:
    class Resetting:
        async def reset_prefix_cache(self, reset_running: bool = False) -> bool:
            return is_reset and reset_running

    class Told:
        n_clears = 0

        def clear(self) -> None:
            self.n_clears += 1

    proxy, told = EngineProxy(Resetting(), RuntimeError), Told()
    proxy.prompts = told  # type: ignore[assignment]  # what of it is used here
    assert await proxy.reset_prefix_cache(reset_running=True) is is_reset
    assert told.n_clears == is_reset


async def test_seeds_are_dropped_where_the_engine_dies_of_them() -> None:
    class Parameters:
        seed: int | None = 7
        extra_args: ClassVar[dict[str, str]] = {"kv_cache_report_mode": "full", "other": "kept"}
        output_kind = SimpleNamespace(name="DELTA")

    class Generating:
        async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            for _ in ():
                yield None

    for drops, seed in ((False, 7), (True, None)):
        given = Parameters()
        RequestRecord().enter()
        async for _ in EngineProxy(Generating(), RuntimeError, drops_seeds=drops).generate({}, given, "r"):
            raise AssertionError("nothing is generated")
        assert given.seed == seed
    assert Parameters.extra_args == {"other": "kept"}

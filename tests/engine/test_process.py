"""A shim process from spec to exit: phases, failures, draining, hanging, dying. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.engine.link_client import CHECKOUT, LinkClient, generate, is_alive, running_shim, shim_spec
from xinf._pb import engine_service_pb2 as pb
from xinf.core.records import Phase
from xinf.engine.process import EXIT_ENGINE_LOST, EXIT_START_FAILED, EXIT_STOPPED

COMPLETIONS = "/v1/completions"


def prompt(max_tokens: int = 3, **fields: object) -> dict[str, object]:
    return {"model": "sim", "prompt": "hello", "max_tokens": max_tokens, **fields}


async def test_shim_goes_through_its_phases_and_says_what_it_is(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, block_tokens=32, kv_blocks=128)) as shim:
        status = await shim.wait_phase(Phase.READY)
        assert status.start_id == "s-1"
        assert list(status.phase_since_s) == ["starting", "loading", "warming", "ready"]
        assert list(status.phase_since_s.values()) == sorted(status.phase_since_s.values())
        assert (status.block_tokens, status.kv_blocks, status.max_model_len) == (32, 128, 4096)
        assert is_alive(status.pid)


async def test_term_drains_and_exits_with_0(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, step_ms=10)) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            open_one = await link.submit("POST", COMPLETIONS, prompt(40, stream=True))
            await link.wait(lambda: open_one.chunks, "the first token")
            shim.process.terminate()
            await shim.wait_phase(Phase.DRAINING)
            refused = await link.ask("POST", COMPLETIONS, prompt())
            assert (refused.end.error, refused.end.retryable) == ("unavailable", True)
            await link.wait(lambda: open_one.ends, "the end of the open request")
            assert (open_one.end.error, open_one.end.completion_tokens) == ("", 40)
            assert await link.wait_end() == grpc.StatusCode.OK
        assert await shim.wait_exit() == EXIT_STOPPED
        assert shim.exit is not None
        assert shim.exit.status == 0
        assert not (short_dir / "e.sock").exists()


@pytest.mark.parametrize("n_signals", [1, 2])
async def test_drain_ends_at_its_deadline_or_at_a_second_signal(short_dir: Path, n_signals: int) -> None:
    drain_timeout_s = 0.3 if n_signals == 1 else 600.0
    spec = shim_spec(short_dir, step_ms=10, limits={"drain_timeout_s": drain_timeout_s})
    with running_shim(spec) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(spec.listen) as link:
            silent = await link.submit("POST", COMPLETIONS, prompt(20_000))
            begun = await link.submit("POST", COMPLETIONS, prompt(20_000, stream=True))
            await link.wait(lambda: begun.chunks, "the first token")
            for _ in range(n_signals):
                shim.process.send_signal(signal.SIGINT)
                await shim.wait_phase(Phase.DRAINING)
            await link.wait(lambda: silent.ends and begun.ends, "both ends")
            assert (silent.end.error, silent.end.retryable) == ("unavailable", True)
            assert (begun.end.error, begun.end.retryable) == ("unavailable", False)
        assert await shim.wait_exit() == EXIT_STOPPED


async def test_hung_engine_is_noticed_and_ended(short_dir: Path) -> None:
    spec = shim_spec(short_dir, hang_after_tokens=5, limits={"watchdog_timeout_s": 0.5})
    with running_shim(spec) as shim:
        status = await shim.wait_phase(Phase.READY)
        async with LinkClient(spec.listen) as link:
            begun = await link.submit("POST", COMPLETIONS, prompt(100, stream=True))
            await link.wait(lambda: begun.chunks, "the first token")
            silent = await link.submit("POST", COMPLETIONS, prompt(100))
            await link.wait(lambda: begun.ends and silent.ends, "both ends")
            assert (begun.end.error, begun.end.retryable) == ("engine_died", False)
            assert (silent.end.error, silent.end.retryable) == ("engine_died", True)
        assert await shim.wait_exit() == EXIT_ENGINE_LOST
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.cause == "hung"
        assert "no step for" in failed.failure.message
        assert not is_alive(status.pid)


async def test_dead_engine_ends_the_shim(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, die_after_tokens=5)) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            answer = await link.ask("POST", COMPLETIONS, prompt(100))
            assert (answer.end.error, answer.end.retryable) == ("engine_died", True)
        assert await shim.wait_exit() == EXIT_ENGINE_LOST
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.cause == "engine_died"


# An engine whose requests do what their id says: `block` stops the shim's own event loop, so that nothing on it can
# notice; `stubborn` does not let itself be cancelled.
UNRULY = """
import asyncio, sys, threading
from pathlib import Path
from xinf.core.shim import ShimSpec, read_file
from xinf.engine.process import exit_now, serve
from xinf.engine.sim_adapter import SimAdapter
from xinf.engine.status import StatusFile

class Unruly(SimAdapter):
    begin = None  # a task per request

    async def handle(self, request, reply):
        if request.request_id == "block":
            threading.Event().wait()
        while request.request_id == "stubborn":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        return await super().handle(request, reply)

if __name__ == "__main__":
    spec = read_file(Path(sys.argv[1]), ShimSpec)
    adapter = Unruly(spec)
    adapter.build(lambda _: None)
    exit_now(serve(spec, adapter, StatusFile(spec)))
"""


async def test_blocked_event_loop_is_noticed_and_ended(short_dir: Path) -> None:
    (short_dir / "unruly.py").write_text(UNRULY)
    with running_shim(shim_spec(short_dir, limits={"watchdog_timeout_s": 0.5}), module="unruly") as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            await link.submit("POST", COMPLETIONS, prompt(), request_id="block")
            assert await shim.wait_exit() == EXIT_ENGINE_LOST
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.cause == "hung"
        assert "event loop" in failed.failure.message


async def test_request_that_ignores_its_cancellation_does_not_keep_the_process(short_dir: Path) -> None:
    (short_dir / "unruly.py").write_text(UNRULY)
    with running_shim(shim_spec(short_dir, limits={"drain_timeout_s": 0.1}), module="unruly") as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            answer = await link.submit("POST", COMPLETIONS, prompt(), request_id="stubborn")
            await link.ask("POST", COMPLETIONS, prompt())
            shim.process.terminate()
            await link.wait(lambda: answer.ends, "its end")
            assert answer.end.error == "unavailable"
        assert await shim.wait_exit() == EXIT_STOPPED


@pytest.mark.parametrize(
    ("engine_args", "cause", "word"),
    [
        ({"kv_block": 5}, "bad_arguments", "did you mean kv_blocks?"),
        ({"step_ms": "slow"}, "bad_arguments", "step_ms"),
        ({"kv_blocks": 0}, "bad_arguments", "kv_blocks"),
        ({"build_failure": "out_of_memory"}, "out_of_memory", "as asked"),
        ({"die_after_tokens": 0}, "warmup_failed", "died"),
    ],
)
async def test_failed_start_says_why(short_dir: Path, engine_args: dict[str, object], cause: str, word: str) -> None:
    with running_shim(shim_spec(short_dir, **engine_args)) as shim:
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.cause == cause
        assert word in failed.failure.message + failed.failure.remedy
        assert await shim.wait_exit() == EXIT_START_FAILED


async def test_warm_up_that_takes_too_long_fails_the_start(short_dir: Path) -> None:
    spec = shim_spec(short_dir, hang_after_tokens=0, limits={"warmup_timeout_s": 0.2})
    with running_shim(spec) as shim:
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.cause == "warmup_failed"
        assert await shim.wait_exit() == EXIT_START_FAILED


async def test_term_while_building_ends_the_process_at_once(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, build_s=600)) as shim:
        status = await shim.wait_phase(Phase.LOADING)
        shim.process.terminate()
        assert await shim.wait_exit() == 128 + signal.SIGTERM
        assert shim.exit is not None
        assert shim.exit.status == -signal.SIGTERM
        assert not is_alive(status.pid)


async def test_term_while_warming_stops_the_shim(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, hang_after_tokens=0)) as shim:
        await shim.wait_phase(Phase.WARMING)
        shim.process.terminate()
        assert await shim.wait_exit() == EXIT_STOPPED


async def test_address_that_cannot_be_had_fails_the_start(short_dir: Path) -> None:
    spec = msgspec.structs.replace(shim_spec(short_dir), listen="unix:/no/such/directory/e.sock")
    with running_shim(spec) as shim:
        failed = await shim.wait_phase(Phase.FAILED)
        assert failed.failure is not None
        assert "/no/such/directory/e.sock" in failed.failure.message


async def test_standard_health_and_reflection(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir)) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            health = health_pb2_grpc.HealthStub(link.channel)
            for name in ("", "xinf.engine.v1.EngineService"):
                state = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert state.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(link.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for response in reflection.ServerReflectionInfo(iter([request])):
                names = {service.name for service in response.list_services_response.service}
                assert {"xinf.engine.v1.EngineService", "grpc.health.v1.Health"} <= names
            assert (await link.stub.Drain(pb.DrainRequest(timeout_s=1))).unfinished == 0
            state = await health.Check(health_pb2.HealthCheckRequest())
            assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
            answer = await link.stub.Health(pb.HealthRequest())
            assert (answer.phase, answer.is_serving) == ("draining", False)


async def test_bad_spec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "xinf.engine", str(tmp_path / "spec.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 2
    assert "spec.json" in done.stderr


def test_main_module_is_harmless_when_imported_again() -> None:
    """What a spawned engine process does first: import the main module under another name."""
    code = (
        "import runpy, sys; runpy.run_module('xinf.engine.__main__', run_name='__mp_main__');"
        "print([m for m in ('grpc', 'uvloop', 'xinf.engine.process') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=CHECKOUT
    )
    assert done.stdout.strip() == "[]"


async def test_generate_serves_one_request_on_its_own(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir, step_ms=1)) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            body = b'{"model": "sim", "prompt": "hello", "max_tokens": 5, "stream": true}'
            submit = pb.Submit(method="POST", path=COMPLETIONS, body=body)
            alone = await generate(link.stub, submit)
            assert (alone.status, alone.end.completion_tokens, len(alone.events())) == (200, 5, 5)
            call = link.stub.Generate(pb.Submit(method="POST", path=COMPLETIONS, body=body.replace(b"5", b"20000")))
            await call.read()
            await link.wait_load(lambda load: load.running == 1, "a running request")
            call.cancel()
            await link.wait_load(lambda load: load.running == 0, "an idle engine")


async def test_administrative_calls_reach_the_engine(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir)) as shim:
        await shim.wait_phase(Phase.READY)
        async with LinkClient(shim.spec.listen) as link:
            await link.stub.LoadLora(pb.LoadLoraRequest(name="l", path="/x"))
            assert (await link.ask("POST", COMPLETIONS, {**prompt(), "model": "l"})).status == 200
            await link.stub.UnloadLora(pb.UnloadLoraRequest(name="l"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await link.stub.UnloadLora(pb.UnloadLoraRequest(name="l"))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            assert b"not_found" in dict(caught.value.trailing_metadata())["xinf-error-bin"]
            await link.stub.Sleep(pb.SleepRequest(level=1))
            assert (await link.ask("POST", COMPLETIONS, prompt())).status == 503
            await link.stub.Wake(pb.WakeRequest())
            assert (await link.ask("POST", COMPLETIONS, prompt())).status == 200
            info = await link.stub.GetInfo(pb.GetInfoRequest())
            assert info == link.info

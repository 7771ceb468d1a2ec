"""Causes from what a start leaves behind. The lines are as the engine writes them, shortened."""

from __future__ import annotations

import pytest

from xinf.agent.failure import SHOWN_LINES, Evidence, classify


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        (
            "ValueError: Free memory on device (3.1/31.4 GiB) on startup is less than desired GPU memory",
            "out_of_memory",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing", "out_of_memory"),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory",
            "out_of_memory",
        ),
        ("ModuleNotFoundError: No module named 'vllm'", "missing_dependency"),
        ("python: error while loading shared libraries: libpython3.11.so.1.0: cannot open", "missing_dependency"),
        ("OSError: [Errno 98] Address already in use", "port_in_use"),
        ("RuntimeError: No CUDA GPUs are available", "device_unavailable"),
        ("OSError: org/none is not a local folder and is not a valid model identifier listed on", "model_not_found"),
        ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.", "model_unsupported"),
        ("vllm serve: error: unrecognized arguments: --no-such", "bad_arguments"),
        ("SomethingElse: who knows", "crashed"),
    ],
)
def test_log_line_tells_the_cause(line: str, cause: str) -> None:
    failure = classify(Evidence(exit_status=1, log_tail=("INFO starting", line)), at_s=7.0)
    assert failure.cause == cause
    assert line in failure.message
    assert failure.remedy
    assert (failure.exit_status, failure.at_s) == (1, 7.0)


@pytest.mark.parametrize(
    ("status", "oom_kills", "cause", "words"),
    [
        (-9, 0, "killed", "SIGKILL"),
        (-15, 0, "killed", "SIGTERM"),
        (-11, 0, "killed", "SIGSEGV"),
        (-9, 1, "out_of_memory", "kernel"),
        (None, 1, "out_of_memory", "kernel"),
        (None, 0, "killed", "killed or the host restarted"),
        (0, 0, "killed", "told to stop"),
        (3, 1, "crashed", "status 3"),  # somebody else's process was killed for memory
    ],
)
def test_status_tells_the_cause(status: int | None, oom_kills: int, cause: str, words: str) -> None:
    failure = classify(Evidence(exit_status=status, oom_kills=oom_kills), at_s=0.0)
    assert failure.cause == cause
    assert words in failure.message


def test_killed_engine_is_not_blamed_on_an_old_line() -> None:
    failure = classify(Evidence(exit_status=-9, log_tail=("ImportError: optional thing",)), at_s=0.0)
    assert failure.cause == "killed"


def test_tail_is_kept_short() -> None:
    failure = classify(Evidence(exit_status=1, log_tail=tuple(f"line {i}" for i in range(200))), at_s=0.0)
    assert failure.log_tail == tuple(f"line {i}" for i in range(200 - SHOWN_LINES, 200))

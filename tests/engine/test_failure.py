from __future__ import annotations

import argparse

import pytest

from xinf.core.errors import EngineDied, EngineStartFailed
from xinf.engine.failure import failure_of


def argparse_exit() -> BaseException:
    try:
        argparse.ArgumentParser().parse_args(["--nonsense"])
    except SystemExit as error:
        return error
    raise AssertionError("argparse took it")


def plain_exit() -> BaseException:
    try:
        raise SystemExit(3)
    except SystemExit as error:
        return error


def wrapped(inner: BaseException) -> BaseException:
    try:
        raise RuntimeError("Engine core initialization failed") from inner
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (ValueError("No available memory for the cache blocks."), "out_of_memory"),
        (OSError("x is not a local folder and is not a valid model identifier listed on"), "model_not_found"),
        (OSError("m does not appear to have a file named config.json"), "model_not_found"),
        (ValueError("Model architectures ['X'] are not supported for now."), "model_unsupported"),
        (RuntimeError("No CUDA GPUs are available"), "device_unavailable"),
        (RuntimeError("Failed to infer device type"), "device_unavailable"),
        (ModuleNotFoundError("No module named 'vllm'"), "missing_dependency"),
        (EngineDied("gone"), "engine_died"),
        (ValueError("No common block size for 16."), "bad_arguments"),
        (ZeroDivisionError("division by zero"), "crashed"),
        (wrapped(RuntimeError("CUDA out of memory")), "out_of_memory"),
        (wrapped(ImportError("libcudart.so")), "missing_dependency"),
    ],
)
def test_failure_names_the_cause(error: BaseException, cause: str) -> None:
    failure = failure_of(error)
    assert failure.cause == cause
    assert failure.message
    assert failure.remedy


def test_exit_of_argparse_is_bad_arguments_and_any_other_a_crash() -> None:
    assert failure_of(argparse_exit()).cause == "bad_arguments"
    assert failure_of(plain_exit()).cause == "crashed"


def test_failure_that_says_its_cause_is_believed() -> None:
    error = EngineStartFailed("no such model: out of memory", remedy="look again", cause="model_not_found")
    failure = failure_of(wrapped(error))
    assert (failure.cause, failure.message, failure.remedy) == (
        "model_not_found",
        "no such model: out of memory",
        "look again",
    )


def test_unknown_failure_takes_the_cause_of_its_phase() -> None:
    assert failure_of(ZeroDivisionError(), otherwise="warmup_failed").cause == "warmup_failed"


def test_chain_that_loops_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert failure_of(first).cause == "crashed"

"""One installation with the real vLLM for all of e2e: engines take seconds to start, tests should not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.e2e.stack import Stack

MODEL = "scripted"
EMBEDDER = "embedder"


@pytest.fixture(scope="package")  # not longer: three idle engines take a twentieth of a core
def vllm_stack() -> Iterator[Stack]:
    """serve, worker, two vLLM replicas of a chat model and one of an embedding model, behind two gateway processes.

    EngineCore is forked here, which saves its imports; tests/engine/test_vllm_faults.py starts one the way production
    does (spawn). All three are started at once, because that takes as long as two.
    """
    with Stack(workers=2) as stack:
        # Engines on the CPU wait for each other's threads in busy loops: several on two cores need one thread each.
        threads = ("--env", "OMP_NUM_THREADS=1", "--env", "VLLM_CPU_OMP_THREADS_BIND=nobind")
        fork = ("--env", "VLLM_WORKER_MULTIPROC_METHOD=fork")
        common = ("--model", "scripted", "--engine", "vllm", "--device", "cpu", *threads, *fork)
        pooling = ("--engine-arg", "runner=pooling", "--engine-arg", "convert=embed")
        stack.run("launch", *common, "--name", EMBEDDER, *pooling, "--no-wait")
        stack.run("launch", *common, "--name", MODEL, "--replicas", "2", timeout_s=300)
        stack.run("launch", *common, "--name", EMBEDDER, *pooling, timeout_s=300)
        yield stack


@pytest.fixture
def client(vllm_stack: Stack) -> Iterator[OpenAI]:
    """The official client, without its own retries: what the gateway answers is what the test sees."""
    with OpenAI(base_url=f"{vllm_stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made

"""One installation with the real vLLM for the whole session: engines take seconds to start, tests should not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.e2e.stack import Stack

MODEL = "scripted"


@pytest.fixture(scope="session")
def vllm_stack() -> Iterator[Stack]:
    """serve, worker and one vLLM replica, started the way production does (spawn), behind two gateway processes."""
    with Stack(workers=2) as stack:
        stack.run(
            "launch", "--model", "scripted", "--name", MODEL, "--engine", "vllm", "--device", "cpu", timeout_s=240
        )
        yield stack


@pytest.fixture
def client(vllm_stack: Stack) -> Iterator[OpenAI]:
    """The official client, without its own retries: what the gateway answers is what the test sees."""
    with OpenAI(base_url=f"{vllm_stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made

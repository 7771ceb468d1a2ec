"""A model that is at a hub alone: launched, fetched by the node, served by the real vLLM under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.stack import Stack
from tests.registry.hub import COMMIT, OLD_COMMIT, Hub, serve
from xinf.registry import scripted, write_scripted_model

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(400)]

NAME = "fetched"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    directory = write_scripted_model(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    with serve(files) as made:
        yield made


def test_model_of_a_hub_is_fetched_and_served(vllm_stack: Stack, hub: Hub, client: OpenAI, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environ = ("HF_ENDPOINT=" + hub.url, f"HF_HUB_CACHE={cache}", "OMP_NUM_THREADS=1",
               "VLLM_CPU_OMP_THREADS_BIND=nobind", "VLLM_WORKER_MULTIPROC_METHOD=fork")  # fmt: skip
    wish = ("--model", "org/name", "--name", NAME, "--device", "cpu", *(f"--env={each}" for each in environ))
    vllm_stack.run("launch", *wish, timeout_s=300)
    try:
        described = vllm_stack.run("describe", NAME).stdout
        assert f"commit      {COMMIT}" in described
        snapshot = cache / "models--org--name" / "snapshots" / COMMIT
        assert (snapshot / "model.safetensors").is_file()
        log = vllm_stack.run("logs", NAME).stdout
        assert "no hub is asked" in log
        # Clients know it by the names that they always knew it by, and never by a path of the node.
        for name in (NAME, "org/name"):
            answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}])
            assert answer.choices[0].message.content == scripted.ANSWER
        assert str(cache) not in "".join(repr(model) for model in client.models.list())
        # The branch moves on; the same launch without the hub changes nothing.
        hub.files[OLD_COMMIT] = hub.files.pop(COMMIT)
        hub.status = 503
        again = vllm_stack.run("launch", *wish, timeout_s=300)
        assert "is wished for like this already" in again.stdout
    finally:
        vllm_stack.run("stop", NAME, timeout_s=120)

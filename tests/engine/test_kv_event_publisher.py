"""The client of KV events against vLLM's own publisher, in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.fake_publisher import Listener
from tests.engine.link_client import CHECKOUT, until
from xinf.engine.kv_event_client import KvEventClient

pytestmark = pytest.mark.engine

TOPIC = "kv"
BUFFER_STEPS = 3000


class VllmPublisher:
    """The process; `tell` writes a line to it."""

    def __init__(self, python: Path, directory: Path) -> None:
        self.endpoint = f"ipc://{directory}/kv.sock"
        self.replay_endpoint = f"ipc://{directory}/replay.sock"
        self.process = subprocess.Popen(
            [
                *(python, CHECKOUT / "tests" / "engine" / "vllm_publisher.py"),
                *(self.endpoint, self.replay_endpoint, str(BUFFER_STEPS), TOPIC),
            ],
            env={**os.environ, "TMPDIR": str(directory), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def publisher(engine_python: Path, short_dir: Path) -> Iterator[VllmPublisher]:
    made = VllmPublisher(engine_python, short_dir)
    yield made
    made.close()


def listen(publisher: VllmPublisher) -> tuple[KvEventClient, Listener]:
    listener = Listener()
    client = KvEventClient(
        publisher.endpoint,
        publisher.replay_endpoint,
        on_batch=listener.on_batch,
        on_reset=listener.on_reset,
        on_problem=listener.problems.append,
        topic=TOPIC,
        check_s=0.5,
    )
    client.start()
    return client, listener


async def test_vllms_publisher_is_understood(publisher: VllmPublisher) -> None:
    client, listener = listen(publisher)
    publisher.tell("5")
    await until(lambda: len(listener.said) == 5, "the first batches")
    publisher.tell("2000")
    await until(lambda: len(listener.said) >= 2005, "all batches")
    assert listener.said == list(range(2005))
    assert client.lag.max_s is not None
    assert 0 <= client.lag.max_s < 30

    # More than the queue of its ROUTER holds: what it drops in the middle is asked for again.
    late, heard = listen(publisher)
    await until(lambda: len(heard.said) >= 2005, "the replay")
    assert heard.said == list(range(2005))
    assert late.counters.replayed == 2005
    await late.close()

    publisher.tell(str(BUFFER_STEPS))
    await until(lambda: len(listener.said) >= 2005 + BUFFER_STEPS, "all batches")
    too_late, heard = listen(publisher)
    await until(lambda: len(heard.said) > BUFFER_STEPS, "what is left")
    assert heard.said == [
        "batches 0 to 2004 are lost: the engine keeps them no more",
        *range(2005, 2005 + BUFFER_STEPS),
    ]
    await too_late.close()

    assert not listener.problems
    publisher.tell("again")
    publisher.tell("3")
    await until(lambda: len(listener.said) >= 2005 + BUFFER_STEPS + 4, "the new publisher")
    assert listener.said[-4:] == ["the engine's event stream started over", 0, 1, 2]
    assert client.counters.resets == 1
    await client.close()

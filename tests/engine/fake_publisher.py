"""A publisher of KV events on real ZeroMQ sockets, told by the test what to publish, drop, forget and answer.

It proves what the client makes of a stream on the wire: gaps, replays, restarts, strangers. It cannot prove that vLLM
speaks this way: `vllm_publisher.py` runs vLLM's own publisher for that.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

END = b"\xff" * 8


def payload(number: int, *, timestamp: float = 1_700_000_000.0) -> bytes:
    """A batch that removes the block `number`."""
    event = {"type": "BlockRemoved", "block_hashes": [number], "medium": "GPU", "group_idx": 0}
    return msgspec.msgpack.encode([timestamp, [event], 0])


class FakePublisher:
    """PUB and ROUTER below `directory`. `buffer`: what a replay can still give; `requests`: what it was asked for."""

    def __init__(self, directory: Path, *, topic: bytes = b"") -> None:
        self.endpoint = f"ipc://{directory}/kv.sock"
        self.replay_endpoint = f"ipc://{directory}/replay.sock"
        self.topic = topic
        self.next = 0
        self.buffer: dict[int, bytes] = {}
        self.requests: list[int] = []
        self.is_silent = False
        self.has_topic_in_replies = True  # as vLLM 0.32; earlier it had not
        self.holes: list[set[int]] = []  # for each request in turn, what the ROUTER drops
        self._context = zmq.asyncio.Context()
        # Tells when somebody has subscribed; to a subscriber it is the same as PUB.
        self._publisher = self._context.socket(zmq.XPUB)
        self._publisher.bind(self.endpoint)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(self.replay_endpoint)
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def wait_subscribed(self) -> None:
        async with asyncio.timeout(30):
            assert await self._publisher.recv() == b"\x01" + self.topic

    async def publish(self, content: bytes | None = None) -> None:
        """Publish the next batch, `payload(its sequence)` if nothing else is given."""
        content = self.keep(content)
        await self.send(self.topic, (self.next - 1).to_bytes(8, "big"), content)

    def keep(self, content: bytes | None = None) -> bytes:
        """Count and keep the next batch as if it had been published, but it reaches nobody."""
        content = payload(self.next) if content is None else content
        self.buffer[self.next] = content
        self.next += 1
        return content

    async def send(self, *frames: bytes) -> None:
        await self._publisher.send_multipart(frames)

    async def _answer(self) -> None:
        while True:
            identity, _, start = await self._router.recv_multipart()
            self.requests.append(int.from_bytes(start, "big"))
            if self.is_silent:
                continue
            dropped = self.holes.pop(0) if self.holes else set()
            topic = [self.topic] if self.has_topic_in_replies else []
            for sequence, content in self.buffer.items():
                if sequence >= self.requests[-1] and sequence not in dropped:
                    await self._router.send_multipart([identity, b"", *topic, sequence.to_bytes(8, "big"), content])
            await self._router.send_multipart([identity, b"", *([b""] if topic else []), END, b""])

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._context.destroy(linger=0)


class Listener:
    """What a client said, in order: sequences of batches and reasons of resets."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.problems: list[str] = []

    def on_batch(self, batch: Any) -> None:
        self.said.append(batch.sequence)

    def on_reset(self, reason: str) -> None:
        self.said.append(reason)

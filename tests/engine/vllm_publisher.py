"""vLLM's own publisher of KV events, run by a test with the interpreter of the engine environment.

    python vllm_publisher.py ENDPOINT REPLAY_ENDPOINT BUFFER_STEPS TOPIC

Each line of its standard input publishes that many batches, the n-th of all removes block n; "again" makes a new
publisher at the same endpoints. It ends with its input. It proves the protocol on the wire, replay and its limits
included; what an engine puts into the events, the fixtures prove.
"""

from __future__ import annotations

import os
import sys
import time

from vllm.distributed.kv_events import BlockRemoved, KVEventBatch, ZmqEventPublisher


def make_publisher() -> ZmqEventPublisher:
    endpoint, replay_endpoint, buffer_steps, topic = sys.argv[1:]
    return ZmqEventPublisher(
        0, endpoint=endpoint, replay_endpoint=replay_endpoint, buffer_steps=int(buffer_steps), topic=topic
    )


def main() -> None:
    publisher = make_publisher()
    print("ready", flush=True)
    number = 0
    for line in sys.stdin:
        if line == "again\n":
            publisher.shutdown()
            publisher = make_publisher()
            continue
        for _ in range(int(line)):
            event = BlockRemoved(block_hashes=[number], medium="GPU", group_idx=0)
            publisher.publish(KVEventBatch(ts=time.time(), events=[event]))
            number += 1
    os._exit(0)  # vLLM's modules take seconds to tear down


if __name__ == "__main__":
    main()

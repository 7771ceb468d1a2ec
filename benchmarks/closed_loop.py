"""Well-behaved clients in a closed loop, in a process of their own so that nothing else slows them down.

`python -m benchmarks.closed_loop PORT SECONDS CONNECTIONS` prints one JSON object: how many requests, p50 and p99 of
whole answers in ms, what failed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

import uvloop

MODEL = "m"


def request() -> bytes:
    """One small chat request."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", body]).encode()


async def _client(port: int, end_s: float, latencies_ms: list[float], failures: list[str]) -> None:
    data = request()
    while time.monotonic() < end_s:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while time.monotonic() < end_s:
                begun_s = time.monotonic()
                writer.write(data)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                latencies_ms.append((time.monotonic() - begun_s) * 1000)
                if b" 200 " not in head[:16]:
                    failures.append(head.split(b"\r\n")[0].decode())
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            failures.append(repr(error))
        finally:
            writer.close()


async def _run(port: int, seconds: float, n_connections: int) -> dict[str, object]:
    latencies_ms: list[float] = []
    failures: list[str] = []
    end_s = time.monotonic() + seconds
    await asyncio.gather(*(_client(port, end_s, latencies_ms, failures) for _ in range(n_connections)))
    latencies_ms.sort()
    return {
        "n_requests": len(latencies_ms),
        "p50_ms": round(statistics.median(latencies_ms), 2),
        "p99_ms": round(latencies_ms[int(len(latencies_ms) * 0.99)], 2),
        "n_failed": len(failures),
        "failures": failures[:5],
    }


def main() -> None:
    port, seconds, n_connections = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(uvloop.run(_run(port, seconds, n_connections))))


if __name__ == "__main__":
    main()

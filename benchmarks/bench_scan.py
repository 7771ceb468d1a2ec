"""What does it cost to validate a body, chain its prompt and look the prefix up?

Through Python, as the gateway does it; beside orjson.loads and msgspec's decoder on the same body.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xinf._fast.prefix import PrefixIndex
from xinf._fast.scan import scan

SIZES = {"0.5 KB": 512, "8 KB": 8192, "64 KB": 65536}
N_REPLICAS = 64
SEED = 7
PLAIN = "The quick brown fox jumps over the lazy dog, and nobody minds it in the least; that is how foxes are. "
TEXTS = {
    "chat": PLAIN,
    "escaped": 'He said: "quick",\n\tand then\\or later: "brown"\n- a list\n- of \u0007 things / paths\n',
    "non-ASCII": "Ein Füchslein spräng über den trägen Hund. 素早い茶色の狐が怠惰な犬を飛び越える。 Быстрая лиса 🦊. ",
}


def tool(number: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    function = {"name": f"forecast_{number}", "description": PLAIN, "parameters": parameters}
    return {"type": "function", "function": function}


def body_of(kind: str, n_bytes: int) -> bytes:
    """A chat of turns of up to 1 KB, as large as asked for; `tools` spends half of it on tools."""
    request: dict[str, Any] = {"model": "qwen", "stream": True, "max_tokens": 128, "temperature": 0.7}
    if kind == "tools":
        request["tools"] = []
        while len(orjson.dumps(request)) < n_bytes // 2 or not request["tools"]:
            request["tools"].append(tool(len(request["tools"])))
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are a helpful assistant."}]
    request["messages"] = messages
    text = TEXTS.get(kind, PLAIN)
    left = n_bytes - len(orjson.dumps(request))
    while left > 60:
        content = (text * 20)[: min(1000, left)]
        while content and len(orjson.dumps(content)) > max(60, min(1000, left - 40)):
            content = content[:-10]
        messages.append({"role": "assistant" if len(messages) % 2 == 0 else "user", "content": content})
        left = n_bytes - len(orjson.dumps(request))
    return orjson.dumps(request)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*TEXTS, "tools"])
def test_scan_chain_match(kind: str, size: str, compare: Callable[..., Any], benchmark: BenchmarkFixture) -> None:
    body = body_of(kind, SIZES[size])
    assert abs(len(body) - SIZES[size]) < 250
    index = PrefixIndex(64 << 20)
    chain = scan(body).chain(SEED)
    for replica in range(N_REPLICAS):
        shared = len(chain) // 8 * (replica % 5) // 4 * 8
        index.insert(replica, chain[:shared] + array("Q", range(replica * 5000 + 1, replica * 5000 + 5000)).tobytes())
    lengths = array("I", bytes(4 * N_REPLICAS))
    decoder = msgspec.json.Decoder()

    def whole() -> int:
        return index.match(scan(body).chain(SEED), lengths)

    assert whole() == len(chain) // 8
    compare(
        f"{kind}, {size}",
        {
            "scan": lambda: scan(body),
            "scan + chain": lambda: scan(body).chain(SEED),
            "scan + chain + match": whole,
            "orjson.loads": lambda: orjson.loads(body),
            "msgspec decode": lambda: decoder.decode(body),
        },
    )
    benchmark(whole)

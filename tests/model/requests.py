"""Random request bodies, and the ways to write the same JSON differently."""

from __future__ import annotations

import json
import random
from typing import Any

WORDS = [
    "hello",
    "a",
    "€uro",
    "漢字かな",
    "😀",
    "\n",
    '"quoted"',
    "back\\slash",
    "\t",
    "lorem ipsum dolor",
    "\u0001",
    "é",
    "/",
    "",
]


def random_text(rng: random.Random, longest: int = 40) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(longest)))


def random_value(rng: random.Random, depth: int = 3) -> Any:
    pick = rng.randrange(8 if depth else 5)
    if pick == 0:
        return rng.choice([True, False])
    if pick == 1:
        return rng.randrange(-(10**6), 10**9)
    if pick < 5:
        return random_text(rng, 4)
    if pick == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {f"k{i}{rng.choice(WORDS)}": random_value(rng, depth - 1) for i in range(rng.randrange(4))}


def random_part(rng: random.Random) -> Any:
    pick = rng.randrange(6)
    if pick == 0:
        return {"type": "image_url", "image_url": {"url": "data:" + "x" * rng.randrange(3000)}}
    if pick == 1:
        return random_text(rng, 8)
    if pick == 2:
        return {
            "text": random_text(rng),
            "type": rng.choice(["input_text", "thinking"]),
            "cache_control": {"type": "e"},
        }
    return {"type": "text", "text": random_text(rng)}


def random_message(rng: random.Random) -> dict[str, Any]:
    message: dict[str, Any] = {"role": rng.choice(["system", "user", "assistant", "tool", "developer", 'odd"role'])}
    content = rng.randrange(5)
    if content < 3:
        message["content"] = random_text(rng)
    elif content == 3:
        message["content"] = [random_part(rng) for _ in range(rng.randrange(4))]
    else:
        message["content"] = None
    if rng.random() < 0.2:
        message["tool_calls"] = [{"id": "1", "function": {"name": "f", "arguments": json.dumps(random_value(rng))}}]
    if rng.random() < 0.2:
        message["name"] = rng.choice([None, "bob"])
    items = list(message.items())
    rng.shuffle(items)
    return dict(items)


def random_request(rng: random.Random) -> dict[str, Any]:
    """A request of any kind with all fields of the right types."""
    request: dict[str, Any] = {"model": random_text(rng, 2) + "m", "unknown": random_value(rng)}
    kind = rng.randrange(6)
    if kind < 3:
        request["messages"] = [random_message(rng) for _ in range(rng.randrange(6))]
    else:
        shapes: list[Any] = [
            random_text(rng),
            [random_text(rng, 10) for _ in range(rng.randrange(4))],
            [rng.randrange(2**32) for _ in range(rng.randrange(50))],
            [[rng.randrange(200) for _ in range(rng.randrange(1, 30))] for _ in range(rng.randrange(1, 4))],
        ]
        request["prompt" if kind < 5 else "input"] = rng.choice(shapes)
    optional: dict[str, Any] = {
        "stream": rng.choice([True, False, None]),
        "max_tokens": rng.choice([None, 0, 17]),
        "max_completion_tokens": rng.choice([None, 5]),
        "n": rng.choice([None, 1, 4]),
        "user": rng.choice([None, "", "anna", "jürgen\n"]),
        "session_id": rng.choice([None, "s-1", "\u00e9\t"]),
        "cache_salt": rng.choice([None, "salt"]),
        "tools": rng.choice([None, [], [random_value(rng) for _ in range(2)]]),
        "tool_choice": rng.choice([None, "auto", {"type": "function"}]),
        "chat_template_kwargs": rng.choice([None, {"thinking": True}]),
        "add_generation_prompt": rng.choice([None, True, False]),
        "continue_final_message": rng.choice([None, True, False]),
        "instructions": rng.choice([None, "be " + "very " * 30 + "brief"]),
    }
    request |= {key: value for key, value in optional.items() if rng.random() < 0.4}
    items = list(request.items())
    rng.shuffle(items)
    return dict(items)


def write(request: Any, rng: random.Random) -> bytes:
    """Write JSON with random white space between tokens, as orjson would write its strings."""
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])
    indent = rng.choice([None, 0, 3])
    return json.dumps(request, ensure_ascii=False, separators=separators, indent=indent).encode()


def write_escaped(request: Any, rng: random.Random) -> bytes:
    """Write the same with every character of its strings escaped or not by chance."""
    return json.dumps(request, ensure_ascii=rng.random() < 0.7).encode().replace(b"/", b"\\/")

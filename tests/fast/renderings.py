"""Conversations, and templates of different habits that render them; what tokens a rendered text may have."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.model.requests import random_value
from xinf.chat import CHATML, Template

# Trims, says something of its own in front of the system's text, has the tools in the first user's message, writes
# results of tools as JSON strings.
LLAMA = """\
{{- bos_token }}
{%- if messages[0].role == "system" %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}
{%- else %}{% set system = "" %}{% set rest = messages %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n" + system + "<|eot_id|>" }}
{%- if tools %}{{ "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, answer.\n\n" }}
{%- for tool in tools %}{{ tool | tojson(indent=4) + "\n\n" }}{% endfor %}
{%- if rest and rest[0].role == "user" %}{{ rest[0].content | trim }}{% set rest = rest[1:] %}{% endif %}<|eot_id|>
{%- endif %}
{%- for message in rest %}
{%- if message.role == "tool" %}
{{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + (message.content | tojson) + "<|eot_id|>" }}
{%- elif message.tool_calls %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}<|eot_id|>
{%- else %}
{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" + (message.content or "") | trim + "<|eot_id|>" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{% endif %}"""

# Knows no system: its text goes in front of the first user's. Tools stand in front of the last user's.
INST = """\
{{- bos_token }}
{%- set ns = namespace(last=-1, system="") %}
{%- for message in messages %}{% if message.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == "system" %}{% set ns.system = ns.system + message.content + "\n\n" %}
{%- elif message.role == "user" %}
{{- "[INST] " + ns.system }}{% set ns.system = "" %}
{%- if tools and loop.index0 == ns.last %}
{{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}{% endif %}
{{- message.content + "[/INST]" }}
{%- elif message.role == "tool" %}{{ "[TOOL_RESULTS] " + message.content + "[/TOOL_RESULTS]" }}
{%- else %}
{{- " " + (message.content or "") }}
{%- for call in message.tool_calls or [] %}{{ "[TOOL_CALLS] " + (call.function | tojson) }}{% endfor %}</s>
{%- endif %}
{%- endfor %}"""

# A system message of its own, tools behind its text without what wraps them, everything of JSON in ASCII, reasoning in
# front of the answer.
THINKS = """\
{%- set system = messages[0].content if messages[0].role == "system" else "You are helpful." %}
{{- "<|im_start|>system\n" + system }}
{%- if tools %}{{ "\n\n# Tools\n<tools>" }}
{%- for tool in tools %}{{ "\n" + (tool.function | tojson(ensure_ascii=True)) }}{% endfor %}
{{- "\n</tools>" }}{% endif %}
{{- "<|im_end|>\n" }}
{%- for message in messages if message.role != "system" %}
{{- "<|im_start|>" + message.role + "\n" }}
{%- if message.reasoning_content %}{{ "<think>\n" + (message.reasoning_content | trim) + "\n</think>\n\n" }}{% endif %}
{%- if message.role == "tool" %}{{ message.content | tojson(ensure_ascii=True) }}
{%- else %}{{ message.content or "" }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- "<tool_call>\n" + (call.function | tojson(ensure_ascii=True)) + "\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}"""


@dataclass(frozen=True)
class Rendering:
    """A template, and what a probe of it finds."""

    name: str
    source: str
    order: int
    headers: dict[bytes, bytes] = field(hash=False)

    @cached_property
    def template(self) -> Template:
        return Template(self.source, source_name=self.name, bos_token="<s>")

    def text(self, request: dict[str, Any]) -> bytes:
        return self.template.render(request["messages"], tools=request.get("tools")).encode()


def _headers(form: str, **names: str) -> dict[bytes, bytes]:
    roles = ("system", "user", "assistant", "tool")
    return {role.encode(): form.format(names.get(role, role)).encode() for role in roles}


RENDERINGS = (
    Rendering("chatml", CHATML, 1, _headers("<|im_start|>{}\n")),
    Rendering("llama", LLAMA, 0, _headers("<|start_header_id|>{}<|end_header_id|>\n\n", tool="ipython")),
    Rendering("inst", INST, 2, {b"user": b"[INST] ", b"assistant": b"[/INST] ", b"tool": b"[TOOL_RESULTS] "}),
    Rendering("thinks", THINKS, 0, _headers("<|im_start|>{}\n")),
)

WORDS = (
    "a", "user", "system", "the weather", "in Paris", "東京の天気", "naïve", "😀", '"quoted"', "back\\slash", "\n",
    "\t", "42", "<|im_end|>", "{", "}", '{"type": "function"', "[INST] ", "lorem ipsum dolor sit amet",
    "def f(x):\n    return x\n",
)  # fmt: skip
FILLER = "The quick brown fox jumps over the lazy dog while nobody looks. "


def random_text(rng: random.Random) -> str:
    pick = rng.random()
    if pick < 0.2:
        return rng.choice(["", "a", "ok", "user", " ", "\n\n", "yes ", " no"])
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 30)))
    if pick < 0.5:
        at = rng.randrange(len(text) + 1)
        text = text[:at] + FILLER * rng.randrange(4) + text[at:]
    return rng.choice(["", " ", "\n"]) + text + rng.choice(["", "\n", "  "]) if pick > 0.8 else text


def random_tool(rng: random.Random) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "note": random_value(rng, 2)}}}
    name = rng.choice(["get_weather", "search", "run"])
    return {"type": "function", "function": {"name": name, "description": random_text(rng), "parameters": parameters}}


def random_call(rng: random.Random) -> dict[str, Any]:
    arguments = rng.choice(['{"city": "Paris"}', '{"q": "a \\"b\\" c"}', "{}"])
    return {
        "id": f"call_{rng.randrange(10**6)}",
        "type": "function",
        "function": {"name": "run", "arguments": arguments},
    }


def random_turns(rng: random.Random) -> list[dict[str, Any]]:
    """A user's message and an answer, maybe by way of a tool."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": random_text(rng)}]
    if rng.random() < 0.25:
        turns.append(
            {"role": "assistant", "content": rng.choice([None, "", "let me see"]), "tool_calls": [random_call(rng)]}
        )
        turns.append({"role": "tool", "content": rng.choice([random_text(rng), '{"temp": 3, "unit": "C"}'])})
    if rng.random() < 0.9:
        turns.append({"role": "assistant", "content": random_text(rng)})
        if rng.random() < 0.2:
            turns[-1]["reasoning_content"] = random_text(rng)
    return turns


def random_chat(rng: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.6:
        messages.append({"role": "system", "content": random_text(rng)})
    for _ in range(rng.randrange(1, 5)):
        messages += random_turns(rng)
    if messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": random_text(rng)})
    request: dict[str, Any] = {"model": "m", "messages": messages}
    if rng.random() < 0.4:
        request["tools"] = [random_tool(rng) for _ in range(rng.randrange(1, 4))]
    return request


def related_chat(rng: random.Random, request: dict[str, Any]) -> dict[str, Any]:
    """Another request that begins like this one: its next turn, an edit, a shorter one, other tools."""
    other = copy.deepcopy(request)
    messages = other["messages"]
    pick = rng.random()
    if pick < 0.45:
        other["messages"] = [*messages, {"role": "assistant", "content": random_text(rng)}, *random_turns(rng)]
        if other["messages"][-1]["role"] == "assistant":
            other["messages"].append({"role": "user", "content": random_text(rng)})
    elif pick < 0.8:
        message = rng.choice([message for message in messages if message["content"]] or messages)
        text = message["content"] or "x"
        at = rng.randrange(len(text) + 1)
        message["content"] = text[:at] + rng.choice(["", "!", random_text(rng)]) + text[at + rng.randrange(2) :]
    elif pick < 0.9 and "tools" in other:
        other["tools"] = [*other["tools"][: rng.randrange(len(other["tools"]))], random_tool(rng)]
    else:
        other["messages"] = [*messages[: rng.randrange(len(messages))], {"role": "user", "content": random_text(rng)}]
    return other


def random_pieces(rng: random.Random, text: bytes, longest: int = 9) -> list[bytes]:
    """Tokens that a text might have: cut anywhere, now and then one without a text."""
    pieces, at = [], 0
    while at < len(text):
        width = rng.randrange(1, longest)
        pieces += [text[at : at + width]] + [b""] * (rng.random() < 0.02)
        at += width
    return pieces


def greedy_pieces(text: bytes, vocabulary: frozenset[bytes]) -> list[bytes]:
    """Longest match from left to right: a function of the text."""
    longest, pieces, at = max(map(len, vocabulary)), [], 0
    while at < len(text):
        width = next(n for n in range(min(longest, len(text) - at), 0, -1) if n == 1 or text[at : at + n] in vocabulary)
        pieces.append(text[at : at + width])
        at += width
    return pieces

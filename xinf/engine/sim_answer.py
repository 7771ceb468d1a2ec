"""Answers of the simulated engine in OpenAI's shapes, whole and as events.

The text needs no JSON escapes (see sim/text.py), so an event is put together from bytes made once per request: this is
the engine that gateways are measured against, and its own cost must stay small beside theirs.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import struct
import zlib
from typing import Any, Protocol

import msgspec

from xinf.core.errors import XinfError, openai_body
from xinf.engine.adapter import RawHeader, Reply, Usage
from xinf.engine.sim_request import EmbeddingCall, GenerationCall
from xinf.sim import BYTES_PER_TOKEN, SimSequence

JSON_HEADERS: tuple[RawHeader, ...] = ((b"content-type", b"application/json"),)
SSE_HEADERS: tuple[RawHeader, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)
DONE = b"data: [DONE]\n\n"


class Part:
    """One prompt with one answer of a request. `text`: what the client sees, which a stop string may have cut."""

    __slots__ = ("answer", "finish_reason", "index", "sequence", "text")

    def __init__(self, index: int, text: bytes, finish_reason: str, sequence: SimSequence) -> None:
        self.index = index
        self.text = text
        self.finish_reason = finish_reason
        self.sequence = sequence
        self.answer: Answer
        sequence.owner = self


class Answer(Protocol):
    """What the driver tells of progress, and what the request waits for."""

    done: asyncio.Future[Usage]

    def on_token(self, part: Part) -> None: ...


class Header(msgspec.Struct, frozen=True):
    """What all objects of one answer begin with."""

    request_id: str
    model: str
    created_s: int


def send_json(reply: Reply, status: int, content: Any) -> None:
    """Answer with one JSON document."""
    reply.start(status, JSON_HEADERS)
    reply.chunk(msgspec.json.encode(content))


def send_error(reply: Reply, error: XinfError) -> None:
    """Answer with an error in OpenAI's shape."""
    send_json(reply, error.http_status, openai_body(error))


class WholeAnswer:
    """Waits for all parts, then sends one JSON document."""

    def __init__(self, call: GenerationCall, header: Header, reply: Reply, parts: list[Part]) -> None:
        self.done: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self._call = call
        self._header = header
        self._reply = reply
        self._parts = parts
        self._n_open = len(parts)

    def on_token(self, part: Part) -> None:
        if not part.sequence.is_done:
            return
        self._n_open -= 1
        if self._n_open or self.done.done():
            return
        usage = sum_usage(self._parts, self._call.n)
        choices = [self._choice(part) for part in self._parts]
        kind = "chat.completion" if self._call.is_chat else "text_completion"
        send_json(self._reply, 200, {**_head(self._header, kind), "choices": choices, "usage": usage_body(usage)})
        self.done.set_result(usage)

    def _choice(self, part: Part) -> dict[str, Any]:
        text = part.text.decode()
        end = {"logprobs": None, "finish_reason": part.finish_reason}
        if self._call.is_chat:
            return {"index": part.index, "message": {"role": "assistant", "content": text}, **end}
        return {"index": part.index, "text": text, **end}


class StreamAnswer:
    """Sends one event per token; the first token of a part opens it, its last one carries the reason it ended."""

    def __init__(self, call: GenerationCall, header: Header, reply: Reply, parts: list[Part]) -> None:
        self.done: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self._call = call
        self._reply = reply
        self._parts = parts
        self._n_open = len(parts)
        self._has_started = False
        kind = "chat.completion.chunk" if call.is_chat else "text_completion"
        self._head = b"data: " + msgspec.json.encode(_head(header, kind))[:-1] + b',"choices":['
        self._close = b'"},"logprobs":null,"finish_reason":' if call.is_chat else b'","logprobs":null,"finish_reason":'
        field = b',"delta":{"content":"' if call.is_chat else b',"text":"'
        self._starts = [b'%s{"index":%d%s' % (self._head, part.index, field) for part in parts]

    def on_token(self, part: Part) -> None:
        sequence = part.sequence
        if not self._has_started:
            self._has_started = True
            self._reply.start(200, SSE_HEADERS)
        if self._call.is_chat and sequence.n_generated == 1:
            self._reply.chunk(
                b'%s{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
                % (self._head, part.index)
            )
        last = sequence.n_generated * BYTES_PER_TOKEN
        piece = part.text[last - BYTES_PER_TOKEN : last]
        if sequence.is_done:
            reason = b'"%s"' % part.finish_reason.encode()
            self._reply.chunk(b"%s%s%s%s}]}\n\n" % (self._starts[part.index], piece, self._close, reason))
            self._end_part()
        elif piece:
            self._reply.chunk(b"%s%s%snull}]}\n\n" % (self._starts[part.index], piece, self._close))

    def _end_part(self) -> None:
        self._n_open -= 1
        if self._n_open or self.done.done():
            return
        usage = sum_usage(self._parts, self._call.n)
        if self._call.wants_usage:
            self._reply.chunk(self._head + b'],"usage":' + msgspec.json.encode(usage_body(usage)) + b"}\n\n")
        self._reply.chunk(DONE)
        self.done.set_result(usage)


class EmbeddingAnswer:
    """Waits for all prompts, then sends their vectors."""

    def __init__(self, call: EmbeddingCall, header: Header, reply: Reply, parts: list[Part]) -> None:
        self.done: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self._call = call
        self._header = header
        self._reply = reply
        self._parts = parts
        self._n_open = len(parts)

    def on_token(self, part: Part) -> None:
        if not part.sequence.is_done:
            return
        self._n_open -= 1
        if self._n_open or self.done.done():
            return
        usage = sum_usage(self._parts, 1)
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(prompt)}
            for index, prompt in enumerate(self._call.prompts)
        ]
        body = {"object": "list", "id": self._header.request_id, "model": self._header.model, "data": data}
        counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        send_json(self._reply, 200, {**body, "usage": counts})
        self.done.set_result(usage)

    def _vector(self, prompt: bytes) -> list[float] | str:
        """Make a unit vector out of the text: equal texts, equal vectors."""
        draw = random.Random(zlib.crc32(prompt)).gauss
        values = [draw(0.0, 1.0) for _ in range(self._call.dimensions)]
        length = math.sqrt(sum(value * value for value in values)) or 1.0
        unit = [value / length for value in values]
        if not self._call.is_base64:
            return unit
        return base64.b64encode(struct.pack(f"<{len(unit)}f", *unit)).decode()


def sum_usage(parts: list[Part], n: int) -> Usage:
    """Sum what a request took. The n answers to one prompt share it: it counts once, with what its first found."""
    firsts = [part.sequence for part in parts[::n]]
    return Usage(
        prompt_tokens=sum(sequence.n_prompt for sequence in firsts),
        cached_tokens=sum(sequence.cached_tokens for sequence in firsts),
        completion_tokens=sum(part.sequence.n_generated for part in parts),
        queued_s=max(sequence.queued_s for sequence in firsts),
    )


def usage_body(usage: Usage) -> dict[str, Any]:
    """Give usage in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _head(header: Header, kind: str) -> dict[str, Any]:
    return {"id": header.request_id, "object": kind, "created": header.created_s, "model": header.model}

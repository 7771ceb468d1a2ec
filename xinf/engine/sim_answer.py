"""Answers of the simulated engine in OpenAI's shapes, whole and as events.

The text needs no JSON escapes (see sim/text.py), so answers and events are put together from bytes, most of them made
once per request: this is the engine that gateways are measured against, and its own cost must stay small beside theirs.
"""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from xinf.core.errors import XinfError, openai_body
from xinf.engine.adapter import FinalReply, RawHeader, Usage
from xinf.engine.prompts import Registered
from xinf.engine.sim_request import EmbeddingCall, GenerationCall
from xinf.sim import BYTES_PER_TOKEN, SimSequence

JSON_HEADERS: tuple[RawHeader, ...] = ((b"content-type", b"application/json"),)
SSE_HEADERS: tuple[RawHeader, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)
DONE = b"data: [DONE]\n\n"
# The object's kind, what stands before the text of an event, and what follows it up to the reason it ended.
_CHAT_EVENT = (b"chat.completion.chunk", b',"delta":{"content":"', b'"},"logprobs":null,"finish_reason":')
_TEXT_EVENT = (b"text_completion", b',"text":"', b'","logprobs":null,"finish_reason":')


class Planned(NamedTuple):
    """One answer, decided before it is begun."""

    text: bytes  # what the client sees
    generated: bytes  # what is generated for it; longer where a stop string cuts
    finish_reason: str


PREFILL_ONLY = Planned(b"", b"", "stop")


class Part(SimSequence):
    """One prompt with one answer of a request. `text`: what the client sees, which a stop string may have cut."""

    __slots__ = ("answer", "event_end", "event_next", "event_start", "finish_reason", "index", "text")

    def __init__(self, index: int, prompt: bytes, planned: Planned, *, arrived_s: float, salt: str | None) -> None:
        super().__init__(prompt, planned.generated, arrived_s=arrived_s, salt=salt)
        self.index = index
        self.text = planned.text
        self.finish_reason = planned.finish_reason
        self.answer: Answer
        self.event_start: bytes
        self.event_end: bytes
        self.event_next: bytes


class Header(msgspec.Struct, frozen=True):
    """What all objects of one answer begin with."""

    request_id: str
    model: str
    created_s: int


def send_json(reply: FinalReply, status: int, content: Any) -> None:
    """Answer with one JSON document, all of it."""
    reply.start(status, JSON_HEADERS)
    reply.chunk(msgspec.json.encode(content))
    reply.done(Usage())


def send_error(reply: FinalReply, error: XinfError) -> None:
    """Answer with an error in OpenAI's shape."""
    send_json(reply, error.http_status, openai_body(error))


def send_whole(reply: FinalReply, header: Header, parts: Sequence[Part], usage: Usage, *, is_chat: bool) -> None:
    """Answer with what all parts came to, as one JSON document."""
    if is_chat:
        head = _head(header, b"chat.completion")
        form = b'{"index":%d,"message":{"role":"assistant","content":"%b"},"logprobs":null,"finish_reason":"%b"}'
    else:
        head = _head(header, b"text_completion")
        form = b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":"%b"}'
    choices = b",".join([form % (part.index, part.text, part.finish_reason.encode()) for part in parts])
    reply.start(200, JSON_HEADERS)
    reply.chunk(b'%b,"choices":[%b],"usage":%b}' % (head, choices, _usage_json(usage)))
    reply.done(usage)


def sum_usage(parts: Sequence[Part], n: int) -> Usage:
    """Sum what a request took. The n answers to one prompt share it: it counts once, with what its first found."""
    if len(parts) == 1:
        (part,) = parts
        return Usage(
            prompt_tokens=part.n_prompt,
            cached_tokens=part.cached_tokens,
            completion_tokens=part.n_generated,
            queued_s=part.queued_s,
        )
    firsts = parts[::n]
    return Usage(
        prompt_tokens=sum(part.n_prompt for part in firsts),
        cached_tokens=sum(part.cached_tokens for part in firsts),
        completion_tokens=sum(part.n_generated for part in parts),
        queued_s=max(part.queued_s for part in firsts),
    )


class Answer:
    """One request in the engine: told of progress by the driver, it says what there is to say. The request's Work."""

    __slots__ = ("_n_open", "_on_cancel", "goes_on", "n", "parts", "registered", "reply")

    def __init__(self, reply: FinalReply, parts: list[Part], *, n: int, on_cancel: Callable[[Answer], None]) -> None:
        """`n`: answers to each prompt."""
        self.reply = reply
        self.parts: Sequence[Part] = parts
        self.n = n
        self.registered: Registered | None = None  # its prompt, where somebody is told what the engine holds
        self.goes_on = False  # it is a message that a next prompt may have
        self._n_open = len(parts)
        self._on_cancel = on_cancel
        for part in parts:
            part.answer = self

    def on_token(self, part: Part) -> bool:
        """A part got a token or ended. Returns whether the whole answer has ended; the reply has been told then."""
        if not part.is_done:
            return False
        self._n_open -= 1
        if self._n_open:
            return False
        self._end(sum_usage(self.parts, self.n))
        return True

    def cancel(self) -> None:
        """Stop the engine's work for it."""
        self._on_cancel(self)

    def release(self) -> None:
        """Let go of the parts, which point here: no cycle is left for the garbage collector."""
        self.parts = ()

    def _end(self, usage: Usage) -> None:
        raise NotImplementedError


class WholeAnswer(Answer):
    """Waits for all parts, then sends one JSON document."""

    __slots__ = ("_header", "_is_chat")

    def __init__(
        self,
        call: GenerationCall,
        header: Header,
        reply: FinalReply,
        parts: list[Part],
        on_cancel: Callable[[Answer], None],
    ) -> None:
        super().__init__(reply, parts, n=call.n, on_cancel=on_cancel)
        self._header = header
        self._is_chat = call.is_chat

    def _end(self, usage: Usage) -> None:
        parts = self.parts
        self.release()
        send_whole(self.reply, self._header, parts, usage, is_chat=self._is_chat)


class StreamAnswer(Answer):
    """Sends one event per token; the first token of a part opens it, its last one carries the reason it ended."""

    __slots__ = ("_has_started", "_head", "_is_chat", "_wants_usage")

    def __init__(
        self,
        call: GenerationCall,
        header: Header,
        reply: FinalReply,
        parts: list[Part],
        on_cancel: Callable[[Answer], None],
    ) -> None:
        super().__init__(reply, parts, n=call.n, on_cancel=on_cancel)
        self._is_chat = call.is_chat
        self._wants_usage = call.wants_usage
        self._has_started = False
        kind, field, close = _CHAT_EVENT if call.is_chat else _TEXT_EVENT
        self._head = b"data: " + _head(header, kind) + b',"choices":['
        for part in parts:
            part.event_start = b'%b{"index":%d%b' % (self._head, part.index, field)
            part.event_end = close
            part.event_next = close + b"null}]}\n\n"

    def on_token(self, part: Part) -> bool:
        n_generated = part.n_generated
        if n_generated == 1:
            self._open(part)
        at = n_generated * BYTES_PER_TOKEN
        piece = part.text[at - BYTES_PER_TOKEN : at]
        if not part.is_done:
            if piece:
                self.reply.chunk(part.event_start + piece + part.event_next)
            return False
        reason = part.finish_reason.encode()
        self.reply.chunk(b'%b%b%b"%b"}]}\n\n' % (part.event_start, piece, part.event_end, reason))
        return super().on_token(part)

    def _open(self, part: Part) -> None:
        if not self._has_started:
            self._has_started = True
            self.reply.start(200, SSE_HEADERS)
        if self._is_chat:
            self.reply.chunk(
                b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
                % (self._head, part.index)
            )

    def _end(self, usage: Usage) -> None:
        reply = self.reply
        if self._wants_usage:
            reply.chunk(b'%b],"usage":%b}\n\n' % (self._head, _usage_json(usage)))
        reply.chunk(DONE)
        self.release()
        reply.done(usage)


class EmbeddingAnswer(Answer):
    """Waits for all prompts, then sends their vectors."""

    __slots__ = ("_call", "_header")

    def __init__(
        self,
        call: EmbeddingCall,
        header: Header,
        reply: FinalReply,
        parts: list[Part],
        on_cancel: Callable[[Answer], None],
    ) -> None:
        super().__init__(reply, parts, n=1, on_cancel=on_cancel)
        self._call = call
        self._header = header

    def _end(self, usage: Usage) -> None:
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(prompt)}
            for index, prompt in enumerate(self._call.prompts)
        ]
        body = {"object": "list", "id": self._header.request_id, "model": self._header.model, "data": data}
        counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        reply = self.reply
        reply.start(200, JSON_HEADERS)
        reply.chunk(msgspec.json.encode({**body, "usage": counts}))
        self.release()
        reply.done(usage)

    def _vector(self, prompt: bytes) -> list[float] | str:
        """Make a unit vector out of the text: equal texts, equal vectors."""
        draw = random.Random(zlib.crc32(prompt)).gauss
        values = [draw(0.0, 1.0) for _ in range(self._call.dimensions)]
        length = math.sqrt(sum(value * value for value in values)) or 1.0
        unit = [value / length for value in values]
        if not self._call.is_base64:
            return unit
        return base64.b64encode(struct.pack(f"<{len(unit)}f", *unit)).decode()


def _usage_json(usage: Usage) -> bytes:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
        % (prompt, completion, prompt + completion, usage.cached_tokens)
    )


def _head(header: Header, kind: bytes) -> bytes:
    """Begin an object of OpenAI's; the caller goes on with a comma."""
    encode = msgspec.json.encode
    return b'{"id":%b,"object":"%b","created":%d,"model":%b' % (
        encode(header.request_id),
        kind,
        header.created_s,
        encode(header.model),
    )

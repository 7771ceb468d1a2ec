"""Bodies of requests, from a session's turns and the answers so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from xinf.bench.target import Endpoint
from xinf.bench.workload import Session
from xinf.core.errors import InvalidRequest


class BodyWriter:
    """Writes the bodies of one run. `extra_body`: a JSON object laid over each; null takes a field away."""

    def __init__(
        self, endpoint: Endpoint, model: str, *, is_stream: bool, ignore_eos: bool, extra_body: str | None
    ) -> None:
        self._endpoint = endpoint
        self._common: dict[str, Any] = {"model": model}
        if endpoint is not Endpoint.EMBEDDINGS:
            if is_stream:
                self._common |= {"stream": True, "stream_options": {"include_usage": True}}
            if ignore_eos:
                self._common["ignore_eos"] = True
        self._extra = _read_object(extra_body) if extra_body else {}
        self._encoder = msgspec.json.Encoder()

    def write(self, session: Session, turn: int, answers: Sequence[str]) -> bytes:
        """Write the body of a turn; `answers` are those to the turns before it."""
        asked = session.turns[turn]
        body = dict(self._common)
        if asked.max_tokens is not None and self._endpoint is not Endpoint.EMBEDDINGS:
            body["max_tokens"] = asked.max_tokens
        if asked.fields is not None:
            # What a file says of a request holds, but for the model: the run decides whom it asks.
            body |= msgspec.json.decode(asked.fields)
            body["model"] = self._common["model"]
        else:
            body |= self._prompt([str(each.prompt) for each in session.turns[: turn + 1]], answers)
        if session.name is not None:
            body["user"] = session.name
        if self._extra:
            body |= self._extra
            body = {name: value for name, value in body.items() if value is not None}
        return self._encoder.encode(body)

    def _prompt(self, prompts: list[str], answers: Sequence[str]) -> dict[str, Any]:
        if self._endpoint is Endpoint.EMBEDDINGS:
            return {"input": prompts[-1]}
        if self._endpoint is Endpoint.COMPLETIONS:
            text = "".join(f"{prompt}{answer}\n" for prompt, answer in zip(prompts, answers, strict=False))
            return {"prompt": text + prompts[-1]}
        messages: list[dict[str, str]] = []
        for prompt, answer in zip(prompts, answers, strict=False):
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return {"messages": [*messages, {"role": "user", "content": prompts[-1]}]}


def _read_object(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"the extra body is not JSON: {error}", remedy="""write for example '{"top_k": 1}'"""
        ) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"the extra body is {text!r}, must be a JSON object")
    return found

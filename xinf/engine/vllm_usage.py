"""What a request took, for every request, asked for by the client or not.

vLLM's app gets a proxy of the engine client. Its `generate` and `encode` count into the record of the request in whose
context they are called: a context variable carries it through the tasks that the app starts. One request may call them
several times (a list of prompts) or get several answers from one call (n > 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from xinf.engine.adapter import Usage

_current: ContextVar[RequestRecord | None] = ContextVar("xinf_vllm_request", default=None)


class RequestRecord:
    """One request inside the engine."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.queued_s = 0.0
        self.death: BaseException | None = None  # the engine's, if the request met it
        self._n_active = 0
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """Make this the record that the engine client counts into, in the present context."""
        _current.set(self)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            queued_s=self.queued_s,
        )

    def begin(self) -> None:
        """Note a call of the engine client."""
        self._n_active += 1
        self._idle.clear()

    def end(self) -> None:
        """Note that the engine has let go of a call."""
        self._n_active -= 1
        if not self._n_active:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until the engine has let go of all that was called for this request."""
        await self._idle.wait()


class EngineProxy:
    """vLLM's engine client with its two ways to make something replaced; all else is the engine's own."""

    def __init__(self, engine: Any, engine_died: type[BaseException]) -> None:
        self._engine = engine
        self._engine_died = engine_died

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """Count tokens of what AsyncLLM.generate(prompt, sampling_params, request_id, ...) yields."""
        outputs: AsyncGenerator[Any, None] = self._engine.generate(*arguments, **named)
        record = _current.get()
        if record is None:
            return outputs
        parameters = named["sampling_params"] if "sampling_params" in named else arguments[1]
        return self._watch(outputs, record, _GenerationCount(record, is_delta=parameters.output_kind.name == "DELTA"))

    def encode(self, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """Count tokens of what AsyncLLM.encode(prompt, pooling_params, request_id, ...) yields."""
        outputs: AsyncGenerator[Any, None] = self._engine.encode(*arguments, **named)
        record = _current.get()
        return outputs if record is None else self._watch(outputs, record, _PromptCount(record))

    async def _watch(
        self, outputs: AsyncGenerator[Any, None], record: RequestRecord, count: _PromptCount
    ) -> AsyncGenerator[Any, None]:
        record.begin()
        try:
            async for output in outputs:
                count.add(output)
                yield output
        except self._engine_died as error:
            record.death = error
            raise
        finally:
            # Left early, the engine's generator has not aborted its request yet; closing it does.
            try:
                await outputs.aclose()
            finally:
                record.end()


class _PromptCount:
    """Counts the prompt of one call, with its first output."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._has_prompt = False

    def add(self, output: Any) -> None:
        if self._has_prompt:
            return
        self._has_prompt = True
        record = self._record
        record.prompt_tokens += len(getattr(output, "prompt_token_ids", None) or ())
        record.cached_tokens += getattr(output, "num_cached_tokens", None) or 0
        metrics = getattr(output, "metrics", None)
        if metrics is not None and metrics.scheduled_ts > metrics.queued_ts > 0:
            record.queued_s = max(record.queued_s, metrics.scheduled_ts - metrics.queued_ts)


class _GenerationCount(_PromptCount):
    """Counts prompt and answers of one call. An output holds new tokens, or all so far, as the caller asked for."""

    def __init__(self, record: RequestRecord, *, is_delta: bool) -> None:
        super().__init__(record)
        self._is_delta = is_delta
        self._n_tokens: dict[int, int] = {}  # by answer

    def add(self, output: Any) -> None:
        super().add(output)
        for answer in output.outputs:
            n_before = self._n_tokens.get(answer.index, 0)
            n_new = len(answer.token_ids) if self._is_delta else len(answer.token_ids) - n_before
            self._n_tokens[answer.index] = n_before + n_new
            self._record.completion_tokens += n_new

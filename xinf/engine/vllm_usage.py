"""What a request took, for every request, asked for by the client or not; and which prompts the engine has in hand.

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
from xinf.engine.vllm_prompts import Prompt, VllmPrompts

_current: ContextVar[RequestRecord | None] = ContextVar("xinf_vllm_request", default=None)


class RequestRecord:
    """One request inside the engine."""

    def __init__(self, body: bytes = b"", *, is_chat: bool = False) -> None:
        """`is_chat`: the answer is a message that a next prompt may have."""
        self.body = body
        self.is_chat = is_chat
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
    """vLLM's engine client with its ways to make something, and to forget, replaced; all else is the engine's own."""

    def __init__(self, engine: Any, engine_died: type[BaseException], *, drops_seeds: bool = False) -> None:
        """`drops_seeds`: sample without the seeds that requests bring."""
        self._engine = engine
        self._engine_died = engine_died
        self._drops_seeds = drops_seeds
        self.prompts: VllmPrompts | None = None  # None: nobody is told what the engine holds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """Count tokens of what AsyncLLM.generate(prompt, sampling_params, request_id, ...) yields."""
        outputs: AsyncGenerator[Any, None] = self._engine.generate(*arguments, **named)
        record = _current.get()
        if record is None:
            return outputs
        parameters = named["sampling_params"] if "sampling_params" in named else arguments[1]
        is_delta = parameters.output_kind.name == "DELTA"
        if self._drops_seeds:
            parameters.seed = None
        # A client may ask vLLM to tell of blocks again that were found, which would count them twice.
        if (more := getattr(parameters, "extra_args", None)) is not None:
            more.pop("kv_cache_report_mode", None)
        prompt: Prompt | None = None
        if self.prompts is not None:
            lora = named.get("lora_request")
            given = named["prompt"] if "prompt" in named else arguments[0]
            prompt = self.prompts.begin(record.body, given, "" if lora is None else lora.lora_name)
        return self._watch(outputs, record, _GenerationCount(record, prompt, is_delta=is_delta))

    def encode(self, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        """Count tokens of what AsyncLLM.encode(prompt, pooling_params, request_id, ...) yields."""
        outputs: AsyncGenerator[Any, None] = self._engine.encode(*arguments, **named)
        record = _current.get()
        return outputs if record is None else self._watch(outputs, record, _PromptCount(record))

    async def reset_prefix_cache(self, *arguments: Any, **named: Any) -> Any:
        """Forget what was told of the cache as soon as it is gone: the engine says so with its next step only."""
        is_reset = await self._engine.reset_prefix_cache(*arguments, **named)
        if is_reset and self.prompts is not None:
            self.prompts.clear()
        return is_reset

    async def _watch(
        self, outputs: AsyncGenerator[Any, None], record: RequestRecord, count: _PromptCount
    ) -> AsyncGenerator[Any, None]:
        record.begin()
        is_whole = False
        try:
            async for output in outputs:
                count.add(output)
                is_whole = getattr(output, "finished", False)
                yield output
        except self._engine_died as error:
            record.death = error
            raise
        finally:
            # Left early, the engine's generator has not aborted its request yet; closing it does.
            try:
                await outputs.aclose()
            finally:
                count.end(is_whole=is_whole)
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

    def end(self, *, is_whole: bool) -> None:
        """The engine has let go. `is_whole`: after the last output."""


class _GenerationCount(_PromptCount):
    """Counts prompt and answers of one call. An output holds new tokens, or all so far, as the caller asked for."""

    def __init__(self, record: RequestRecord, prompt: Prompt | None, *, is_delta: bool) -> None:
        super().__init__(record)
        self._prompt = prompt
        self._is_delta = is_delta
        self._n_tokens: dict[int, int] = {}  # by answer

    def add(self, output: Any) -> None:
        super().add(output)
        if self._prompt is not None:
            self._prompt.add(output, is_delta=self._is_delta)
        for answer in output.outputs:
            n_before = self._n_tokens.get(answer.index, 0)
            n_new = len(answer.token_ids) if self._is_delta else len(answer.token_ids) - n_before
            self._n_tokens[answer.index] = n_before + n_new
            self._record.completion_tokens += n_new

    def end(self, *, is_whole: bool) -> None:
        if self._prompt is not None:
            self._prompt.end(is_whole=is_whole and self._record.is_chat)

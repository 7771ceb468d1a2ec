"""vLLM's prompts and its KV events, made into residency.

    EngineProxy.generate ──begin──▶ Prompt ──▶ Prompts ──▶ BlockTable ◀── KvEventClient ◀══ZMQ══ EngineCore
                         ◀─outputs─    └─ answered: the part of the text that makes the same tokens again

Whatever goes wrong here is logged and costs predictions, never a request.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from xinf._fast.answer import continue_chain
from xinf._fast.bind import Aligner
from xinf._fast.scan import Scan
from xinf.engine.prompts import Bind, Prompts, Registered
from xinf.engine.template_habits import Habits, stable_part

_log = logging.getLogger(__name__)

# How an answer begins or goes on that calls tools: what the next prompt has is written anew from the parsed call.
_CALLS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=", "<tool_calls>", '{"name"', '[{"name"')
_THOUGHTS = ("<think>", "</think>")
# Before an answer, so much of the prompt is made into tokens again with it: tokens may reach over the border.
_TAIL_TOKENS = 32


def residency_salt(lora: str, cache_salt: str) -> int:
    """What keeps the blocks of equal tokens apart that vLLM keeps apart."""
    if not lora and not cache_salt:
        return 0
    data = f"{lora}\0{cache_salt}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


class VllmPrompts:
    """All prompts of one engine."""

    def __init__(
        self, prompts: Prompts, pieces: Sequence[bytes], tokenizer: Any, habits: Habits, *, block_tokens: int
    ) -> None:
        """`pieces`: the bytes of each token id."""
        self._prompts = prompts
        self._pieces = pieces
        self._aligner = Aligner(pieces, headers=habits.headers)
        self._tokenizer = tokenizer
        self._special = frozenset(getattr(tokenizer, "all_special_ids", ()))
        self._habits = habits
        self._block_tokens = block_tokens

    def begin(self, body: bytes, prompt: Any, lora: str) -> Prompt | None:
        """Note a prompt that is handed to the engine. None for one that cannot be told by its text."""
        try:
            # What has images or sound is told apart by more than its tokens.
            if not isinstance(prompt, dict) or prompt.get("type", "token") != "token":
                return None
            tokens = array("I", prompt["prompt_token_ids"])
            salt = residency_salt(lora, prompt.get("cache_salt") or "")
            registered = self._prompts.begin(body, tokens, self._bind_to(tokens), lora=lora, salt=salt)
        except Exception:
            _log.exception("a prompt could not be bound")
            return None
        return None if registered is None else Prompt(self, registered, body)

    def _bind_to(self, tokens: array[int]) -> Bind:
        canon = self._prompts.canon

        def bind(scanned: Scan, seed: int) -> tuple[bytes, bytes]:
            bound = self._aligner.bind(scanned, tokens, seed=seed, order=canon.order, chunk_bytes=canon.chunk_bytes)
            return bound.chain, bound.positions

        return bind

    def end(self, registered: Registered, body: bytes, text: str, token_ids: Sequence[int], *, is_whole: bool) -> None:
        """The engine is done with a prompt. `is_whole`: `text` is an answer that a next prompt may go on from."""
        try:
            if is_whole:
                self._add_answer(registered, body, text, token_ids)
        except Exception:
            _log.exception("an answer could not be bound")
        finally:
            self._prompts.end(registered)

    def clear(self) -> None:
        self._prompts.clear()

    def _add_answer(self, registered: Registered, body: bytes, text: str, token_ids: Sequence[int]) -> None:
        n_prompt = len(registered.tokens)
        # The last token was sampled and not computed.
        n_blocks = (n_prompt + max(0, len(token_ids) - 1)) // self._block_tokens
        if n_blocks == n_prompt // self._block_tokens or b'"chat_template_kwargs"' in body:
            return
        if any(mark in text for mark in _THOUGHTS):
            return
        if b'"tools"' in body and (calls := [at for mark in _CALLS if (at := text.find(mark)) >= 0]):
            text = text[: min(calls)].rstrip()  # what the template puts behind it is its own
        text = stable_part(text, self._habits)
        tokens = array("I", self._stable_tokens(registered.tokens, text, token_ids[:-1]))
        if not tokens:
            return
        ends = array("I", accumulate(len(self._pieces[token]) for token in tokens))
        chain, positions = continue_chain(
            registered.chain,
            text.encode("utf-8", "replace"),
            ends,
            n_before=n_prompt,
            chunk_bytes=self._prompts.canon.chunk_bytes,
        )
        self._prompts.answered(registered, tokens, chain, positions)

    def _stable_tokens(self, prompt: array[int], text: str, token_ids: Sequence[int]) -> Sequence[int]:
        """The first tokens of an answer that its text, after the prompt's, is made into again."""
        start = len(prompt)
        while start > max(0, len(prompt) - _TAIL_TOKENS) and prompt[start - 1] not in self._special:
            start -= 1
        tail = prompt[start:].tolist()
        before = str(self._tokenizer.decode(tail)) if tail else ""
        again = self._tokenizer.encode(before + text, add_special_tokens=False)
        if again[: len(tail)] != tail:
            return ()
        n_same = 0
        for n_same, (old, new) in enumerate(zip(token_ids, again[len(tail) :], strict=False)):
            if old != new:
                return token_ids[:n_same]
        return token_ids[: min(len(token_ids), len(again) - len(tail))]


class Prompt:
    """One prompt in flight, and what the engine made of it so far."""

    __slots__ = ("_body", "_ids", "_is_single", "_owner", "_registered", "_text")

    def __init__(self, owner: VllmPrompts, registered: Registered, body: bytes) -> None:
        self._owner = owner
        self._registered = registered
        self._body = body
        self._text = ""
        self._ids: list[int] = []
        self._is_single = True

    def add(self, output: Any, *, is_delta: bool) -> None:
        """Take what the engine yielded."""
        answers = output.outputs
        if len(answers) != 1 or answers[0].index != 0:
            self._is_single = False
            return
        answer = answers[0]
        if is_delta:
            self._text += answer.text
            self._ids += answer.token_ids
        else:
            self._text, self._ids = answer.text, list(answer.token_ids)

    def end(self, *, is_whole: bool) -> None:
        self._owner.end(
            self._registered,
            self._body,
            self._text,
            self._ids,
            is_whole=is_whole and self._is_single and bool(self._ids),
        )

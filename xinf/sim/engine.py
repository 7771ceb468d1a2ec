"""Continuous batching over the block cache, in steps, as vLLM's scheduler does it.

    submit ──▶ waiting (FCFS) ──admit──▶ running ──▶ done
                  ▲                        │
                  └──────── preempt ◀──────┘   no block left: the newest goes back and is computed again

A step serves running requests first (one token each that decodes, a chunk of each prefill), then admits, as long as
tokens, places and blocks last. It lasts prefill_tokens / rate, and step_ms if any decodes, with step_ms_per_running for
each that does; at its end every request whose prompt is complete gets one token.

The caller owns time: `due_s` says when the step under way ends, `run_step` ends it and begins the next. A driver with a
real clock calls it when due; a simulation jumps there. Work is decided when a step begins and counted when it ends.

Invariants: len(running) <= max_running; blocks held never exceed kv_blocks; a request alone always fits, which `submit`
checks. A step is O(running + admitted blocks), submit and load O(1), cancel O(blocks of the request).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from xinf.sim.cache import BlockCache
from xinf.sim.sequence import SimSequence
from xinf.sim.settings import SimSettings


class SimLoad(msgspec.Struct, frozen=True):
    """What the engine is doing now."""

    running: int
    waiting: int
    queued_prefill_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int


class SimEngine:
    """One simulated engine."""

    def __init__(self, settings: SimSettings) -> None:
        self.settings = settings
        self.cache = BlockCache(settings.kv_blocks)
        self._is_instant = settings.is_instant
        self._kv_tokens = settings.kv_tokens
        # Told when blocks of a sequence can be found from now on: the first one's number, and their hashes.
        self.on_stored: Callable[[SimSequence, int, list[int]], None] | None = None
        self.n_steps = 0
        self.n_tokens = 0  # generated since the beginning
        self._waiting: deque[SimSequence] = deque()
        self._n_waiting = 0  # without those cancelled, which are still in the deque
        self._running: dict[SimSequence, None] = {}  # in order of admission
        self._batch: list[SimSequence] = []  # get a token at the end of the step under way
        self._due_s: float | None = None
        self.on_wake: Callable[[], None] | None = None  # told when a submit begins a step
        self._n_prefill = 0  # prompt tokens of the step under way
        self._queued_prefill = 0  # prompt tokens of unfinished requests that are not computed yet
        self._s_per_token = 1.0 / settings.prefill_tokens_per_s if settings.prefill_tokens_per_s else 0.0

    def submit(self, sequence: SimSequence, now_s: float) -> None:
        """Queue a sequence; begins a step if none is under way."""
        self._enqueue(sequence)
        if self._due_s is None:
            self._begin_step(now_s)
            if self.on_wake is not None:
                self.on_wake()

    def run_at_once(self, sequence: SimSequence, now_s: float) -> None:
        """Run a sequence from its first step to its last: what steps would come to, without taking them.

        For an idle engine whose steps take no time, where nothing can come in between.
        """
        if self._running or self._n_waiting or not self._is_instant:
            raise ValueError(f"{self.n_unfinished} requests are unfinished, or steps take time: step through them")
        n_answer = sequence.n_answer
        # The last token of an answer is never computed.
        n_last = sequence.n_prompt + (n_answer - 1 if n_answer else 0)
        if self.settings.cache:
            self._hold_at_once(sequence, now_s, n_last)
        else:
            # The engine is idle and nothing stays: which blocks it held, nobody can tell.
            self._check_fits(sequence)
            sequence.is_waiting = False
            sequence.started_s = now_s
            sequence.n_computed = n_last
        n_prefill = sequence.n_prompt - sequence.cached_tokens
        self.n_steps += -(-n_prefill // self.settings.max_batched_tokens) + n_last - sequence.n_prompt
        sequence.n_generated = n_answer
        self.n_tokens += n_answer
        sequence.is_done = True
        sequence.first_token_s = sequence.finished_s = now_s

    def _hold_at_once(self, sequence: SimSequence, now_s: float, n_last: int) -> None:
        """Compute the first `n_last` tokens of a sequence, and let it go."""
        self._enqueue(sequence)
        self._admit(now_s, sequence.n_prompt)  # the whole prompt, however many steps it would take
        # Block by block: what is evicted for one block can be what the next one would have found.
        block_tokens = self.settings.block_tokens
        while (n_left := n_last - sequence.n_computed) > 0:
            self._extend(sequence, min(n_left, block_tokens - sequence.n_computed % block_tokens))
        self._leave(sequence)

    def _enqueue(self, sequence: SimSequence) -> None:
        self._check_fits(sequence)
        self._waiting.append(sequence)
        self._n_waiting += 1
        self._queued_prefill += sequence.n_prompt

    def _check_fits(self, sequence: SimSequence) -> None:
        needed = sequence.n_prompt + sequence.n_answer
        if needed > self._kv_tokens:
            raise ValueError(f"a request of {needed} tokens never fits a cache of {self._kv_tokens}")

    def cancel(self, sequence: SimSequence) -> None:
        """Forget a sequence wherever it is; its blocks are free at once. Harmless when it is done."""
        if sequence.is_done:
            return
        sequence.is_done = True
        self._queued_prefill -= max(0, sequence.n_prompt - sequence.n_computed)
        if sequence.is_waiting:
            self._n_waiting -= 1
        else:
            self._leave(sequence)

    def due_s(self) -> float | None:
        """When the step under way ends; None while there is nothing to do."""
        return self._due_s

    def run_step(self) -> list[SimSequence]:
        """End the step under way and begin the next. Gives the sequences that got a token or ended."""
        now_s = self._due_s
        if now_s is None:
            return []
        self.n_steps += 1
        moved = [sequence for sequence in self._batch if not sequence.is_done]
        for sequence in moved:
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            n_answer = sequence.n_answer
            if n_answer:
                sequence.n_generated += 1
                self.n_tokens += 1
            if sequence.n_generated >= n_answer:
                sequence.is_done = True
                sequence.finished_s = now_s
                self._leave(sequence)
        self._begin_step(now_s)
        return moved

    def load(self) -> SimLoad:
        """Report the load. Queued prefill: prompt tokens not computed yet, of waiting and running requests.

        Those of the step under way count until it ends: whoever comes now waits for them.
        """
        cache = self.cache
        n_queued = self._queued_prefill + self._n_prefill
        return SimLoad(len(self._running), self._n_waiting, n_queued, cache.used_blocks, cache.kv_blocks)

    @property
    def n_unfinished(self) -> int:
        """Requests waiting or running."""
        return len(self._running) + self._n_waiting

    # ---- one step -------------------------------------------------------------------------------------------------

    def _begin_step(self, now_s: float) -> None:
        """Decide what the next step computes. Sets `_batch` and `_due_s`."""
        self._batch = []
        self._n_prefill = 0
        settings = self.settings
        budget = settings.max_batched_tokens
        n_prefill = 0
        n_decode = 0
        block_tokens = settings.block_tokens
        has_cache = settings.cache
        for sequence in list(self._running):
            if sequence.is_waiting:  # preempted by one before it in this very loop
                continue
            n_computed = sequence.n_computed
            n_left = sequence.n_prompt + sequence.n_generated - n_computed
            if n_left == 1:  # all but the newest token: decodes
                # Within a block nothing is allocated, and nothing becomes findable unless it waits for that.
                n_full, n_in_block = divmod(n_computed, block_tokens)
                if (
                    0 < n_in_block < block_tokens - 1
                    and n_computed >= sequence.n_prompt
                    and (len(sequence.shared) == n_full or not has_cache)
                ):
                    sequence.n_computed = n_computed + 1
                elif not self._extend(sequence, 1):
                    continue
                n_decode += 1
                budget -= 1
            elif budget > 0:
                n_tokens = min(budget, n_left)
                if self._extend(sequence, n_tokens):
                    n_prefill += n_tokens
                    budget -= n_tokens
        while budget > 0 and self._n_waiting and len(self._running) < settings.max_running:
            admitted = self._admit(now_s, budget)
            if admitted is None:
                break
            n_prefill += admitted
            budget -= admitted
        if n_prefill or n_decode:
            step_s = (settings.step_ms + n_decode * settings.step_ms_per_running) / 1000.0 if n_decode else 0.0
            self._due_s = now_s + step_s + n_prefill * self._s_per_token
            self._n_prefill = n_prefill
            self._batch = [s for s in self._running if s.n_computed == s.n_prompt + s.n_generated]
        else:
            self._due_s = None

    def _admit(self, now_s: float, budget: int) -> int | None:
        """Move the oldest waiting request to running, with blocks for all of it so far. None when it does not fit."""
        while self._waiting[0].is_done:
            self._waiting.popleft()
        sequence = self._waiting[0]
        block_tokens = self.settings.block_tokens
        n_blocks = -(-sequence.n_known // block_tokens)
        # At least one token is computed, so that there is something to sample from.
        n_findable = (sequence.n_known - 1) // block_tokens
        hits: list[int] = []
        if self.settings.cache and n_findable:
            findable = sequence.hashes(block_tokens)[:n_findable]
            hits = findable[: self.cache.match(findable)]
        n_hit = len(hits)
        if not self.cache.admit(hits, n_blocks - n_hit):
            return None
        self._waiting.popleft()
        self._n_waiting -= 1
        self._running[sequence] = None
        sequence.is_waiting = False
        sequence.shared = hits
        sequence.n_private = n_blocks - n_hit
        self._set_computed(sequence, n_hit * block_tokens)
        if sequence.started_s is None:
            sequence.started_s = now_s
            sequence.cached_tokens = sequence.n_computed
        n_tokens = min(budget, sequence.n_known - sequence.n_computed)
        self._compute(sequence, n_tokens)
        return n_tokens

    def _extend(self, sequence: SimSequence, n_tokens: int) -> bool:
        """Get blocks for `n_tokens` more, at the price of newer requests, and compute them. False: it was preempted."""
        block_tokens = self.settings.block_tokens
        n_more = -(-(sequence.n_computed + n_tokens) // block_tokens) - len(sequence.shared) - sequence.n_private
        while n_more > 0 and not self.cache.allocate(n_more):
            newest = next(reversed(self._running))
            self._preempt(newest)
            if newest is sequence:
                return False
        if n_more > 0:
            sequence.n_private += n_more
        self._compute(sequence, n_tokens)
        return True

    def _compute(self, sequence: SimSequence, n_tokens: int) -> None:
        """Count `n_tokens` as computed; blocks that this fills become findable."""
        self._set_computed(sequence, sequence.n_computed + n_tokens)
        if not self.settings.cache:
            return
        n_full = sequence.n_computed // self.settings.block_tokens
        n_shared = len(sequence.shared)
        if n_full == n_shared:
            return
        # Where somebody else's copy is the findable one, ours and what follows it stays private.
        new = sequence.hashes(self.settings.block_tokens)[n_shared:n_full]
        n_new = self.cache.commit(new)
        stored = new if n_new == len(new) else new[:n_new]
        sequence.shared += stored
        sequence.n_private -= n_new
        if stored and self.on_stored is not None:
            self.on_stored(sequence, n_shared, stored)

    def _set_computed(self, sequence: SimSequence, n_computed: int) -> None:
        n_prompt = sequence.n_prompt
        self._queued_prefill += min(sequence.n_computed, n_prompt) - min(n_computed, n_prompt)
        sequence.n_computed = n_computed

    def _preempt(self, sequence: SimSequence) -> None:
        self._leave(sequence)
        self._set_computed(sequence, 0)
        sequence.preemptions += 1
        sequence.is_waiting = True
        self._waiting.appendleft(sequence)
        self._n_waiting += 1

    def _leave(self, sequence: SimSequence) -> None:
        del self._running[sequence]
        self.cache.release(sequence.shared, sequence.n_private)
        sequence.shared = []
        sequence.n_private = 0

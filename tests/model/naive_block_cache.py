"""The oracle of the simulated engine's cache: whole prefixes instead of hashes, lists instead of counts, one request at
a time. Obviously right, and slow."""

from __future__ import annotations


class NaiveBlockCache:
    """Serves requests one after another and says how many prompt tokens each found cached."""

    def __init__(self, kv_blocks: int, block_tokens: int) -> None:
        self.kv_blocks = kv_blocks
        self.block_tokens = block_tokens
        self.idle: list[bytes] = []  # prefixes whose last block is cached, oldest first

    def serve(self, prompt: bytes, answer: bytes) -> int:
        """Run one request to its end. Gives its cached tokens."""
        n_bytes = self.block_tokens * 4
        stream = prompt + answer
        n_prompt = -(-len(prompt) // 4)
        n_answer = len(answer) // 4
        # All but the last token of the prompt can come from the cache.
        prefixes = [stream[: (i + 1) * n_bytes] for i in range((n_prompt - 1) // self.block_tokens)]
        held: list[bytes] = []
        for prefix in prefixes:
            if prefix not in self.idle:
                break
            held.append(prefix)
        for prefix in held:
            self.idle.remove(prefix)
        cached_tokens = len(held) * self.block_tokens
        n_private = 0
        n_computed = cached_tokens
        # The prompt in one go, then token by token; the last token of an answer is never computed.
        for n_tokens in [n_prompt - cached_tokens, *[1] * (n_answer - 1)]:
            while (len(held) + n_private) * self.block_tokens < n_computed + n_tokens:
                if len(self.idle) + len(held) + n_private == self.kv_blocks:
                    self.idle.pop(0)
                n_private += 1
            n_computed += n_tokens
            while (len(held) + 1) * self.block_tokens <= n_computed:
                prefix = stream[: (len(held) + 1) * n_bytes]
                if prefix in self.idle:  # a second copy is not cached
                    break
                held.append(prefix)
                n_private -= 1
        self.idle += reversed(held)
        return cached_tokens

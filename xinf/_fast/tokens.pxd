# Counts of tokens, which have no sign: differences, and what of a prompt an engine finds in its cache.

from libc.stdint cimport uint32_t, uint64_t


cdef inline uint64_t above(uint64_t a, uint64_t b) noexcept nogil:
    """How much a is above b."""
    return a - b if a > b else 0


cdef inline uint64_t distance(uint64_t a, uint64_t b) noexcept nogil:
    return above(a, b) + above(b, a)


cdef inline uint64_t usable(uint64_t held, uint64_t prompt_tokens, uint32_t block_tokens) noexcept nogil:
    """Tokens in whole blocks, and never the last one of the prompt. `prompt_tokens`: at least 1."""
    return min(held, prompt_tokens - 1) // block_tokens * block_tokens

# What is kept of a replica from one answer to the next: how predictions came out, and what they go by.

from libc.stdint cimport uint8_t, uint64_t

from xinf._fast.standing cimport Standing

cdef struct Record:
    uint64_t answers  # that had a prediction
    uint64_t answers_within_block
    uint64_t predicted_cached_tokens
    uint64_t cached_tokens
    uint64_t index_failures
    double trust  # in marks, while the row goes by something else
    uint8_t has_index
    uint8_t has_exact
    Standing standing

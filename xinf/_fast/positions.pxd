# Where in tokens the chunks of a prompt stand: straight lines through (0, 0), a known chunk and the end.

from libc.stdint cimport UINT32_MAX, uint32_t


cdef inline void line(
    const uint32_t *ends, size_t start, size_t stop, double from_bytes, double from_tokens, double to_bytes,
    double to_tokens, uint32_t *out,
) noexcept nogil:
    """Positions of the chunks from `start` to `stop`, at least 1 and not decreasing."""
    cdef double slope = (to_tokens - from_tokens) / (to_bytes - from_bytes) if to_bytes > from_bytes else 0.0
    cdef double tokens
    cdef uint32_t last = out[start - 1] if start else 1, position
    cdef size_t i
    for i in range(start, stop):
        # What ends where the line ends stands exactly there; the small part makes up for rounding on the way.
        if ends[i] >= to_bytes:
            tokens = to_tokens
        else:
            tokens = from_tokens + (ends[i] - from_bytes) * slope + 1e-6
        position = <uint32_t>tokens if tokens < UINT32_MAX else UINT32_MAX
        last = position if position > last else last
        out[i] = last


cdef inline void place_rest(
    const uint32_t *ends, size_t n, double n_tokens, size_t n_known, double known_tokens, uint32_t *out
) noexcept nogil:
    """The chunks behind the first `n_known`, of which the last one stands at `known_tokens`. Fills out[n_known:]."""
    cdef double known_bytes = ends[n_known - 1] if n_known else 0.0
    if n == n_known:
        return
    if n_known:
        out[n_known - 1] = <uint32_t>known_tokens
    line(ends, n_known, n, known_bytes, known_tokens, ends[n - 1], max(n_tokens, known_tokens), out)


cdef inline void place_chunks(
    const uint32_t *ends, size_t n, double n_tokens, size_t n_known, double known_tokens, uint32_t *out
) noexcept nogil:
    """`ends`: (n,) bytes of text up to each chunk's end. `n_known`: chunks up to the one known to stand at `known_tokens`."""
    if n_known:
        line(ends, 0, n_known, 0.0, 0.0, ends[n_known - 1], known_tokens, out)
    place_rest(ends, n, n_tokens, n_known, known_tokens if n_known else 0.0, out)

# The prompt as the model reads it: the texts of its tokens, joined, and where in the text each token ends.
#
#     tokens    [ 151644,    8948, 198,  2610, ... ]
#     text      <|im_start|>system\nYou ...               pieces.blob[offsets[id] : offsets[id + 1]] for each
#     ends      12           18    19  22
#
# Joining is O(tokens + bytes); a piece of up to 16 bytes is copied in one move.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast.alloc cimport xinf_realloc

cdef enum:
    PIECE_PADDING = 16
    RENDERED_PADDING = 64  # zeros behind the text: finders and walks look a little ahead
    MAX_RENDERED_BYTES = 1 << 30  # what stands behind is left out, which only lowers positions

cdef struct Pieces:
    uint8_t *blob
    uint32_t *offsets  # (n + 1,)
    uint32_t n

cdef struct Rendered:
    uint8_t *text
    size_t capacity
    uint32_t *ends  # (n,)
    size_t ends_capacity
    uint32_t n_bytes
    size_t n  # tokens that were joined


cdef inline void free_rendered(Rendered *rendered) noexcept nogil:
    free(rendered.text)
    free(rendered.ends)
    memset(rendered, 0, sizeof(Rendered))


cdef inline bint grow_text(Rendered *rendered, size_t n_bytes) noexcept nogil:
    cdef size_t capacity = max(2 * rendered.capacity, n_bytes + 4096) + RENDERED_PADDING
    cdef void *grown = xinf_realloc(rendered.text, capacity)
    if grown == NULL:
        return 0
    rendered.text = <uint8_t *>grown
    rendered.capacity = capacity
    return 1


cdef inline bint join(const Pieces *pieces, const uint8_t *tokens, size_t n, Rendered *out) noexcept nogil:
    """Join the pieces of `tokens`, (n,) uint32 of any alignment; an id without a piece is an empty text. 0: no memory."""
    cdef size_t i, used = 0, room
    cdef uint32_t token, start, length
    cdef void *grown
    if n > out.ends_capacity:
        grown = xinf_realloc(out.ends, (n + n // 2) * sizeof(uint32_t))
        if grown == NULL:
            return 0
        out.ends = <uint32_t *>grown
        out.ends_capacity = n + n // 2
    if out.capacity == 0 and not grow_text(out, min(4 * n, <size_t>MAX_RENDERED_BYTES)):
        return 0
    room = min(out.capacity - RENDERED_PADDING, <size_t>MAX_RENDERED_BYTES)
    out.n = n
    for i in range(n):
        memcpy(&token, tokens + i * sizeof(uint32_t), sizeof(uint32_t))
        if token < pieces.n:
            start = pieces.offsets[token]
            length = pieces.offsets[token + 1] - start
            if used + length > room:
                if used + length > MAX_RENDERED_BYTES:
                    out.n = i
                    break
                if not grow_text(out, used + length):
                    return 0
                room = min(out.capacity - RENDERED_PADDING, <size_t>MAX_RENDERED_BYTES)
            if length <= PIECE_PADDING:
                memcpy(out.text + used, pieces.blob + start, PIECE_PADDING)
            else:
                memcpy(out.text + used, pieces.blob + start, length)
            used += length
        out.ends[i] = <uint32_t>used
    memset(out.text + used, 0, RENDERED_PADDING)
    out.n_bytes = <uint32_t>used
    return 1


cdef inline void count_tokens(const Rendered *rendered, const uint32_t *stops, size_t n, uint32_t *positions) noexcept nogil:
    """For each of `stops`, which do not decrease, the tokens that end at or before it.

    Tokens without text count only with one behind them that has some: nothing says what determines them.
    """
    cdef size_t token = 0, k
    cdef uint32_t count = 0, end = 0
    for k in range(n):
        while token < rendered.n and rendered.ends[token] <= stops[k]:
            token += 1
            if rendered.ends[token - 1] > end:
                end = rendered.ends[token - 1]
                count = <uint32_t>token
        positions[k] = count

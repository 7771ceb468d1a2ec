# `prompt` and `input` of completions and embeddings: a string, strings, token ids, or arrays of token ids.

from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from xinf._fast.jsonread cimport (
    ARRAY, NULL_VALUE, NUMBER, STRING, Reader, Span, enter, next_item, read_value,
)

cdef enum:
    SHAPE_NONE, SHAPE_TEXT, SHAPE_TEXTS, SHAPE_IDS, SHAPE_ID_LISTS, SHAPE_OBJECTS, SHAPE_WRONG

cdef struct Prompt:
    uint8_t shape
    uint64_t n_text_bytes
    uint64_t n_ids


cdef inline bint is_token_id(const uint8_t *base, const Span *span) noexcept nogil:
    return span.kind == NUMBER and span.is_plain and base[span.start] != c'-' and parse_id(base, span) <= UINT32_MAX


cdef inline uint64_t parse_id(const uint8_t *base, const Span *span) noexcept nogil:
    """The value of a plain number, or something above UINT32_MAX."""
    cdef uint64_t value = 0
    cdef uint32_t i
    if span.n_bytes > 10:
        return UINT32_MAX + <uint64_t>1
    for i in range(span.start, span.end):
        value = value * 10 + (base[i] - c'0')
    return value


cdef inline bint read_ids(Reader *r, Prompt *prompt) noexcept nogil:
    """An inner array of token ids."""
    cdef Span span
    cdef int more
    cdef bint is_first = 1
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more <= 0:
            return more == 0
        is_first = 0
        if not read_value(r, &span):
            return 0
        if is_token_id(r.base, &span):
            prompt.n_ids += 1
        else:
            prompt.shape = SHAPE_WRONG


cdef inline bint read_prompt(Reader *r, Prompt *prompt, Span *out) noexcept nogil:
    """A prompt: a string, or an array of strings, of token ids or of arrays of token ids."""
    cdef Span span
    cdef int more
    cdef uint8_t shape
    cdef bint is_first = 1
    memset(prompt, 0, sizeof(Prompt))
    if r.p[0] != c'[':
        if not read_value(r, out):
            return 0
        prompt.shape = SHAPE_TEXT if out.kind == STRING else SHAPE_NONE if out.kind == NULL_VALUE else SHAPE_WRONG
        prompt.n_text_bytes = out.n_bytes if out.kind == STRING else 0
        return 1
    out.start = <uint32_t>(r.p - r.base)
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more < 0:
            return 0
        if more == 0:
            break
        if r.p[0] == c'[':
            shape = SHAPE_ID_LISTS
            if not read_ids(r, prompt):
                return 0
        else:
            if not read_value(r, &span):
                return 0
            if span.kind == STRING:
                shape = SHAPE_TEXTS
                prompt.n_text_bytes += span.n_bytes
            elif is_token_id(r.base, &span):
                shape = SHAPE_IDS
                prompt.n_ids += 1
            else:
                shape = SHAPE_WRONG
        if is_first and prompt.shape == SHAPE_NONE:
            prompt.shape = shape
        elif prompt.shape != shape:
            prompt.shape = SHAPE_WRONG
        is_first = 0
    out.end = <uint32_t>(r.p - r.base)
    out.n_bytes = out.end - out.start
    out.kind = ARRAY
    return 1

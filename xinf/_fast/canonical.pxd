# What of a request is hashed, in which order: the walk that feeds the sink. The kinds and cuts are in sink.pxd.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from xinf._fast.dialogue cimport PART_FIRST, PART_TEXT, Dialogue, Message
from xinf._fast.jsonread cimport MAX_DEPTH, OBJECT, STRING, Reader, Span, read_string, read_value, same_text
from xinf._fast.prompt cimport SHAPE_NONE, SHAPE_OBJECTS, SHAPE_TEXT, SHAPE_WRONG, Prompt, parse_id
from xinf._fast.sink cimport (
    KIND_EXTRA, KIND_PART, KIND_PAYLOAD, KIND_PROMPT, KIND_TEXT, KIND_TOKENS, KIND_TOOLS, KIND_TOOLS_MARK,
    Sink, emit, emit_role, feed_json, feed_text, mix, mix_json, record,
)

cdef enum:
    ORDER_TOOLS_FIRST = 1
    ORDER_TOOLS_BEFORE_LAST_USER = 2
    ORDER_MASK = 3  # which of the above; the others are flags
    ORDER_TOLD_OF_TOOLS = 4
    ORDER_DEVELOPER_HOISTED = 8
    ORDER_THINKING_LAST = 16
    MEDIA_BYTES = 1024  # what a payload counts as in text, so that a large image does not look like a large prompt
    TOKEN_ID_BYTES = 4  # what a token id counts as in text


cdef inline void feed_message(Sink *sink, Dialogue *d, const Message *message) noexcept nogil:
    cdef uint32_t i, n_bytes, n_parts = 0
    cdef const Span *span
    # An absent role is an empty one. Escapes in a role change the hash, not the meaning: that can only miss a match.
    emit_role(sink, sink.body + message.role.start, message.role.end - message.role.start, message.role.n_bytes)
    if message.content.kind == STRING:
        feed_text(sink, &message.content, KIND_TEXT)
    for i in range(message.parts_begin, message.parts_end):
        span = &d.parts.items[i]
        if span.tag == PART_FIRST:
            n_parts += 1
            if n_parts > 1:
                emit(sink, NULL, 0, KIND_PART, 0)
        elif span.tag == PART_TEXT:
            feed_text(sink, span, KIND_TEXT)
        else:
            n_bytes = mix_json(sink, span, KIND_PAYLOAD)
            record(sink, NULL, 0, KIND_PAYLOAD, n_bytes if n_bytes < MEDIA_BYTES else MEDIA_BYTES)
    for i in range(message.extras_begin, message.extras_end):
        feed_json(sink, &d.extras.items[i], KIND_EXTRA)


cdef inline void feed_tools(Sink *sink, const Span *tools, const Span *choice) noexcept nogil:
    # "auto" is what absent means where there are tools.
    if not same_text(sink.body, choice, b"auto", 4):
        mix(sink, choice, KIND_TOOLS_MARK)
    emit(sink, NULL, 0, KIND_TOOLS_MARK, 0)
    feed_json(sink, tools, KIND_TOOLS)


cdef inline bint is_order(int order) noexcept nogil:
    """Whether a number names an order of segments."""
    return 0 <= order < 2 * ORDER_THINKING_LAST and order & ORDER_MASK != ORDER_MASK


cdef inline bint is_leading(const Message *message, const uint8_t *body) noexcept nogil:
    """Whether a message is one of the system's."""
    return same_text(body, &message.role, b"system", 6) or same_text(body, &message.role, b"developer", 9)


cdef inline bint has_developer(Dialogue *d, const uint8_t *body) noexcept nogil:
    cdef uint32_t i
    for i in range(d.n_complete):
        if same_text(body, &d.items[i].role, b"developer", 9):
            return 1
    return 0


cdef inline bint is_thinking_only(const Span *span, const uint8_t *body) noexcept nogil:
    """Whether an object is {"enable_thinking": true} or false: what most templates look at behind all messages only."""
    cdef const uint8_t *p = body + span.start
    cdef const uint8_t *end = body + span.end
    cdef uint8_t[32] kept
    cdef size_t n = 0
    if span.kind != OBJECT:
        return 0
    while p < end:
        if p[0] != c' ' and p[0] != c'\n' and p[0] != c'\r' and p[0] != c'\t':
            if n == sizeof(kept):
                return 0
            kept[n] = p[0]
            n += 1
        p += 1
    return (n == 24 and memcmp(kept, b'{"enable_thinking":true}', 24) == 0) or (
        n == 25 and memcmp(kept, b'{"enable_thinking":false}', 25) == 0)


cdef inline uint32_t tools_position(Dialogue *d, const uint8_t *body, int order) noexcept nogil:
    """How many messages stand before the tools."""
    cdef uint32_t i
    order &= ORDER_MASK
    if order == ORDER_TOOLS_FIRST:
        return 0
    if order == ORDER_TOOLS_BEFORE_LAST_USER:
        for i in range(d.n_complete, 0, -1):
            if same_text(body, &d.items[i - 1].role, b"user", 4):
                return i - 1
        return d.n_complete
    for i in range(d.n_complete):
        if not same_text(body, &d.items[i].role, b"system", 6) and not same_text(body, &d.items[i].role, b"developer", 9):
            return i
    return d.n_complete


cdef inline void feed_prompt(Sink *sink, const Prompt *prompt, const Span *span) noexcept nogil:
    """Hash `prompt` or `input`. Its array was validated, so this walk only looks for the items."""
    cdef Reader r
    cdef Span item
    cdef uint32_t n_prompts = 0
    cdef uint64_t token
    cdef uint32_t narrow
    if prompt.shape == SHAPE_TEXT:
        feed_text(sink, span, KIND_TEXT)
        return
    if prompt.shape == SHAPE_NONE or prompt.shape == SHAPE_WRONG or prompt.shape == SHAPE_OBJECTS:
        return
    r.base = sink.body
    r.end = sink.body + span.end
    r.p = sink.body + span.start + 1
    r.depth_left = MAX_DEPTH
    sink.fill = 0
    while r.p < r.end:
        if r.p[0] == c'"' or r.p[0] == c'[':
            n_prompts += 1
            if n_prompts > 1:
                emit(sink, NULL, 0, KIND_PROMPT, 0)
        if r.p[0] == c'"':
            read_string(&r, &item)
            feed_text(sink, &item, KIND_TEXT)
        elif c'0' <= r.p[0] <= c'9':
            read_value(&r, &item)
            token = parse_id(sink.body, &item)
            narrow = <uint32_t>token
            memcpy(sink.buffer + sink.fill, &narrow, TOKEN_ID_BYTES)
            sink.fill += TOKEN_ID_BYTES
            if sink.fill + TOKEN_ID_BYTES > sink.chunk_bytes:
                flush_tokens(sink)
        else:
            if r.p[0] == c']':
                flush_tokens(sink)
            r.p += 1


cdef inline void flush_tokens(Sink *sink) noexcept nogil:
    if sink.fill:
        emit(sink, sink.buffer, sink.fill, KIND_TOKENS, sink.fill)
        sink.fill = 0

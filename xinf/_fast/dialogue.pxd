# The messages of a chat request, recorded as spans of the body while it is validated.
#
#     Dialogue ── items[]  Message: role, content, a range of parts, a range of extras
#              ├─ parts[]  spans of all content arrays; PART_FIRST opens a part
#              └─ extras[] spans of `"key": value` for all other fields of messages
#
# Of duplicate fields in a message the last wins; parts of an overridden content stay behind unused. Both tables are
# capped, so that a body of empty objects cannot take many times its own size: what lies behind a cap is validated but
# not recorded, and `n_complete` says how many messages are whole.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.jsonread cimport (
    ABSENT, ARRAY, NULL_VALUE, OBJECT, STRING, Reader, Span, enter, next_item, read_key, read_value, same_text,
)

cdef enum:
    MAX_MESSAGES = 1 << 16
    MAX_PARTS = 1 << 18

# Tags of the spans of a content part.
cdef enum:
    PART_FIRST = 1  # an empty span: a part begins
    PART_TEXT = 2
    PART_PAYLOAD = 3

cdef struct Message:
    Span role
    Span content
    uint32_t parts_begin
    uint32_t parts_end
    uint32_t extras_begin
    uint32_t extras_end

cdef struct Spans:
    Span *items
    uint32_t n
    uint32_t capacity

cdef struct Dialogue:
    Message *items
    uint32_t n
    uint32_t capacity
    uint32_t n_complete  # messages that are recorded whole; fewer than n behind a cap
    Spans parts
    Spans extras
    bint is_cut
    uint32_t wrong_index
    const char *wrong_field  # NULL: all right
    const char *wrong_expected


# ---- recording ----------------------------------------------------------------------------------------------------


cdef inline bint out_of_memory(Reader *r) noexcept nogil:
    r.error_at = NULL
    r.reason = b"out of memory"
    return 0


cdef inline bint append_span(Reader *r, Spans *spans, const Span *span, uint8_t tag, Dialogue *owner) noexcept nogil:
    """Note a span; beyond the cap it is dropped and the dialogue is marked as cut."""
    cdef uint32_t capacity
    cdef Span *grown
    if spans.n >= MAX_PARTS:
        owner.is_cut = 1
        return 1
    if spans.n == spans.capacity:
        capacity = spans.capacity * 2 if spans.capacity else 16
        grown = <Span *>xinf_realloc(spans.items, capacity * sizeof(Span))
        if grown == NULL:
            return out_of_memory(r)
        spans.items = grown
        spans.capacity = capacity
    spans.items[spans.n] = span[0]
    spans.items[spans.n].tag = tag
    spans.n += 1
    return 1


cdef inline Message *append_message(Reader *r, Dialogue *d) noexcept nogil:
    """A cleared message at the end of the dialogue; NULL when out of memory."""
    cdef uint32_t capacity
    cdef Message *grown
    if d.n == d.capacity:
        capacity = d.capacity * 2 if d.capacity else 8
        grown = <Message *>xinf_realloc(d.items, capacity * sizeof(Message))
        if grown == NULL:
            out_of_memory(r)
            return NULL
        d.items = grown
        d.capacity = capacity
    d.n += 1
    memset(&d.items[d.n - 1], 0, sizeof(Message))
    return &d.items[d.n - 1]


cdef inline void mark_wrong(Dialogue *d, const char *field, const char *expected) noexcept nogil:
    if d.wrong_field == NULL:
        d.wrong_index = d.n - 1 if d.n else 0
        d.wrong_field = field
        d.wrong_expected = expected


cdef inline void clear_dialogue(Dialogue *d) noexcept nogil:
    d.n = 0
    d.n_complete = 0
    d.parts.n = 0
    d.extras.n = 0
    d.is_cut = 0
    d.wrong_field = NULL


# ---- messages -----------------------------------------------------------------------------------------------------


cdef inline bint read_part(Reader *r, Dialogue *d) noexcept nogil:
    """One content part. Its text, and whatever else it carries as payloads (image_url, input_audio, ...)."""
    cdef Span key, value, text, raw
    cdef int more
    cdef bint is_first = 1, has_text = 0
    memset(&value, 0, sizeof(Span))
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c'}', is_first)
        if more < 0:
            return 0
        if more == 0:
            break
        is_first = 0
        if not read_key(r, &key) or not read_value(r, &value):
            return 0
        if same_text(r.base, &key, b"text", 4):
            text = value
            has_text = value.kind != NULL_VALUE
        elif same_text(r.base, &key, b"type", 4):
            if not (same_text(r.base, &value, b"text", 4) or same_text(r.base, &value, b"input_text", 10)
                    or same_text(r.base, &value, b"output_text", 11)):
                if not append_span(r, &d.parts, &value, PART_PAYLOAD, d):
                    return 0
        elif value.kind != NULL_VALUE:
            raw = value
            raw.kind = OBJECT  # a member: key, colon and value
            raw.start = key.start - 1
            raw.end = <uint32_t>(r.p - r.base)
            raw.n_bytes = raw.end - raw.start
            if not append_span(r, &d.parts, &raw, PART_PAYLOAD, d):
                return 0
    if has_text:
        if text.kind != STRING:
            mark_wrong(d, b"content", b"text parts whose text is a string")
        elif not append_span(r, &d.parts, &text, PART_TEXT, d):
            return 0
    return 1


cdef inline bint read_parts(Reader *r, Dialogue *d) noexcept nogil:
    """A content array."""
    cdef Span value, nothing
    cdef int more
    cdef bint is_first = 1
    memset(&nothing, 0, sizeof(Span))
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more <= 0:
            return more == 0
        if not append_span(r, &d.parts, &nothing, PART_FIRST, d):
            return 0
        is_first = 0
        if r.p[0] == c'{':
            if not read_part(r, d):
                return 0
        elif not read_value(r, &value):
            return 0
        elif value.kind != STRING:
            mark_wrong(d, b"content", b"an array of content parts")
        elif not append_span(r, &d.parts, &value, PART_TEXT, d):
            return 0


cdef inline bint read_message(Reader *r, Dialogue *d) noexcept nogil:
    cdef Message *message = append_message(r, d)
    cdef Span key, value, raw
    cdef int more
    cdef bint is_first = 1
    memset(&value, 0, sizeof(Span))
    if message == NULL or not enter(r):
        return 0
    message.extras_begin = d.extras.n
    while True:
        more = next_item(r, c'}', is_first)
        if more < 0:
            return 0
        if more == 0:
            break
        is_first = 0
        if not read_key(r, &key):
            return 0
        if same_text(r.base, &key, b"content", 7):
            message.parts_begin = d.parts.n
            if r.p[0] == c'[':
                if not read_parts(r, d):
                    return 0
                memset(&message.content, 0, sizeof(Span))
                message.content.kind = ARRAY
            elif not read_value(r, &message.content):
                return 0
            elif message.content.kind != STRING and message.content.kind != NULL_VALUE:
                mark_wrong(d, b"content", b"a string, an array of content parts or null")
            message.parts_end = d.parts.n
        elif same_text(r.base, &key, b"role", 4):
            if not read_value(r, &message.role):
                return 0
        else:
            if not read_value(r, &value):
                return 0
            if value.kind != NULL_VALUE:
                raw = value
                raw.kind = OBJECT  # a member: key, colon and value
                raw.start = key.start - 1
                raw.end = <uint32_t>(r.p - r.base)
                raw.n_bytes = raw.end - raw.start
                if not append_span(r, &d.extras, &raw, 0, d):
                    return 0
    message.extras_end = d.extras.n
    if message.role.kind != STRING and message.role.kind != ABSENT:
        mark_wrong(d, b"role", b"a string")
    if not d.is_cut:
        d.n_complete = d.n
    return 1


cdef inline bint read_messages(Reader *r, Dialogue *d) noexcept nogil:
    """An array of messages; the cursor is at its bracket."""
    cdef Span ignored
    cdef int more
    cdef bint is_first = 1
    clear_dialogue(d)
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more <= 0:
            return more == 0
        is_first = 0
        if r.p[0] == c'{' and d.n < MAX_MESSAGES:
            if not read_message(r, d):
                return 0
            continue
        if r.p[0] == c'{':
            d.is_cut = 1
        else:
            mark_wrong(d, b"", b"an array of objects")
        if not read_value(r, &ignored):
            return 0

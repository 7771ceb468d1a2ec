# Where canonical text becomes a chain of hashes. The kinds and cuts here define the chain; shim and gateway must agree.

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.jsonread cimport ABSENT, NULL_VALUE, STRING, Span, plain_end, unescape

cdef enum:
    MIN_CHUNK_BYTES = 16
    MAX_CHUNK_BYTES = 4096
    LAST_ROLES = 16  # headers of messages that are remembered, of the last ones; a power of two
    KEPT_PADDING = 64

# Kinds of chunks; part of the definition of the chain, never renumber.
cdef enum:
    KIND_CHAT = 1
    KIND_COMPLETION = 2
    KIND_INPUT = 3
    KIND_SALT = 4
    KIND_ROLE = 5
    KIND_TEXT = 6
    KIND_PART = 7  # the first chunk of a content part that is not the first of its message
    KIND_PAYLOAD = 8
    KIND_EXTRA = 9  # any other field of a message: tool_calls, name, reasoning_content
    KIND_TOOLS_MARK = 10  # tools follow; carries tool_choice
    KIND_TOOLS = 11
    KIND_TOKENS = 12
    KIND_PROMPT = 13  # the next prompt of a list of prompts
    KIND_INSTRUCTIONS = 14
    KIND_OPTION = 32  # + number of the field

cdef struct Written:
    const uint8_t *p
    const uint8_t *end
    bint is_string  # p is inside a string
    bint is_escaped  # p is behind a backslash

# The chunks themselves, as they were hashed; for bind.pyx. Payloads are left out: they may be large and stand nowhere.
cdef struct Kept:
    uint8_t *text  # all of it, with KEPT_PADDING readable bytes behind
    size_t n_bytes
    size_t text_capacity
    uint32_t *ends  # (n,) where in the text each chunk ends
    uint8_t *kinds  # (n,)
    size_t capacity

cdef struct Sink:
    const uint8_t *body
    uint64_t *hashes
    uint32_t *ends
    size_t n
    size_t capacity
    uint64_t state
    uint64_t n_bytes
    uint32_t chunk_bytes
    uint32_t fill
    bint has_failed
    bint is_watched  # it has failed, or chunks are kept: the one thing that the way of a chunk asks for
    Kept *kept  # NULL: only hashes
    uint32_t n_roles
    uint32_t[LAST_ROLES] roles  # the chunks, counted from 1, that the last headers are; a ring
    uint8_t[MAX_CHUNK_BYTES + 8] buffer


cdef inline void init_sink(Sink *sink) noexcept nogil:
    sink.hashes = NULL
    sink.ends = NULL
    sink.n = sink.capacity = 0
    sink.kept = NULL


cdef inline void free_sink(Sink *sink) noexcept nogil:
    free(sink.hashes)
    free(sink.ends)
    init_sink(sink)


cdef inline void free_kept(Kept *kept) noexcept nogil:
    free(kept.text)
    free(kept.ends)
    free(kept.kinds)
    memset(kept, 0, sizeof(Kept))


cdef inline bint grow_kept(Kept *kept, size_t n_chunks, size_t n_bytes) noexcept nogil:
    """Make room for so many chunks and bytes. What was kept stays when memory is out."""
    cdef size_t capacity
    cdef void *grown
    if n_chunks > kept.capacity:
        capacity = max(2 * kept.capacity, max(n_chunks, <size_t>256))
        grown = xinf_realloc(kept.kinds, capacity)
        if grown == NULL:
            return 0
        kept.kinds = <uint8_t *>grown
        grown = xinf_realloc(kept.ends, capacity * sizeof(uint32_t))
        if grown == NULL:
            return 0
        kept.ends = <uint32_t *>grown
        kept.capacity = capacity
    if n_bytes + KEPT_PADDING > kept.text_capacity:
        capacity = max(2 * kept.text_capacity, n_bytes + 8192)
        grown = xinf_realloc(kept.text, capacity)
        if grown == NULL:
            return 0
        kept.text = <uint8_t *>grown
        kept.text_capacity = capacity
    return 1


cdef inline bint keep(Sink *sink, const uint8_t *p, uint32_t n, uint32_t kind) noexcept nogil:
    """Copy the next chunk, if asked to. Gives 0 when the sink has failed."""
    cdef Kept *kept = sink.kept
    if sink.has_failed:
        return 0
    if not grow_kept(kept, sink.n + 1, kept.n_bytes + n):
        sink.has_failed = 1
        return 0
    if n:
        memcpy(kept.text + kept.n_bytes, p, n)
    kept.n_bytes += n
    kept.ends[sink.n] = <uint32_t>kept.n_bytes
    kept.kinds[sink.n] = <uint8_t>kind
    return 1


cdef inline void record(Sink *sink, const uint8_t *p, uint32_t n, uint32_t kind, uint32_t counts_as) noexcept nogil:
    """Note the state as the hash of a chunk that counts as so many bytes of text. `p`, `n`: what is kept of it."""
    cdef size_t capacity
    cdef void *grown
    if sink.is_watched and not keep(sink, p, n, kind):
        return
    if sink.n == sink.capacity:
        capacity = sink.capacity * 2 if sink.capacity else 64
        grown = xinf_realloc(sink.hashes, capacity * sizeof(uint64_t))
        if grown != NULL:
            sink.hashes = <uint64_t *>grown
            grown = xinf_realloc(sink.ends, capacity * sizeof(uint32_t))
        if grown == NULL:
            sink.has_failed = sink.is_watched = 1
            return
        sink.ends = <uint32_t *>grown
        sink.capacity = capacity
    sink.n_bytes += counts_as
    sink.hashes[sink.n] = sink.state
    sink.ends[sink.n] = <uint32_t>sink.n_bytes if sink.n_bytes < UINT32_MAX else UINT32_MAX
    sink.n += 1


cdef inline void emit(Sink *sink, const uint8_t *p, uint32_t n, uint32_t kind, uint32_t counts_as) noexcept nogil:
    """Close a chunk: chain its hash."""
    sink.state = chunk_hash(sink.state, p, n, kind)
    record(sink, p, n, kind, counts_as)


cdef inline void emit_role(Sink *sink, const uint8_t *p, uint32_t n, uint32_t counts_as) noexcept nogil:
    """Close the chunk of a header, and remember where it is."""
    emit(sink, p, n, KIND_ROLE, counts_as)
    sink.roles[sink.n_roles % LAST_ROLES] = <uint32_t>sink.n
    sink.n_roles += 1


cdef inline uint32_t fill_json(Written *json, uint8_t *out, uint32_t limit) noexcept nogil:
    """Copy JSON as written, without the white space between its tokens, up to `limit` bytes. Gives how many."""
    cdef const uint8_t *run_end
    cdef uint32_t fill = 0, n
    cdef uint8_t c
    while fill < limit and json.p < json.end:
        c = json.p[0]
        if not json.is_string:
            json.is_string = c == c'"'
            if c == c' ' or c == c'\n' or c == c'\r' or c == c'\t':
                json.p += 1
                continue
        elif json.is_escaped:
            json.is_escaped = 0
        elif c == c'\\':
            json.is_escaped = 1
        elif c == c'"':
            json.is_string = 0
        else:
            run_end = plain_end(json.p, json.end)
            n = <uint32_t>min(run_end - json.p, <int64_t>(limit - fill))
            if n > 1:
                memcpy(out + fill, json.p, n)
                fill += n
                json.p += n
                continue
        out[fill] = c
        fill += 1
        json.p += 1
    return fill


cdef inline void open_json(Sink *sink, const Span *span, Written *json) noexcept nogil:
    json.p = sink.body + span.start
    json.end = sink.body + span.end
    json.is_string = span.kind == STRING  # its span is what stands between the quotes
    json.is_escaped = 0


cdef inline uint32_t mix_json(Sink *sink, const Span *span, uint32_t kind) noexcept nogil:
    """Let a value of any length change the state, in blocks of MAX_CHUNK_BYTES, without a chunk of its own.

    Gives the bytes hashed.
    """
    cdef Written json
    cdef uint32_t n, total = 0
    open_json(sink, span, &json)
    while True:
        n = fill_json(&json, sink.buffer, MAX_CHUNK_BYTES)
        if n == 0 and total:
            return total
        sink.state = chunk_hash(sink.state, sink.buffer, n, kind)
        total += n
        if n < MAX_CHUNK_BYTES:
            return total


cdef inline void mix(Sink *sink, const Span *span, uint32_t kind) noexcept nogil:
    """Let a field change the whole chain, if it is there."""
    if span.kind != ABSENT and span.kind != NULL_VALUE:
        mix_json(sink, span, kind)


cdef inline void feed_text(Sink *sink, const Span *span, uint32_t kind) noexcept nogil:
    """Hash a string in chunks; the first under `kind`, the others as text."""
    cdef const uint8_t *p = sink.body + span.start
    cdef const uint8_t *end = sink.body + span.end
    cdef uint32_t n, fill = 0
    if span.is_plain:
        while p < end:
            n = <uint32_t>(end - p) if end - p < sink.chunk_bytes else sink.chunk_bytes
            emit(sink, p, n, kind, n)
            kind = KIND_TEXT
            p += n
        return
    while p < end:
        if p[0] == c'\\':
            fill += unescape(&p, sink.buffer + fill)
        else:
            sink.buffer[fill] = p[0]
            fill += 1
            p += 1
        if fill >= sink.chunk_bytes:
            emit(sink, sink.buffer, sink.chunk_bytes, kind, sink.chunk_bytes)
            kind = KIND_TEXT
            fill -= sink.chunk_bytes
            memcpy(sink.buffer, sink.buffer + sink.chunk_bytes, fill)
    if fill:
        emit(sink, sink.buffer, fill, kind, fill)


cdef inline void feed_json(Sink *sink, const Span *span, uint32_t kind) noexcept nogil:
    """Hash any JSON in chunks."""
    cdef Written json
    cdef uint32_t n
    open_json(sink, span, &json)
    while True:
        n = fill_json(&json, sink.buffer, sink.chunk_bytes)
        if n == 0:
            return
        emit(sink, sink.buffer, n, kind, n)

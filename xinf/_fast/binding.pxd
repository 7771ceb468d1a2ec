# What binding a prompt works on: its chunks, the rendered text, and the places of the ones in the other.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp

from xinf._fast.alloc cimport xinf_calloc, xinf_realloc
from xinf._fast.rendered cimport Rendered, free_rendered
from xinf._fast.sink cimport KIND_INSTRUCTIONS, KIND_TEXT, Kept, Sink, free_kept, free_sink, init_sink
from xinf._fast.walk cimport Walker, is_space

cdef enum:
    NOWHERE = 0xFFFFFFFF  # the place of a chunk that is not known; a rendered text ends long before
    LONG_BYTES = 24  # a text of so many bytes is not met by chance
    PREFIX_BYTES = 32  # of a text that is looked for; with so much alike it is the same one, maybe changed further on
    RESYNC_BYTES = 12  # of JSON alike from a brace on is the same object, where it is expected
    RESYNC_AFAR_BYTES = 48  # and elsewhere
    LONGEST_ESCAPE = 12
    MAX_LOST_OBJECTS = 64  # of one JSON value that are looked for in vain
    VALUE_BYTES = 8  # a string among a message's other fields that is worth looking for
    MARK_BYTES = 64  # an object found so early in the tools is where their text begins
    HEADER_BYTES = 16  # what a header counts as in a gap, beside the role's own bytes
    WINDOW_BYTES = 8192  # a content stands within so many bytes and WINDOW_FACTOR times what is pending before it
    WINDOW_FACTOR = 4
    FINAL_HEADER_BYTES = 512  # the header of the answer begins so near to the end
    WORK_FACTOR = 32
    KEEP_BYTES = 16 << 20  # buffers larger than this are not kept from one prompt to the next
    LARGE_BODY_BYTES = 1 << 18  # other threads may run meanwhile, as in scan.pyx

# Flags of chunks.
cdef enum:
    CAPS = 1  # where it begins, nothing that comes before it in the chain can have got any further

cdef struct Header:
    const uint8_t *role
    const uint8_t *text
    uint32_t n_role
    uint32_t n_text

cdef struct Place:
    uint32_t start
    uint32_t end
    uint32_t skip  # bytes of the text, its white space, that are not there
    uint32_t header  # where the header begins

# How a text was found.
cdef enum Match:
    MISSING = 0
    WHOLE = 1
    PARTIAL = 2  # its beginning
    ESCAPED = 3  # as a JSON string; its chunks have got their places

cdef struct Job:
    Sink sink
    Kept kept
    Rendered rendered
    uint32_t *stops  # (n,) where chunks end in the rendered text, or NOWHERE
    uint32_t *begins  # (n,) where they begin, if known
    uint8_t *flags
    size_t capacity
    # of this prompt
    const Header *headers
    size_t n_headers
    size_t n
    int64_t work  # bytes that may still be looked at
    size_t pending  # the first chunk without a place
    uint32_t n_pending_roles
    bint has_pending_payload
    uint32_t cursor  # where the last anchor ends
    uint32_t role_at  # where the last header ends
    bint has_answer_header
    uint32_t n_found
    uint32_t n_gaps


cdef inline uint32_t begin_of(const Job *j, size_t k) noexcept nogil:
    """Where a chunk begins in the canonical text."""
    return j.kept.ends[k - 1] if k else 0


cdef inline size_t run_end(const Job *j, size_t k, size_t limit) noexcept nogil:
    """Behind the chunks of the same content as k."""
    cdef uint8_t kind = j.kept.kinds[k]
    if kind == KIND_INSTRUCTIONS:
        kind = KIND_TEXT
    k += 1
    while k < limit and j.kept.kinds[k] == kind:
        k += 1
    return k


cdef inline const Header *header_of(const Job *j, size_t k) noexcept nogil:
    """What the template puts in front of a content of the role that is chunk k; NULL when nobody said."""
    cdef const uint8_t *role = j.kept.text + begin_of(j, k)
    cdef uint32_t n = j.kept.ends[k] - begin_of(j, k)
    cdef size_t i
    for i in range(j.n_headers):
        if j.headers[i].n_role == n and memcmp(j.headers[i].role, role, n) == 0:
            return &j.headers[i]
    return NULL


cdef inline uint32_t window_of(const Job *j, size_t k_end) noexcept nogil:
    """Up to where the contents up to chunk `k_end` are looked for."""
    cdef uint64_t bytes = j.kept.ends[k_end - 1] - begin_of(j, j.pending)
    cdef uint64_t end = j.cursor + WINDOW_BYTES + WINDOW_FACTOR * bytes
    if end >= j.rendered.n_bytes or j.has_pending_payload:
        return j.rendered.n_bytes  # what a payload becomes can be any number of placeholders
    return <uint32_t>end


cdef inline void start_walk(Walker *w, Job *j, size_t k, size_t k_end, uint32_t r, uint32_t r_end) noexcept nogil:
    """From the beginning of chunk k to the end of those up to `k_end`."""
    w.text = j.kept.text
    w.i = begin_of(j, k)
    w.i_end = j.kept.ends[k_end - 1]
    w.rendered = j.rendered.text
    w.r = r
    w.r_end = r_end
    w.is_string = 0
    w.ends = j.kept.ends
    w.stops = j.stops
    w.k = k
    w.k_end = k_end


cdef inline void mark_begin(Job *j, size_t k, uint32_t at) noexcept nogil:
    j.begins[k] = at
    j.flags[k] |= CAPS


cdef inline bint is_blank(const Job *j, size_t k, size_t k_end) noexcept nogil:
    """Whether the text of these chunks is nothing but white space."""
    cdef uint32_t i
    for i in range(begin_of(j, k), j.kept.ends[k_end - 1]):
        if not is_space(j.kept.text[i]):
            return 0
    return 1


cdef inline bint grow_places(Job *j) noexcept nogil:
    cdef size_t capacity = j.n + j.n // 2 + 64
    cdef void *grown
    if j.n <= j.capacity:
        return 1
    grown = xinf_realloc(j.stops, capacity * sizeof(uint32_t))
    if grown == NULL:
        return 0
    j.stops = <uint32_t *>grown
    grown = xinf_realloc(j.begins, capacity * sizeof(uint32_t))
    if grown == NULL:
        return 0
    j.begins = <uint32_t *>grown
    grown = xinf_realloc(j.flags, capacity)
    if grown == NULL:
        return 0
    j.flags = <uint8_t *>grown
    j.capacity = capacity
    return 1


cdef inline Job *new_job() noexcept nogil:
    cdef Job *j = <Job *>xinf_calloc(1, sizeof(Job))
    if j != NULL:
        init_sink(&j.sink)
        j.sink.kept = &j.kept
    return j


cdef inline void free_job(Job *j) noexcept nogil:
    if j == NULL:
        return
    free_sink(&j.sink)
    free_kept(&j.kept)
    free_rendered(&j.rendered)
    free(j.stops)
    free(j.begins)
    free(j.flags)
    free(j)


cdef inline size_t job_bytes(const Job *j) noexcept nogil:
    return (
        sizeof(Job) + 12 * j.sink.capacity + j.kept.text_capacity + 5 * j.kept.capacity + j.rendered.capacity
        + 4 * j.rendered.ends_capacity + 9 * j.capacity
    )

# cython: autotestdict=False
"""The messages of a Link on the wire, without protobuf's objects: protos/engine_service.proto is what this mirrors.

    GatewayFrameWriter ──take()──▶ GatewayFrame bytes ──decode_gateway_frame──▶ GatewayFrame      (gateway to engine)
    EngineFrame ◀──decode_engine_frame── EngineFrame bytes ◀──take()── EngineFrameWriter          (engine to gateway)

A writer keeps references to bodies and copies each once, into the frame. A decoder copies each out once. Blocks of headers
repeat: a block that was seen lately is recognised by its bytes, and its list is shared (never change one).

Accepted: every frame that protobuf writes; unknown fields are skipped, of duplicates the last wins, a message that comes
twice is merged, repeated fields stand in any order. Stricter than protobuf: a known field of a wrong wire type, a group
and a varint of more than 64 bits are errors. EngineInfo stays bytes, unread; the arrays of a Residency are bytes as well,
each copied out once, to be read where they are needed.

Written: fields in order and without defaults, so the bytes are those of protobuf's SerializeToString.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memmove, memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.protowire cimport (
    LENGTH, Field, Reader, Span, bytes_size, message_size, number_size, put_bytes, put_fixed64, put_float,
    put_length, put_number, put_raw, read_field, read_fixed64, read_span, read_tag,
)
from xinf._fast.residencywire cimport (
    ADDED, N_RESIDENCY_FIELDS, REMOVED, Residency, copy_arrays, item_bytes, put_residency, residency_size, residency_types,
)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *n) except NULL
    str PyUnicode_DecodeUTF8(const char *p, Py_ssize_t n, const char *errors)

cdef enum:
    # Field numbers of Submit and Start that their header blocks carry.
    SUBMIT_HEADERS = 4
    START_HEADERS = 3
    CACHED_BLOCKS = 64  # replicas answer with a handful of different ones
    CACHED_BLOCK_BYTES = 2048
    LOAD_FIELDS = 6


class WireError(ValueError):
    """The bytes are not that message. `offset` is where reading ended, `reason` a phrase for people."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


# ---- reading ----------------------------------------------------------------------------------------------------------


cdef object fault_of(const Reader *r, const char *reason = NULL):
    return WireError((reason if reason != NULL else r.fault).decode("ascii"), r.p - r.base)


cdef inline void open_all(Reader *r, bytes data) noexcept:
    r.base = <const uint8_t *>PyBytes_AS_STRING(data)
    r.p = r.base
    r.end = r.base + PyBytes_GET_SIZE(data)
    r.fault = NULL


cdef inline void open_span(Reader *r, const Reader *outer, const Span *span) noexcept nogil:
    r.base = outer.base
    r.p = span.p
    r.end = span.p + span.n
    r.fault = NULL


cdef inline bint next_field(Reader *r, Field *field, const char *types, uint32_t n_known) except -1:
    """Read a field if there is one more. See `read_field`."""
    if r.p == r.end:
        return 0
    if not read_field(r, field, types, n_known):
        raise fault_of(r)
    return 1


cdef inline bytes bytes_of(const Span *span):
    return PyBytes_FromStringAndSize(<const char *>span.p, <Py_ssize_t>span.n)


cdef str text_of(const Reader *r, const Span *span):
    if span.n == 0:
        return ""
    try:
        return PyUnicode_DecodeUTF8(<const char *>span.p, <Py_ssize_t>span.n, NULL)
    except UnicodeDecodeError:
        pass
    raise fault_of(r, "text that is not UTF-8")


# Header blocks seen lately, by hash: their bytes, and their lists.
cdef list block_bytes = [b""] * CACHED_BLOCKS
cdef list block_headers = [None] * CACHED_BLOCKS
cdef list NO_HEADERS = []


cdef list read_headers(const Reader *outer, const Span *block):
    """The headers of a block: Header fields that follow each other, well-formed up to their lengths."""
    cdef uint32_t slot = 0
    cdef bint is_small = block.n <= CACHED_BLOCK_BYTES
    cdef bytes known
    cdef list headers
    if is_small:
        slot = chunk_hash(0, block.p, block.n, 0) % CACHED_BLOCKS
        known = <bytes>block_bytes[slot]
        if <size_t>PyBytes_GET_SIZE(known) == block.n and memcmp(PyBytes_AS_STRING(known), block.p, block.n) == 0:
            return <list>block_headers[slot]
    headers = []
    cdef Reader r
    cdef Span span
    cdef uint32_t tag
    open_span(&r, outer, block)
    while r.p < r.end:
        if not read_tag(&r, &tag) or not read_span(&r, &span):
            raise fault_of(&r)
        headers.append(read_header(&r, &span))
    if is_small:
        known = bytes_of(block)
        block_headers[slot] = headers
        block_bytes[slot] = known
    return headers


cdef tuple read_header(const Reader *outer, const Span *message):
    cdef Reader r
    cdef Field field
    cdef Span name, value
    open_span(&r, outer, message)
    name.p = value.p = r.p
    name.n = value.n = 0
    while next_field(&r, &field, b"22", 2):
        if field.number == 1:
            name = field.span
        elif field.number == 2:
            value = field.span
    return bytes_of(&name), bytes_of(&value)


cdef list add_header(Span *block, list before, const Reader *r, const Field *field):
    """Take a Header that was just read into the block. Gives the headers of earlier blocks."""
    if block.n and block.p + block.n != field.start:
        before = before + read_headers(r, block)  # a field of another kind stood between them
        block.n = 0
    if block.n == 0:
        block.p = field.start
    block.n = <size_t>(r.p - block.p)
    return before


cdef list end_headers(const Span *block, list before, const Reader *r):
    if block.n == 0:
        return NO_HEADERS
    headers = read_headers(r, block)
    return before + headers if before else headers


# ---- engine to gateway ------------------------------------------------------------------------------------------------


@cython.final
@cython.auto_pickle(False)
@cython.freelist(8)
cdef class EngineFrame:
    """What an engine said at once. Repeated fields are in the order of the wire.

    hello      serialized EngineInfo, None when absent
    starts     (id, status, headers)
    chunks     (id, data)
    ends       (id, prompt, cached, completion tokens, error, message, retryable, queued_s)
    load       the fields of Load in order, None when absent
    residency  (sequence, cleared, added, tokens, removed, state, is_partial), None when absent; the arrays are bytes of
               little-endian uint64, `tokens` of uint32, and need not be of one length
    """

    cdef readonly bytes hello
    cdef readonly list starts
    cdef readonly list chunks
    cdef readonly list ends
    cdef readonly tuple load
    cdef readonly tuple residency

    def __cinit__(self):
        self.starts = []
        self.chunks = []
        self.ends = []


cdef tuple read_start(const Reader *outer, const Span *message):
    cdef Reader r
    cdef Field field
    cdef Span block  # of headers that follow each other; n is 0 before the first one
    cdef uint64_t id = 0
    cdef uint32_t status = 0
    cdef list before = NO_HEADERS
    block.n = 0
    open_span(&r, outer, message)
    while next_field(&r, &field, b"102", 3):
        if field.number == 3:
            before = add_header(&block, before, &r, &field)
        elif field.number == 1:
            id = field.value
        elif field.number == 2:
            status = <uint32_t>field.value
    return id, status, end_headers(&block, before, &r)


cdef tuple read_chunk(const Reader *outer, const Span *message):
    cdef Reader r
    cdef Field field
    cdef Span data
    cdef uint64_t id = 0
    open_span(&r, outer, message)
    data.p = r.p
    data.n = 0
    while next_field(&r, &field, b"12", 2):
        if field.number == 2:
            data = field.span
        elif field.number == 1:
            id = field.value
    return id, bytes_of(&data)


cdef tuple read_end(const Reader *outer, const Span *message):
    cdef Reader r
    cdef Field field
    cdef uint64_t id = 0
    cdef uint32_t prompt = 0, cached = 0, completion = 0
    cdef bint retryable = 0
    cdef double queued_s = 0
    cdef str error = "", text = ""
    open_span(&r, outer, message)
    while next_field(&r, &field, b"10002205", 8):
        if field.number == 1:
            id = field.value
        elif field.number == 2:
            prompt = <uint32_t>field.value
        elif field.number == 3:
            cached = <uint32_t>field.value
        elif field.number == 4:
            completion = <uint32_t>field.value
        elif field.number == 5:
            error = text_of(&r, &field.span)
        elif field.number == 6:
            text = text_of(&r, &field.span)
        elif field.number == 7:
            retryable = field.value != 0
        elif field.number == 8:
            queued_s = field.small
    return id, prompt, cached, completion, error, text, retryable, queued_s


cdef int read_load(const Reader *outer, const Span *message, uint64_t *fields) except -1:
    """Read a Load over what `fields` holds."""
    cdef Reader r
    cdef Field field
    open_span(&r, outer, message)
    while next_field(&r, &field, b"000001", LOAD_FIELDS):
        if field.number:
            fields[field.number - 1] = field.value
    return 0


cdef str measure_residency(const Reader *outer, const Span *message, Residency *out, str state):
    """Read a Residency over what `out` holds, but for its arrays, whose bytes are counted. Gives the state."""
    cdef Reader r
    cdef Field field
    open_span(&r, outer, message)
    while next_field(&r, &field, residency_types(), N_RESIDENCY_FIELDS):
        if ADDED <= field.number <= REMOVED:
            if field.wire_type != LENGTH:
                field.span.n = item_bytes(field.number)
            elif field.span.n % item_bytes(field.number):
                raise fault_of(&r, "number beyond the end")
            out.arrays[field.number - ADDED].n += field.span.n
        elif field.number == 1:
            out.sequence = field.value
        elif field.number == 2:
            out.cleared = field.value != 0
        elif field.number == 8:
            state = text_of(&r, &field.span)
        elif field.number == 9:
            out.is_partial = field.value != 0
    return state


cdef tuple read_residency(bytes data, Residency *sizes, str state):
    """Make the tuple of all Residency fields of a frame, which were measured: merged, as protobuf does."""
    cdef Reader r
    cdef Field field
    cdef bytes added = new_bytes(sizes.arrays[0].n)
    cdef bytes tokens = new_bytes(sizes.arrays[1].n)
    cdef bytes removed = new_bytes(sizes.arrays[2].n)
    sizes.to[0] = room(added)
    sizes.to[1] = room(tokens)
    sizes.to[2] = room(removed)
    open_all(&r, data)
    while next_field(&r, &field, b"222222", 6):
        if field.number == 6:
            copy_arrays(&field.span, sizes)
    return sizes.sequence, bool(sizes.cleared), added, tokens, removed, state, bool(sizes.is_partial)


cdef inline bytes add_message(bytes before, const Span *span):
    """Two serialized messages in a row are what the two of them, merged, would be."""
    return bytes_of(span) if before is None else before + bytes_of(span)


def decode_engine_frame(data: bytes) -> EngineFrame:
    """Read a serialized EngineFrame.

    Raises: WireError when it is none.
    """
    cdef EngineFrame frame = EngineFrame()
    cdef Reader r
    cdef Field field
    cdef bint has_load = 0
    cdef bint has_residency = 0
    cdef uint64_t[LOAD_FIELDS] load
    cdef Residency residency
    cdef str state = ""
    load[:] = [0, 0, 0, 0, 0, 0]
    open_all(&r, data)
    while next_field(&r, &field, b"222222", 6):
        if field.number == 3:
            frame.chunks.append(read_chunk(&r, &field.span))
        elif field.number == 2:
            frame.starts.append(read_start(&r, &field.span))
        elif field.number == 4:
            frame.ends.append(read_end(&r, &field.span))
        elif field.number == 5:
            has_load = 1
            read_load(&r, &field.span, load)
        elif field.number == 1:
            frame.hello = add_message(frame.hello, &field.span)
        elif field.number == 6:
            if not has_residency:
                memset(&residency, 0, sizeof(Residency))
            has_residency = 1
            state = measure_residency(&r, &field.span, &residency, state)
    if has_residency:
        frame.residency = read_residency(data, &residency, state)
    if has_load:
        frame.load = (<uint32_t>load[0], <uint32_t>load[1], load[2], load[3], load[4], load[5])
    return frame


def decode_generate_event(data: bytes) -> EngineFrame:
    """Read a serialized GenerateEvent as a frame with that one start, chunk or end; an empty one is an empty frame.

    Raises: WireError when it is none.
    """
    cdef EngineFrame frame = EngineFrame()
    cdef Reader r
    cdef Field field
    cdef Span span
    cdef uint32_t kind = 0
    cdef bytes event = b""
    open_all(&r, data)
    while next_field(&r, &field, b"222", 3):
        if field.number == 0:
            continue
        # Of several the last one counts, the same message twice is merged; each has to be well-formed.
        if field.number == 1:
            read_start(&r, &field.span)
        elif field.number == 3:
            read_end(&r, &field.span)
        is_same = field.number == kind and kind != 2
        event = add_message(event if is_same else None, &field.span)
        kind = field.number
    open_all(&r, event)
    span.p = r.p
    span.n = <size_t>PyBytes_GET_SIZE(event)
    if kind == 1:
        frame.starts.append(read_start(&r, &span))
    elif kind == 2:
        frame.chunks.append((0, event))
    elif kind == 3:
        frame.ends.append(read_end(&r, &span))
    return frame


# ---- gateway to engine ------------------------------------------------------------------------------------------------


@cython.final
@cython.auto_pickle(False)
@cython.freelist(8)
cdef class GatewayFrame:
    """What a gateway said at once. Repeated fields are in the order of the wire.

    hello    (gateway, version, wants_residency), None when absent
    submits  (id, method, path, headers, body, priority, timeout_ms, trace, request_id)
    cancels  ids
    resync   whether it asks for the residency from its start
    """

    cdef readonly tuple hello
    cdef readonly list submits
    cdef readonly list cancels
    cdef readonly bint resync

    def __cinit__(self):
        self.submits = []
        self.cancels = []


cdef tuple read_submit(const Reader *outer, const Span *message):
    cdef Reader r
    cdef Field field
    cdef Span body
    cdef Span block  # of headers that follow each other; n is 0 before the first one
    cdef uint64_t id = 0
    cdef int32_t priority = 0
    cdef uint32_t timeout_ms = 0
    cdef str method = "", path = "", trace = "", request_id = ""
    cdef list before = NO_HEADERS
    open_span(&r, outer, message)
    block.n = body.n = 0
    body.p = r.p
    while next_field(&r, &field, b"12222?0022", 10):
        if field.number == 1:
            id = field.value
        elif field.number == 2:
            method = text_of(&r, &field.span)
        elif field.number == 3:
            path = text_of(&r, &field.span)
        elif field.number == 4:
            before = add_header(&block, before, &r, &field)
        elif field.number == 5:
            body = field.span
        elif field.number == 7:
            priority = <int32_t><uint32_t>field.value
        elif field.number == 8:
            timeout_ms = <uint32_t>field.value
        elif field.number == 9:
            trace = text_of(&r, &field.span)
        elif field.number == 10:
            request_id = text_of(&r, &field.span)
    return (
        id, method, path, end_headers(&block, before, &r), bytes_of(&body), priority, timeout_ms, trace, request_id,
    )  # fmt: skip


cdef tuple read_hello(const Reader *outer, const Span *message, tuple before):
    """Read a GatewayHello, merged over an earlier one."""
    cdef Reader r
    cdef Field field
    cdef uint32_t version = 0
    cdef bint wants_residency = 0
    cdef str gateway = ""
    if before is not None:
        gateway, version, wants_residency = before
    open_span(&r, outer, message)
    while next_field(&r, &field, b"200", 3):
        if field.number == 1:
            gateway = text_of(&r, &field.span)
        elif field.number == 2:
            version = <uint32_t>field.value
        elif field.number == 3:
            wants_residency = field.value != 0
    return gateway, version, wants_residency


cdef int read_cancels(const Reader *outer, const Span *packed, list cancels) except -1:
    cdef Reader r
    cdef uint64_t id
    open_span(&r, outer, packed)
    while r.p < r.end:
        if not read_fixed64(&r, &id):
            raise fault_of(&r)
        cancels.append(id)
    return 0


def decode_gateway_frame(data: bytes) -> GatewayFrame:
    """Read a serialized GatewayFrame.

    Raises: WireError when it is none.
    """
    cdef GatewayFrame frame = GatewayFrame()
    cdef Reader r
    cdef Field field
    open_all(&r, data)
    while next_field(&r, &field, b"22*0", 4):
        if field.number == 2:
            frame.submits.append(read_submit(&r, &field.span))
        elif field.number == 3 and field.wire_type == LENGTH:
            read_cancels(&r, &field.span, frame.cancels)
        elif field.number == 3:
            frame.cancels.append(field.value)
        elif field.number == 1:
            frame.hello = read_hello(&r, &field.span, frame.hello)
        elif field.number == 4:
            frame.resync = field.value != 0
    return frame


def decode_submit(data: bytes) -> tuple[int, str, str, list[tuple[bytes, bytes]], bytes, int, int, str, str]:
    """Read a serialized Submit, in the shape of `GatewayFrame.submits`.

    Raises: WireError when it is none.
    """
    cdef Reader r
    cdef Span whole
    open_all(&r, data)
    whole.p = r.p
    whole.n = <size_t>PyBytes_GET_SIZE(data)
    return read_submit(&r, &whole)


# ---- writing ----------------------------------------------------------------------------------------------------------


cdef inline bytes new_bytes(size_t n):
    return PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)


cdef inline uint8_t *room(bytes data) noexcept:
    """Where to write into bytes that nobody has seen yet."""
    return <uint8_t *>PyBytes_AS_STRING(data)


cdef int span_of_text(str text, Span *out) except -1:
    cdef Py_ssize_t n
    out.p = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &n)
    out.n = <size_t>n
    return 0


cdef inline void span_of_bytes(bytes data, Span *out) noexcept:
    out.p = <const uint8_t *>PyBytes_AS_STRING(data)
    out.n = <size_t>PyBytes_GET_SIZE(data)


cdef bytes header_block(list headers, uint8_t field, bytes before):
    """`before`, then each header as a Header in that field."""
    cdef size_t n = <size_t>PyBytes_GET_SIZE(before)
    cdef bytes name, value
    for name, value in headers:
        if name is None or value is None:
            raise TypeError("a header's name and value are bytes, not None")
        n += message_size(bytes_size(len(name)) + bytes_size(len(value)))
    cdef bytes out = new_bytes(n)
    cdef uint8_t *p = put_raw(room(out), PyBytes_AS_STRING(before), <size_t>PyBytes_GET_SIZE(before))
    for name, value in headers:
        p = put_length(p, field, bytes_size(len(name)) + bytes_size(len(value)))
        p = put_bytes(p, 1, PyBytes_AS_STRING(name), len(name))
        p = put_bytes(p, 2, PyBytes_AS_STRING(value), len(value))
    assert p == room(out) + n
    return out


def encode_headers(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Make a block of headers for `EngineFrameWriter.start`, to be used any number of times."""
    return header_block(headers, START_HEADERS, b"")


def encode_head(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Make the part of a Submit that says where to, to be used any number of times.

    Raises: ValueError for a lone surrogate.
    """
    cdef Span verb, where
    span_of_text(method, &verb)
    span_of_text(path, &where)
    cdef bytes line = new_bytes(bytes_size(verb.n) + bytes_size(where.n))
    put_bytes(put_bytes(room(line), 2, verb.p, verb.n), 3, where.p, where.n)
    return header_block(headers, SUBMIT_HEADERS, line)


cdef struct Submit:
    uint64_t id
    size_t n_bytes  # of the message
    Span head
    Span body
    Span trace
    Span request_id
    uint64_t priority  # as its varint: sign-extended
    uint32_t timeout_ms
    PyObject *owners[4]  # of the spans


cdef int fill_submit(
    Submit *s, uint64_t id, bytes head, bytes body, int32_t priority, uint32_t timeout_ms, str trace, str request_id,
) except -1:
    """Describe a Submit. The references in it are borrowed."""
    s.id = id
    span_of_bytes(head, &s.head)
    span_of_bytes(body, &s.body)
    span_of_text(trace, &s.trace)
    span_of_text(request_id, &s.request_id)
    s.priority = <uint64_t>priority
    s.timeout_ms = timeout_ms
    s.n_bytes = (
        (9 if id else 0) + s.head.n + bytes_size(s.body.n) + number_size(s.priority) + number_size(timeout_ms)
        + bytes_size(s.trace.n) + bytes_size(s.request_id.n)
    )  # fmt: skip
    s.owners[0] = <PyObject *>head
    s.owners[1] = <PyObject *>body
    s.owners[2] = <PyObject *>trace
    s.owners[3] = <PyObject *>request_id
    return 0


cdef uint8_t *put_submit(uint8_t *p, const Submit *s) noexcept nogil:
    p = put_fixed64(p, 1, s.id)
    p = put_raw(p, s.head.p, s.head.n)
    p = put_bytes(p, 5, s.body.p, s.body.n)
    p = put_number(p, 7, s.priority)
    p = put_number(p, 8, s.timeout_ms)
    p = put_bytes(p, 9, s.trace.p, s.trace.n)
    return put_bytes(p, 10, s.request_id.p, s.request_id.n)


def encode_submit(
    uint64_t id, bytes head not None, bytes body not None, int32_t priority, uint32_t timeout_ms, str trace not None,
    str request_id not None,
) -> bytes:
    """Make one Submit. `head`: of `encode_head`; `timeout_ms`: 0 for none.

    Raises: ValueError for a lone surrogate, OverflowError for a number that its field cannot hold.
    """
    cdef Submit s
    fill_submit(&s, id, head, body, priority, timeout_ms, trace, request_id)
    cdef bytes out = new_bytes(s.n_bytes)
    cdef uint8_t *end = put_submit(room(out), &s)
    assert end == room(out) + s.n_bytes
    return out


@cython.final
@cython.auto_pickle(False)
cdef class GatewayFrameWriter:
    """What waits to be sent to an engine. submit and cancel are O(1), cancel of what still waits O(waiting)."""

    cdef bytes greeting
    cdef Submit *submits
    cdef size_t n_submits
    cdef size_t submit_capacity
    cdef uint64_t *cancels
    cdef size_t n_cancels
    cdef size_t cancel_capacity
    cdef bint wants_resync

    def __dealloc__(self):
        self.release(self.n_submits)
        free(self.submits)
        free(self.cancels)

    cdef void release(self, size_t n) noexcept:
        """Let the first n submits go."""
        cdef size_t i, k
        for i in range(n):
            for k in range(4):
                Py_DECREF(<object>self.submits[i].owners[k])
        self.n_submits -= n
        if self.n_submits:
            memmove(self.submits, &self.submits[n], self.n_submits * sizeof(Submit))

    def hello(self, str gateway not None, uint32_t version, bint wants_residency) -> None:
        """Introduce the gateway; a second one before `take` replaces the first."""
        cdef Span name
        span_of_text(gateway, &name)
        cdef bytes message = new_bytes(bytes_size(name.n) + number_size(version) + number_size(wants_residency))
        put_number(put_number(put_bytes(room(message), 1, name.p, name.n), 2, version), 3, wants_residency)
        self.greeting = message

    def submit(
        self, uint64_t id, bytes head not None, bytes body not None, int32_t priority, uint32_t timeout_ms,
        str trace not None, str request_id not None,
    ) -> None:
        """Queue a request; what is given is kept, not copied. See `encode_submit`.

        Raises: ValueError, OverflowError, MemoryError; then nothing was queued.
        """
        cdef Submit s
        cdef size_t k
        fill_submit(&s, id, head, body, priority, timeout_ms, trace, request_id)
        if self.n_submits == self.submit_capacity:
            grow(<void **>&self.submits, &self.submit_capacity, sizeof(Submit))
        for k in range(4):
            Py_INCREF(<object>s.owners[k])
        self.submits[self.n_submits] = s
        self.n_submits += 1

    def cancel(self, uint64_t id) -> None:
        """Queue a cancel. A request that still waits is dropped instead, and the engine never hears of it.

        Raises: MemoryError; then nothing has changed.
        """
        cdef size_t i, k
        for i in range(self.n_submits):
            if self.submits[i].id == id:
                for k in range(4):
                    Py_DECREF(<object>self.submits[i].owners[k])
                self.n_submits -= 1
                memmove(&self.submits[i], &self.submits[i + 1], (self.n_submits - i) * sizeof(Submit))
                return
        if self.n_cancels == self.cancel_capacity:
            grow(<void **>&self.cancels, &self.cancel_capacity, sizeof(uint64_t))
        self.cancels[self.n_cancels] = id
        self.n_cancels += 1

    def resync(self) -> None:
        """Ask for the residency from its start; once a frame."""
        self.wants_resync = 1

    def __len__(self) -> int:
        return <Py_ssize_t>(self.n_submits + self.n_cancels + self.wants_resync + (self.greeting is not None))

    def take(self, uint64_t max_bytes) -> bytes:
        """Take a frame: all cancels, and as many submits as fit `max_bytes` of bodies, but one at least.

        Gives b"" when nothing waits. Raises: MemoryError; then everything still waits.
        """
        cdef size_t i, n = 0, size = 0
        cdef uint64_t n_bodies = 0
        cdef Span hello
        hello.p = NULL
        hello.n = 0
        while n < self.n_submits:
            n_bodies += self.submits[n].body.n
            if n and n_bodies > max_bytes:
                break
            size += message_size(self.submits[n].n_bytes)
            n += 1
        size += bytes_size(self.n_cancels * 8) + number_size(self.wants_resync)
        if self.greeting is not None:
            span_of_bytes(self.greeting, &hello)
            size += message_size(hello.n)
        cdef bytes out = new_bytes(size)
        cdef uint8_t *p = room(out)
        if self.greeting is not None:
            p = put_raw(put_length(p, 1, hello.n), hello.p, hello.n)
        for i in range(n):
            p = put_submit(put_length(p, 2, self.submits[i].n_bytes), &self.submits[i])
        p = put_number(put_bytes(p, 3, self.cancels, self.n_cancels * 8), 4, self.wants_resync)
        assert p == room(out) + size
        self.wants_resync = 0
        self.greeting = None
        self.n_cancels = 0
        self.release(n)
        return out

    def clear(self) -> None:
        """Forget what waits."""
        self.wants_resync = 0
        self.greeting = None
        self.n_cancels = 0
        self.release(self.n_submits)


cdef struct Scratch:
    # Messages already encoded.
    uint8_t *p
    size_t n_bytes
    size_t capacity


cdef struct Chunk:
    uint64_t id
    Span data
    PyObject *owner


@cython.final
@cython.auto_pickle(False)
cdef class EngineFrameWriter:
    """What waits to be sent to a gateway. Everything is O(1) but `take`."""

    cdef bytes info
    cdef bytes residency_message
    cdef Scratch starts
    cdef Scratch ends
    cdef Chunk *chunks
    cdef size_t n_chunks
    cdef size_t chunk_capacity
    cdef size_t n_chunk_bytes  # in the frame
    cdef size_t n_items
    cdef bint has_load
    cdef uint64_t[LOAD_FIELDS] report

    def __dealloc__(self):
        self.release()
        free(self.starts.p)
        free(self.ends.p)
        free(self.chunks)

    cdef void release(self) noexcept:
        cdef size_t i
        for i in range(self.n_chunks):
            Py_DECREF(<object>self.chunks[i].owner)
        self.n_chunks = self.n_chunk_bytes = self.n_items = 0
        self.starts.n_bytes = self.ends.n_bytes = 0
        self.has_load = 0
        self.info = self.residency_message = None

    def hello(self, bytes info not None) -> None:
        """Say what the engine is by its serialized EngineInfo, at first and whenever it has changed.

        A second one before `take` replaces the first.
        """
        self.n_items += self.info is None
        self.info = info

    def start(self, uint64_t id, uint32_t status, bytes headers_block not None) -> None:
        """Queue the start of an answer. `headers_block`: of `encode_headers`. Raises: MemoryError."""
        cdef Span block
        span_of_bytes(headers_block, &block)
        cdef size_t n = (9 if id else 0) + number_size(status) + block.n
        cdef uint8_t *p = put_length(reserve(&self.starts, message_size(n)), 2, n)
        put_raw(put_number(put_fixed64(p, 1, id), 2, status), block.p, block.n)
        self.starts.n_bytes += message_size(n)
        self.n_items += 1

    def chunk(self, uint64_t id, bytes data not None) -> None:
        """Queue a piece of an answer's body, which is kept and not copied. Raises: MemoryError."""
        if self.n_chunks == self.chunk_capacity:
            grow(<void **>&self.chunks, &self.chunk_capacity, sizeof(Chunk))
        cdef Chunk *chunk = &self.chunks[self.n_chunks]
        chunk.id = id
        span_of_bytes(data, &chunk.data)
        chunk.owner = <PyObject *>data
        Py_INCREF(data)
        self.n_chunks += 1
        self.n_chunk_bytes += message_size((9 if id else 0) + bytes_size(chunk.data.n))
        self.n_items += 1

    def end(
        self, uint64_t id, uint32_t prompt, uint32_t cached, uint32_t completion, str error not None,
        str message not None, bint retryable, float queued_s,
    ) -> None:
        """Queue the end of an answer; the counts are tokens.

        Raises: ValueError for a lone surrogate, OverflowError for a number that its field cannot hold, MemoryError.
        """
        cdef Span code, text
        span_of_text(error, &code)
        span_of_text(message, &text)
        cdef uint8_t[5] queued
        cdef size_t n_queued = put_float(queued, 8, queued_s) - queued
        cdef size_t n = (
            (9 if id else 0) + number_size(prompt) + number_size(cached) + number_size(completion) + bytes_size(code.n)
            + bytes_size(text.n) + number_size(retryable) + n_queued
        )  # fmt: skip
        cdef uint8_t *p = put_length(reserve(&self.ends, message_size(n)), 4, n)
        p = put_number(put_number(put_number(put_fixed64(p, 1, id), 2, prompt), 3, cached), 4, completion)
        p = put_number(put_bytes(put_bytes(p, 5, code.p, code.n), 6, text.p, text.n), 7, retryable)
        put_raw(p, queued, n_queued)
        self.ends.n_bytes += message_size(n)
        self.n_items += 1

    def load(
        self, uint32_t running, uint32_t waiting, uint64_t queued_prefill_tokens, uint64_t kv_blocks_used,
        uint64_t kv_blocks_total, uint64_t last_submit,
    ) -> None:
        """Put the load into the frame; a second one before `take` replaces the first."""
        self.n_items += not self.has_load
        self.has_load = 1
        self.report[0] = running
        self.report[1] = waiting
        self.report[2] = queued_prefill_tokens
        self.report[3] = kv_blocks_used
        self.report[4] = kv_blocks_total
        self.report[5] = last_submit

    def residency(
        self, uint64_t sequence, bint cleared, bytes added not None, bytes tokens not None, bytes removed not None,
        str state not None, bint is_partial,
    ) -> None:
        """Put a Residency into the frame. `added`, `removed`: uint64 each; `tokens`: uint32, as many as `added`.

        Raises: ValueError for a second one before `take` (merged, they would be another one), for arrays that do not fit
        each other, for a lone surrogate.
        """
        cdef Residency residency
        if self.residency_message is not None:
            raise ValueError("a frame carries one Residency")
        if len(added) % 8 or len(tokens) * 2 != len(added) or len(removed) % 8:
            raise ValueError(f"{len(added)} bytes added with {len(tokens)} of tokens, {len(removed)} removed")
        residency.sequence = sequence
        residency.cleared = cleared
        residency.is_partial = is_partial
        span_of_bytes(added, &residency.arrays[0])
        span_of_bytes(tokens, &residency.arrays[1])
        span_of_bytes(removed, &residency.arrays[2])
        span_of_text(state, &residency.state)
        cdef bytes message = new_bytes(residency_size(&residency))
        put_residency(room(message), &residency)
        self.residency_message = message
        self.n_items += 1

    cdef size_t load_size(self) noexcept:
        cdef size_t n = 9 if self.report[LOAD_FIELDS - 1] else 0
        cdef int i
        for i in range(LOAD_FIELDS - 1):
            n += number_size(self.report[i])
        return n

    @property
    def n_bytes(self) -> int:
        """How long the frame is that `take` would give."""
        cdef size_t n = self.starts.n_bytes + self.n_chunk_bytes + self.ends.n_bytes
        if self.info is not None:
            n += message_size(<size_t>PyBytes_GET_SIZE(self.info))
        if self.has_load:
            n += message_size(self.load_size())
        if self.residency_message is not None:
            n += message_size(<size_t>PyBytes_GET_SIZE(self.residency_message))
        return n

    def __len__(self) -> int:
        return <Py_ssize_t>self.n_items

    def take(self) -> bytes:
        """Take everything as one frame, b"" when nothing waits. Raises: MemoryError; then everything still waits."""
        cdef size_t i, n, size = self.n_bytes
        cdef uint8_t field
        cdef bytes out = new_bytes(size)
        cdef uint8_t *p = room(out)
        cdef Span message
        if self.info is not None:
            span_of_bytes(self.info, &message)
            p = put_raw(put_length(p, 1, message.n), message.p, message.n)
        if self.starts.n_bytes:
            p = put_raw(p, self.starts.p, self.starts.n_bytes)
        for i in range(self.n_chunks):
            n = (9 if self.chunks[i].id else 0) + bytes_size(self.chunks[i].data.n)
            p = put_fixed64(put_length(p, 3, n), 1, self.chunks[i].id)
            p = put_bytes(p, 2, self.chunks[i].data.p, self.chunks[i].data.n)
        if self.ends.n_bytes:
            p = put_raw(p, self.ends.p, self.ends.n_bytes)
        if self.has_load:
            p = put_length(p, 5, self.load_size())
            for field in range(1, LOAD_FIELDS):
                p = put_number(p, field, self.report[field - 1])
            p = put_fixed64(p, LOAD_FIELDS, self.report[LOAD_FIELDS - 1])
        if self.residency_message is not None:
            span_of_bytes(self.residency_message, &message)
            p = put_raw(put_length(p, 6, message.n), message.p, message.n)
        assert p == room(out) + size
        self.release()
        return out


cdef int grow(void **items, size_t *capacity, size_t item_bytes) except -1:
    """Make room for one more item at least."""
    cdef size_t wanted = capacity[0] * 2 if capacity[0] else 16
    cdef void *grown = xinf_realloc(items[0], wanted * item_bytes)
    if grown == NULL:
        raise MemoryError("out of memory for a frame")
    items[0] = grown
    capacity[0] = wanted
    return 0


cdef uint8_t *reserve(Scratch *scratch, size_t n) except NULL:
    """Room for n more bytes."""
    cdef size_t wanted = scratch.capacity if scratch.capacity else 256
    cdef void *grown
    while wanted < scratch.n_bytes + n:
        wanted *= 2
    if wanted != scratch.capacity:
        grown = xinf_realloc(scratch.p, wanted)
        if grown == NULL:
            raise MemoryError("out of memory for a frame")
        scratch.p = <uint8_t *>grown
        scratch.capacity = wanted
    return scratch.p + scratch.n_bytes


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

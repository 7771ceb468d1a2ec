# cython: autotestdict=False
"""The messages of a Link as read, without protobuf's objects: protos/engine_service.proto is what this mirrors.

    GatewayFrameWriter ──take()──▶ GatewayFrame bytes ──decode_gateway_frame──▶ GatewayFrame      (gateway to engine)
    EngineFrame ◀──decode_engine_frame── EngineFrame bytes ◀──take()── EngineFrameWriter          (engine to gateway)

A decoder copies bodies and chunks out once. Blocks of headers repeat: a block that was seen lately is recognised by its
bytes, and its list is shared (never change one). The writers are framewriter.pyx's.

Accepted: every frame that protobuf writes; unknown fields are skipped, of duplicates the last wins, a message that comes
twice is merged, repeated fields stand in any order. Stricter than protobuf: a known field of a wrong wire type, a group
and a varint of more than 64 bits are errors. EngineInfo and Following stay bytes, unread; the arrays of a Residency are bytes as well,
each copied out once, to be read where they are needed.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.protowire cimport (
    LENGTH, Field, Reader, Span, new_bytes, read_field, read_fixed64, read_span, read_tag, room,
)
from xinf._fast.residencywire cimport (
    ADDED, N_RESIDENCY_FIELDS, REMOVED, Residency, copy_arrays, item_bytes, residency_types,
)

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *p, Py_ssize_t n, const char *errors)

cdef enum:
    CACHED_BLOCKS = 64  # of headers; replicas answer with a handful of different ones
    CACHED_BLOCK_BYTES = 2048


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
    following  serialized Following, None when absent
    """

    cdef readonly bytes hello
    cdef readonly list starts
    cdef readonly list chunks
    cdef readonly list ends
    cdef readonly tuple load
    cdef readonly tuple residency
    cdef readonly bytes following

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
    while next_field(&r, &field, b"2222222", 7):
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
        elif field.number == 7:
            frame.following = add_message(frame.following, &field.span)
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

# cython: autotestdict=False
"""The messages of a Link as written, without protobuf's objects: protos/engine_service.proto is what this mirrors.

A writer keeps references to bodies and chunks and copies each once, into the frame. Fields are in order and without
defaults, so the bytes are those of protobuf's SerializeToString. The readers are frame.pyx's.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memmove

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.frame cimport LOAD_FIELDS
from xinf._fast.protowire cimport (
    Span, bytes_size, message_size, new_bytes, number_size, put_bytes, put_fixed64, put_float, put_length, put_number,
    put_raw, room,
)
from xinf._fast.residencywire cimport Residency, put_residency, residency_size

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *n) except NULL

cdef enum:
    # Field numbers of Submit and Start that their header blocks carry.
    SUBMIT_HEADERS = 4
    START_HEADERS = 3


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
    cdef bytes following_message
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
        self.info = self.residency_message = self.following_message = None

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

    def following(self, bytes message not None) -> None:
        """Put a serialized Following into the frame; a second one before `take` replaces the first."""
        self.n_items += self.following_message is None
        self.following_message = message

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
        if self.following_message is not None:
            n += message_size(<size_t>PyBytes_GET_SIZE(self.following_message))
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
        if self.following_message is not None:
            span_of_bytes(self.following_message, &message)
            p = put_raw(put_length(p, 7, message.n), message.p, message.n)
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

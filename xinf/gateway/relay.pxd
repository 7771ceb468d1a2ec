# Types of relay.py; see ADR 0017.


cdef class Verdict:
    cdef public object outcome, error, ending
    cdef public bint may_retry


cdef class Relay:
    cdef public int status
    cdef public object first_byte_s, dialect, deadline_s, owner
    cdef public list extra_headers
    cdef public bint is_gone
    cdef public double blocked_since_s
    cdef object _client, _link, _submit_id, _ending, _error
    cdef list _engine_headers, _outbox
    cdef bytes _tail
    cdef int _engine_status
    cdef Py_ssize_t _buffer_bytes, _outbox_bytes
    cdef bint _is_expecting, _is_stream, _is_last_sent, _is_blocked, _is_watching, _is_over

    cpdef expect(self)
    cpdef bind(self, link, submit_id)
    cpdef on_start(self, int status, list headers)
    cpdef on_chunk(self, bytes data)
    cpdef on_end(self, ending)
    cpdef flush(self)
    cpdef close(self)
    cdef _pump(self)
    cdef _send_whole(self)
    cdef bytes _take(self)
    cdef _begin(self)
    cdef list _answer_headers(self)
    cdef _block(self)
    cdef _end(self, outcome, error=*, bint may_retry=*)
    cdef _cancel(self)

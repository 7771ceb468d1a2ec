# Types of direct.py; see ADR 0017.

from xinf.gateway.client cimport Admission, Head


cdef class Connection:
    cdef readonly object _transport, _rest
    cdef object _server, _shape, _partial, _peer, _parts, _chunks, _exchange, _start
    cdef int _state
    cdef double _since_s
    cdef Py_ssize_t _rest_at, _next_check, _missing
    cdef Head _head
    cdef Admission _admission
    cdef bint _has_body, _is_last, _is_refused, _is_owing, _is_reading_paused, _is_writing_paused

    cdef _read(self, bytes data, Py_ssize_t at)
    cdef _begin(self, Head head, bytes data, Py_ssize_t at, length)
    cdef _keep(self, bytes data, Py_ssize_t at)
    cdef _read_body(self, bytes data, Py_ssize_t at)
    cdef _serve(self, Admission admission, bytes body)
    cdef _end_request(self)
    cpdef answer(self, int status, list headers, bytes body)
    cpdef start(self, int status, list headers)
    cpdef write(self, bytes data)
    cpdef finish(self, bytes data)
    cdef _owe(self)
    cdef _tell_gone(self)

# Types of client.py; see ADR 0017.

from xinf.link.h2stream cimport H2Stream


cdef class ClientStream(H2Stream):
    cdef public object _timer
    cdef public str _path, _authority
    cdef public bint _has_heard
    cdef public double _gate_opens_s

    cpdef wake(self)
    cpdef _schedule(self)
    cpdef _take(self)
    cpdef on_data(self, bytes data, Py_ssize_t at, Py_ssize_t end)

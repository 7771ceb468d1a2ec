# Types of server.py; see ADR 0017.

from xinf.link.h2stream cimport H2Stream


cdef class ServerStream(H2Stream):
    cdef public object _make_listener, _on_gone, _timer
    cdef public tuple _ending
    cdef public Py_ssize_t _table_bytes
    cdef public int _n_refused
    cdef public bint _has_ended

    cpdef wake(self)
    cpdef _schedule(self)
    cpdef _may_take(self)
    cpdef _wait_a_turn(self)
    cpdef _take(self)
    cpdef _go_on(self)

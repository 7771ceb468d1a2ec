# Types of h2frames.py; see ADR 0017.


cdef class FrameReader:
    cdef object _handler
    cdef bytes _rest
    cdef Py_ssize_t _n_left
    cdef bint _is_last, _is_stopped

    cpdef feed(self, bytes data)
    cdef _begin_data(self, stream_id, Py_ssize_t length, int flags)

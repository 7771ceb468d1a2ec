# Types of asgi.py; see ADR 0017.


cdef class Pending:
    cdef object _iterator, _on_done, _future

    cpdef _wait_for(self, future)  # `begin` knows only its own class
    cpdef _step(self, _)

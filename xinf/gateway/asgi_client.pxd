# Types of asgi_client.py; see ADR 0017.


cdef class AsgiClient:
    cdef public object exchange
    cdef object _send, _receive, _blocked, _watch, _over
    cdef list _waiting
    cdef bint _is_sent, _is_over, _is_body_over

    cpdef answer(self, int status, list headers, bytes body)
    cpdef write(self, bytes data)
    cpdef finish(self, bytes data)
    cdef _put(self, message)
    cdef _end(self)

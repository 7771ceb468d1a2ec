# Types of link.py; see ADR 0017.


cdef class Link:
    cdef readonly str replica, address
    cdef public object info
    cdef readonly bint is_up
    cdef readonly object _stream
    cdef readonly double _last_frame_s
    cdef str _gateway
    cdef object _listener, _frames, _over, _task, _open_call, _last_id
    cdef dict _sinks, _calls
    cdef bint _was_up, _is_closed

    cpdef submit(self, submission, sink)
    cpdef cancel(self, submit_id)
    cpdef bytes take(self)
    cpdef is_worthwhile(self)
    cpdef on_message(self, bytes data)
    cdef _wake(self)
    cdef _deliver(self, frame)
    cdef _give_up(self, submit_id, sink, error)

# Types of link.py; see ADR 0017.


cdef class Link:
    cdef readonly str replica, address
    cdef public object info, following
    cdef readonly bint is_up
    cdef readonly object _stream
    cdef readonly double _last_frame_s
    cdef readonly int n_resyncs
    cdef str _gateway
    cdef object _listener, _frames, _over, _task, _open_call, _last_id
    cdef dict _sinks, _calls
    cdef bint _was_up, _is_closed, _wants_residency, _is_resync_due
    cdef double _resynced_s
    cdef int _base
    cdef object _next_sequence

    cpdef submit(self, submission, sink)
    cpdef cancel(self, submit_id)
    cpdef bytes take(self)
    cpdef is_worthwhile(self)
    cpdef on_message(self, bytes data)
    cdef _wake(self)
    cdef _deliver(self, frame)
    cdef _hear_residency(self, tuple message)
    cdef _give_up(self, submit_id, sink, error)

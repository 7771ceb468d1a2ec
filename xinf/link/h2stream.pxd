# Types of h2stream.py; see ADR 0017. Methods that an end overrides, and those that run with every message, are cpdef.

from xinf.link.h2frames cimport FrameReader


cdef class H2Stream:
    cdef public object _listener, _loop, _transport, _turn, _unsent, _decoder
    cdef public FrameReader _reader
    cdef public list _header_block
    cdef public bytearray _begun
    cdef public str _goaway
    cdef public Py_ssize_t _max_message_bytes, _stream_window, _connection_window, _initial_window, _max_frame_bytes
    cdef public Py_ssize_t _n_replies, _n_idle, _unrenewed, _wanted_bytes
    cdef public long _header_stream, _last_refused
    cdef public bint _is_over, _is_deaf, _is_woken, _is_paused, _is_last_block, _has_headers, _is_discarding

    cpdef _schedule(self)
    cpdef _send(self, bytes message)
    cpdef _send_more(self)
    cpdef _go_on(self)
    cpdef on_data_begin(self, long stream_id, Py_ssize_t n_bytes)
    cpdef on_data(self, bytes data, Py_ssize_t at, Py_ssize_t end)
    cpdef _continue(self, bytes data, Py_ssize_t at, Py_ssize_t end)
    cpdef _message_bytes(self, data, Py_ssize_t at)
    cpdef _count_idle(self)

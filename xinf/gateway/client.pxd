# Types of client.py; see ADR 0017.


cdef class Head:
    cdef public str method, path
    cdef public bytes query
    cdef public dict headers
    cdef public object peer


cdef class Admission:
    cdef public Head head
    cdef public object route, key, length, deadline_s
    cdef public Py_ssize_t max_body_bytes
    cdef public double begun_s
    cdef public str request_id
    cdef public list extra_headers

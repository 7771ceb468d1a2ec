# Types of intake.py; see ADR 0017.

from xinf.gateway.client cimport Head


cdef class Intake:
    cdef object _config, _table, _metrics
    cdef dict _heads

    cdef _scan(self, bytes body)
    cdef _model_name(self, route, scanned, dict headers)
    cdef bytes _engine_head(self, route, Head head)
    cdef _deadline(self, dict headers, double now_s)

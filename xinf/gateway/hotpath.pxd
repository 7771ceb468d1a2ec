# Types of hotpath.py; see ADR 0017.

from xinf.gateway.decisions cimport Decisions
from xinf.gateway.job cimport Job
from xinf.gateway.relay cimport Verdict


cdef class HotPath:
    cdef object _config, _intake, _router, _table, _metrics, _access_log, _budget, _has_work
    cdef Decisions _decisions
    cdef dict _rooms
    cdef set _open
    cdef public list _young

    cpdef choose(self, Job job)
    cdef _dispatch(self, Job job)
    cdef _room(self, deployment)
    cdef _attempt(self, Job job, choice)
    cpdef decide(self, Job job, Verdict verdict)
    cdef _settle(self, Job job, Verdict verdict)
    cdef _finish(self, Job job, int status)
    cdef _count(self, Job job, int status)

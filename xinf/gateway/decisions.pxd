# Types of decisions.py; see ADR 0017.

cimport cython

from xinf.gateway.job cimport Job


# Not a matter for the collector: what an entry refers to refers to no entry.
@cython.final
@cython.no_gc
cdef class Entry:
    cdef public str request_id, asked
    cdef public object model, route, outcome, error, choice, earlier, candidates
    cdef public int status, n_candidates, prompt_tokens, cached_tokens, completion_tokens
    cdef public double begun_s, first_byte_s, ended_s
    cdef public bint has_first_byte, has_usage


cdef class Decisions:
    cdef public int size, worker
    cdef list _ring
    cdef int _next, _sample_every, _until_sample

    cpdef bint takes_sample(self)
    cpdef note_candidates(self, Job job, tuple views)
    cpdef keep(self, Job job, int status, double ended_s)


cdef Entry _fill(Entry entry, Job job, int status, double ended_s)
cdef _count(Entry entry, ending)

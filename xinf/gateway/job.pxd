# Types of job.py; see ADR 0017.

from xinf.gateway.client cimport Admission
from xinf.gateway.relay cimport Relay


cdef class Job:
    cdef public object path, model, scanned, counters, session, choice, verdict, timeout_ms
    cdef public object chosen, earlier, refusal, candidates
    cdef public Admission admission
    cdef public Relay relay
    cdef public bytes head, body
    cdef public str trace, request_id, replica, asked
    cdef public bint wants_decision, wants_candidates
    cdef public set excluded
    cdef public int n_retries, n_candidates

# What decide.pyx needs of a choice. See choice.pyx.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from xinf._fast.group cimport Group


@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Choice:
    cdef readonly str replica_id
    cdef readonly int64_t handle  # of the reservation
    cdef readonly str reason  # "prefix", "load", "round_robin", "session"
    cdef readonly double chosen_s
    cdef readonly str index_state  # what the prediction goes by: "exact", "approx", "off"
    cdef readonly uint32_t n_marks  # of the prompt
    cdef readonly uint32_t n_hits  # marks up to the furthest one that the replica holds, or is said to hold
    cdef readonly uint32_t matched_tokens  # up to there
    cdef readonly uint64_t matched_bytes
    cdef readonly uint64_t promised_tokens  # of the matched tokens, whole blocks
    cdef readonly uint64_t predicted_cached_tokens  # the same, times the replica's trust
    cdef readonly uint64_t prompt_tokens  # estimated
    cdef readonly uint64_t queued_tokens  # before it on the replica
    # What the replica cost when it was chosen: the terms of router/cost.py.
    cdef readonly double queued_s
    cdef readonly double prefill_s
    cdef readonly double decode_s
    cdef readonly double full_s
    cdef readonly bint can_learn  # the answer's usage says something about the prompt's text
    cdef readonly bint is_stream
    cdef readonly bint is_done
    cdef bint is_followed  # what the engine says was looked up
    cdef uint32_t told_tokens  # up to where it says that it holds the prompt
    cdef uint32_t n_seen  # marks that were asked for before
    cdef double cost_s  # NAN: not compared with least-load
    cdef double least_s  # what its choice would have cost
    cdef double begun_s  # NAN: not begun
    cdef uint32_t row
    cdef bint is_clear  # all that it waits for is prefill
    cdef uint64_t requests  # on the replica, this one included
    cdef uint64_t *hashes  # of the marks
    cdef uint32_t *ends  # bytes of text up to each of them; in the same block
    cdef Group group

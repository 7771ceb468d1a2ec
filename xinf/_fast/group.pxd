# What decide.pyx needs of a group. See group.pyx.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from xinf._fast.ledger cimport Ledger
from xinf._fast.losses cimport Losses
from xinf._fast.rates cimport Density, Peers

cdef enum:  # policies; see xinf/router/README.md
    BY_COST = 0
    BY_LOAD = 1
    BY_TURN = 2
    BY_SESSION = 3
    BY_PREFIX = 4


@cython.final
cdef class Group:
    cdef readonly str model
    cdef int policy
    cdef uint32_t *rows
    cdef uint32_t n
    cdef uint32_t capacity
    cdef uint32_t turn  # of round robin
    cdef uint32_t n_followed  # rows whose engines say what they hold
    cdef uint32_t block_tokens  # the largest
    cdef Density density
    cdef Peers peers
    cdef Losses losses
    cdef double lost_weight  # as the rows have it
    # What the policy gave over least-load, as far as the model of the cost knows.
    cdef uint32_t n_choices
    cdef uint64_t n_compared
    cdef double saved_s
    cdef double regret_s

    cdef int add(self, uint32_t row) except -1
    cdef void remove(self, uint32_t row) noexcept nogil
    cdef double prefill_rate(self, double prior) noexcept
    cdef double service(self, Ledger ledger, double prior) noexcept
    cdef void learn_loss(self, Ledger ledger, double own_tokens, double lost_tokens) noexcept nogil
    cdef void lend_rates(self, Ledger ledger) noexcept


cdef inline bint uses_prefixes(int policy) noexcept nogil:
    return policy == BY_COST or policy == BY_PREFIX

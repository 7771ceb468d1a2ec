# What decide.pyx needs of the fleet. See fleet.pyx.

cimport cython
from libc.stdint cimport uint8_t, uint32_t

from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.group cimport Group
from xinf._fast.ledger cimport Ledger
from xinf._fast.prefix cimport PrefixIndex
from xinf._fast.record cimport Record


cdef class Fleet:
    cdef readonly Ledger ledger
    cdef readonly PrefixIndex index  # of what was routed; None: off
    cdef readonly PrefixIndex exact  # of what engines say; None: off
    cdef object clock  # has monotonic_s(); None: the system's
    cdef double prior_bytes_per_token
    cdef double prior_prefill_tokens_per_s
    cdef double prior_service_s
    cdef uint32_t start  # where the rotation of ties begins
    cdef dict groups  # by model
    cdef dict row_of  # by replica id
    cdef list names  # by row; None: free
    cdef list group_of  # by row
    cdef list free_rows
    # By row, of one capacity.
    cdef uint32_t capacity
    cdef uint8_t *is_told  # of each row's standing, where a look-up reads it
    cdef Record *records

    cdef double now(self) except -1
    cdef object add(self, str replica_id, str model, policy, block_tokens, max_running)
    cdef int reserve_rows(self, uint32_t n) except -1
    cdef void review(self, uint32_t row, uint8_t cause)


cdef inline uint32_t capacity_for(uint32_t before) noexcept nogil:
    """Of the tables by row, when they grow."""
    return max(16, 2 * before)


cdef inline void *grown(void *table, size_t n_bytes) except NULL:
    cdef void *larger = xinf_realloc(table, n_bytes)
    if larger == NULL:
        raise MemoryError(f"out of memory for {n_bytes} bytes of a table of replicas")
    return larger

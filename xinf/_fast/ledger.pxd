# What decide.pyx needs of the ledger. See ledger.pyx for the picture and the invariants.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from xinf._fast.rates cimport Rates

cdef enum:
    NONE = 0xFFFFFFFF  # no replica; the end of a list of reservations

cdef struct Row:
    Rates rates
    double report_s  # when the last report came
    uint64_t queued_prefill_tokens
    uint64_t kv_blocks_used
    uint64_t kv_blocks_total
    uint64_t last_submit
    uint64_t inflight_tokens
    uint64_t inflight_blocks
    uint64_t uncounted_tokens
    uint64_t uncounted_blocks
    uint32_t requests  # running and waiting in the report
    uint32_t waiting  # of them
    uint32_t inflight
    uint32_t uncounted
    uint32_t max_running
    uint32_t shown  # slots that it has been seen to have; more do not count
    double lost_weight  # what a second of our own prefill costs later: losses.pxd
    uint32_t block_tokens
    uint32_t first  # its newest reservation
    uint8_t is_used
    uint8_t is_ready
    uint8_t has_report

cdef struct Lane:  # one cache line: all that a pick reads of a replica that holds nothing of the prompt
    double[2] base_s  # queued and decode terms, by a fresh report and by a stale one; INFINITY: not open
    uint64_t[2] room_tokens  # more uncached tokens than this meet the barrier of a full KV pool
    double fresh_until_s
    double[2] s_per_token  # of our own prefill, with what it costs others
    uint64_t identity  # for rendezvous hashing

cdef struct Reservation:
    uint64_t submit_id  # 0: not submitted yet
    uint64_t tokens
    uint64_t blocks
    uint32_t row
    uint32_t next
    uint32_t previous
    uint32_t generation  # even: free
    uint8_t is_counted

cdef struct Pick:
    uint32_t replica  # NONE: nobody is open
    uint32_t n_ties  # candidates that cost just as much, this one included
    double cost_s

cdef struct Excluded:
    const uint32_t *rows
    size_t n


@cython.final
cdef class Ledger:
    cdef Row *rows
    cdef Lane *lanes
    cdef uint32_t n_rows
    cdef Reservation *reservations
    cdef uint32_t n_reservations
    cdef uint32_t free_reservation
    cdef uint32_t turn
    cdef uint32_t total
    cdef readonly uint32_t max_inflight

    cdef Row *row(self, replica) except NULL
    cdef int grow_rows(self, uint32_t n_needed) except -1
    cdef int check_rates(self, double prefill_tokens_per_s, double service_s, double trust) except -1
    cdef uint32_t *banned(self, excluded, Excluded *out) except? NULL
    cdef void refresh(self, uint32_t replica) noexcept nogil
    cdef void terms_of(self, Row *row, uint64_t prompt, uint64_t cached, double now_s, double *out) noexcept nogil
    cdef double cost_of(self, uint32_t replica, uint64_t prompt, uint64_t cached, double now_s) noexcept nogil
    cdef Pick cheapest(
        self, const uint32_t *candidates, size_t n, const uint32_t *cached, size_t n_cached, uint64_t prompt, double now_s,
        const Excluded *excluded,
    ) noexcept nogil
    cdef uint32_t heaviest(
        self, const uint32_t *candidates, size_t n, uint64_t session, const Excluded *excluded,
    ) noexcept nogil
    cdef bint opens(self, uint32_t replica) noexcept nogil
    cdef uint64_t believed(self, uint32_t replica, uint64_t prompt, uint64_t cached) noexcept nogil
    cdef uint64_t queued(self, uint32_t replica, double now_s) noexcept nogil
    cdef bint is_clear(self, uint32_t replica, uint64_t own, double now_s) noexcept nogil
    cdef uint64_t requests_at(self, uint32_t replica, double now_s) noexcept nogil
    cdef void begin(self, int64_t handle) noexcept nogil
    cdef int64_t take(self, uint32_t replica, uint64_t prompt, uint64_t cached) noexcept nogil
    cdef bint grow_reservations(self) noexcept nogil
    cdef uint32_t find(self, int64_t handle) noexcept nogil
    cdef void submit(self, int64_t handle, uint64_t submit_id) noexcept nogil
    cdef bint give_back(self, int64_t handle) noexcept nogil
    cdef void let_go(self, uint32_t at) noexcept nogil
    cdef void count(self, Row *row, Reservation *reservation) noexcept nogil


cdef inline uint32_t slots_of(const Row *row) noexcept nogil:
    return row.max_running if row.max_running < row.shown else row.shown


cdef inline bint is_excluded(const Excluded *excluded, uint32_t replica) noexcept nogil:
    cdef size_t i
    for i in range(excluded.n):
        if excluded.rows[i] == replica:
            return 1
    return 0

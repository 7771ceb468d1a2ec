# What decide.pyx needs of the index. See prefix.pyx for the picture and the invariants.

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from xinf._fast.holders cimport Holders

cdef struct Entry:
    uint64_t hash
    uint32_t position
    uint32_t holders  # handle of a set and two bits; 0: free

ctypedef Entry *Home

cdef enum:
    MIN_INDEX_BYTES = 1 << 17

cdef struct Segment:
    uint16_t n  # entries
    uint16_t hand  # of the clock
    uint8_t depth  # leading bits of a hash that lead here
    uint32_t phase  # the young bit of entries that were inserted since the hand went through 0


cdef struct Search:  # one look-up
    const uint64_t *hashes
    const uint32_t *ends
    uint32_t window_bytes
    uint32_t *lengths
    uint32_t *hits
    size_t n_lengths
    Home *trail  # or NULL
    uint32_t best
    uint32_t furthest
    uint32_t n_found


@cython.final
cdef class PrefixIndex:
    cdef readonly size_t max_bytes
    cdef size_t fixed_bytes
    cdef Entry *entries
    cdef Segment *segments
    cdef uint32_t n_segments
    cdef uint32_t max_segments
    cdef uint32_t *directory
    cdef int depth  # of the directory: it has 1 << depth places
    cdef int max_depth
    cdef uint32_t sweep_hand
    cdef uint64_t n_nodes
    cdef uint64_t n_evicted
    cdef uint32_t n_matches
    cdef Holders holders
    # What the last reach found of each chunk, from `trail_begin` on; good until something changes.
    cdef Home *trail
    cdef size_t trail_room
    cdef size_t trail_begin

    cdef void plan_sizes(self)
    cdef Entry *bucket_of(self, uint64_t hash) noexcept nogil
    cdef Entry *find(self, uint64_t hash) noexcept nogil
    cdef void put(self, uint32_t segment, uint64_t hash, uint32_t position, uint32_t holders) noexcept nogil
    cdef void erase(self, Entry *entry) noexcept nogil
    cdef void free_entry(self, Entry *entry) noexcept nogil
    cdef bint split(self, uint32_t segment, uint64_t mixed) noexcept nogil
    cdef void evict(self, uint32_t segment) noexcept nogil
    cdef void sweep(self, uint32_t segment) noexcept nogil
    cdef void relieve(self) noexcept nogil
    cdef int check_replica(self, replica) except -1
    cdef void join(self, Entry *entry, uint16_t id, uint32_t alone) noexcept nogil
    cdef void enter(self, uint64_t hash, uint32_t position, uint32_t set) noexcept nogil
    cdef bint hold(
        self, uint32_t replica, const uint64_t *hashes, size_t n, const uint32_t *positions, size_t n_kept
    ) noexcept nogil
    cdef size_t touch(self, uint32_t replica, const uint64_t *hashes, size_t n) noexcept nogil
    cdef void let_go(self, uint32_t replica, const uint64_t *hashes, size_t n) noexcept nogil
    cdef uint32_t reach(
        self, const uint64_t *hashes, size_t n, uint32_t *lengths, uint32_t *hits, size_t n_lengths, uint32_t *furthest,
        bint keeps_trail,
    ) noexcept nogil
    cdef uint32_t reach_far(
        self, const uint64_t *hashes, const uint32_t *ends, size_t n, uint32_t window_bytes, uint32_t *lengths,
        uint32_t *hits, size_t n_lengths, uint32_t *furthest,
    ) noexcept nogil
    cdef bint begin_search(
        self, Search *search, const uint64_t *hashes, uint32_t *lengths, uint32_t *hits, size_t n_lengths
    ) noexcept nogil
    cdef bint walk(self, Search *search, size_t begin, size_t end) noexcept nogil
    cdef uint64_t peek(self, Search *search, size_t begin, size_t end) noexcept nogil
    cdef bint halve(self, Search *search, size_t low, uint64_t at_low, size_t high, uint64_t at_high) noexcept nogil
    cdef void forget_trail(self) noexcept nogil
    cdef Home *trail_for(self, size_t n) noexcept nogil
    cdef uint32_t note(
        self, uint32_t set, uint32_t position, uint32_t *lengths, uint32_t *hits, size_t n_lengths, uint32_t hit
    ) noexcept nogil
    cdef uint32_t position_of(self, uint64_t hash) noexcept nogil
    cdef uint32_t position_held(self, uint32_t replica, uint64_t hash) noexcept nogil

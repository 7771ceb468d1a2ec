# How much of what a fleet computes it had computed before, and so what throwing something out of a cache costs.
#
#     r      = tokens computed that had been asked for before, here or elsewhere / tokens computed
#     weight = 4 + 16 x (r + r^2 + r^3 + ...) = 4 + 16 x r / (1 - r)
#
# A second of prefill throws as much out as it puts in, of which r is asked for again, throws out as much itself, and so on.
# Where the caches hold what is asked for again r is near 0, and requests may be spread; where they are far too small most
# work is repeated, the fleet is slower than what comes, and each second that is not computed is one that all others do not
# wait. The 4 and the 16 were found by simulation (benchmarks/NOTES.md).
#
# What was asked for before is remembered by the hashes of marks (marks.pxd) in a table without buckets: a hash that comes
# later takes the place of one that came earlier, so it remembers about as many as it has places, the newest.
#
# What was recalled is not written again: each mark is a cache line of its own, and a prompt that begins like others has a
# hundred. Its marks are lost one by one, then, to others that take their places; so where a mark lacks, the one in front of
# it is asked too, and what is found missing is written. That recalls more than writing all of them each time did.
#
#     recall  O(log marks)    note_seen  O(marks not recalled)    learn_loss, lost_weight  O(1)

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SEEN_PLACES = 1 << 16  # 512 KiB
    LOSSES_MEMORY = 256  # requests; older ones fade
    ENOUGH_LOSSES = 32  # requests before it is believed
    LEAST_WEIGHT = 4
    REPEATED_WEIGHT = 16
    MOST_REPEATED_PCT = 95  # beyond that the weight grows no more

cdef struct Losses:
    double own_tokens  # fading sums
    double lost_tokens
    uint64_t computed_tokens  # since the beginning
    uint64_t repeated_tokens
    uint32_t n


cdef inline uint64_t *place_of(uint64_t *seen, uint64_t hash) noexcept nogil:
    # The chain's hashes are well mixed; other bits than those that the index goes by.
    return &seen[(hash >> 24) & (SEEN_PLACES - 1)]


cdef inline bint is_seen(uint64_t *seen, uint64_t hash) noexcept nogil:
    return place_of(seen, hash)[0] == hash


cdef inline uint32_t recall(uint64_t *seen, const uint64_t *hashes, uint32_t n) noexcept nogil:
    """How many of a prompt's marks were seen, up to the furthest one, by halving: what begins alike was seen together.

    Two marks in a row whose places were taken mislead it to fewer, nothing misleads it to more.
    """
    cdef uint32_t low = 0, high = n, middle
    while low < high:
        middle = (low + high + 1) >> 1
        if is_seen(seen, hashes[middle - 1]):
            low = middle
        elif middle - 1 > low and is_seen(seen, hashes[middle - 2]):
            low = middle - 1
        else:
            high = middle - 1
    return low


cdef inline void note_seen(uint64_t *seen, const uint64_t *hashes, uint32_t n_seen, uint32_t n) noexcept nogil:
    """Remember a prompt's marks, of which `n_seen` were recalled."""
    cdef uint32_t i
    for i in range(n_seen, n):
        place_of(seen, hashes[i])[0] = hashes[i]


cdef inline void learn_loss(Losses *losses, double own_tokens, double lost_tokens) noexcept nogil:
    """A request computed `own_tokens`, of which `lost_tokens` had been asked for before."""
    cdef double kept = 1.0 - 1.0 / LOSSES_MEMORY
    lost_tokens = min(lost_tokens, own_tokens)
    losses.own_tokens = kept * losses.own_tokens + own_tokens
    losses.lost_tokens = kept * losses.lost_tokens + lost_tokens
    losses.computed_tokens += <uint64_t>own_tokens
    losses.repeated_tokens += <uint64_t>lost_tokens
    losses.n += losses.n < ENOUGH_LOSSES


cdef inline double repeated_share(const Losses *losses) noexcept nogil:
    """The share of repeated work, 0 before enough is known."""
    if losses.n < ENOUGH_LOSSES or losses.own_tokens <= 0:
        return 0.0
    return losses.lost_tokens / losses.own_tokens


cdef inline double lost_weight(const Losses *losses) noexcept nogil:
    """What a second of our own prefill costs later, in seconds."""
    cdef double share = min(repeated_share(losses), MOST_REPEATED_PCT / 100.0)
    return LEAST_WEIGHT + REPEATED_WEIGHT * share / (1.0 - share)

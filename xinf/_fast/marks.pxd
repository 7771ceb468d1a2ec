# Which chunks stand for a prompt while nobody tells what an engine holds: marks, few of many.
#
#     chunk     1 2 3 ... 32   34 36 38 ... 64   68 72 76 ... 128   136 144 ... 256   ...   544 576 ... 1024   1056 ...
#     step          1               2                 4                 8                        32              64
#
# The grid: each of the first DENSE chunks, then STEPS an octave, so that what lies between two of its chunks is less than
# a part in STEPS of what lies before them. A chunk is on the grid or not by its number alone, so prompts that begin alike
# have the marks of what they share in common, and what is found of a match of m chunks is more than m - m / STEPS, and
# never more than m.
#
# Off the grid: the last LAST_ROLES headers of messages, and the end. A prompt of a chat ends in the header of its answer,
# which the next turn has as the header of a message: so the next turn is matched to the chunk, and so are a system prompt
# that others begin with, and a prompt that comes again. The part in STEPS is lost where raw texts share a beginning.
#
# 1,024 chunks have 112 marks on the grid, 128 have 64. The index is asked for marks, holds marks and evicts marks.
# Exact residency is not thinned: it comes with positions of its own, for which the sink keeps the whole chain.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from xinf._fast.sink cimport LAST_ROLES, Sink

cdef extern from *:
    int leading_zeros "__builtin_clz"(unsigned int mask) noexcept nogil

cdef enum:
    DENSE = 32  # a power of two, and at least STEPS
    STEPS = 16  # a power of two
    LOG2_DENSE = 5
    LOG2_STEPS = 4
    MAX_MARKS = DENSE + (32 - LOG2_DENSE) * STEPS + LAST_ROLES + 1  # of the longest chain there can be


cdef inline uint32_t log2_of(uint32_t number) noexcept nogil:
    return 31 - leading_zeros(number)


cdef inline uint32_t next_on_grid(uint32_t number) noexcept nogil:
    """The chunk of the grid behind one of the grid; 0 is in front of the first."""
    return number + 1 if number < DENSE else number + (1 << (log2_of(number) - LOG2_STEPS))


cdef inline uint32_t marks_room(size_t n) noexcept nogil:
    """How many marks a chain of `n` chunks has at most."""
    if n <= DENSE + LAST_ROLES + 1:
        return <uint32_t>n
    return DENSE + (log2_of(<uint32_t>n) - LOG2_DENSE + 1) * STEPS + LAST_ROLES + 1


cdef inline uint32_t take_marks(const Sink *sink, uint64_t *hashes, uint32_t *ends) noexcept nogil:
    """Fill in hash and end of each mark of the sink's chain, in order. Gives how many."""
    cdef uint32_t n = <uint32_t>sink.n, n_marks = n if n < DENSE else DENSE
    cdef uint32_t on_grid, role, at_role
    memcpy(hashes, sink.hashes, n_marks * sizeof(uint64_t))
    memcpy(ends, sink.ends, n_marks * sizeof(uint32_t))
    if n <= DENSE:
        return n_marks
    on_grid = next_on_grid(DENSE)
    role = sink.n_roles - LAST_ROLES if sink.n_roles > LAST_ROLES else 0
    while role < sink.n_roles and sink.roles[role % LAST_ROLES] <= DENSE:
        role += 1
    while True:
        at_role = sink.roles[role % LAST_ROLES] if role < sink.n_roles else n
        if on_grid >= n and at_role >= n:
            break
        if at_role <= on_grid:
            role += 1
        if on_grid <= at_role:
            hashes[n_marks] = sink.hashes[on_grid - 1]
            ends[n_marks] = sink.ends[on_grid - 1]
            on_grid = next_on_grid(on_grid)
        else:
            hashes[n_marks] = sink.hashes[at_role - 1]
            ends[n_marks] = sink.ends[at_role - 1]
        n_marks += 1
    hashes[n_marks] = sink.hashes[n - 1]
    ends[n_marks] = sink.ends[n - 1]
    return n_marks + 1

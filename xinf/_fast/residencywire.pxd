# A Residency on the wire: its arrays are copied as they are, never number by number.

from libc.stdint cimport uint8_t, uint64_t

from xinf._fast.protowire cimport (
    LENGTH, Field, Reader, Span, bytes_size, number_size, put_bytes, put_number, put_raw, read_field,
)

cdef enum:
    # Fields of Residency.
    ADDED = 5
    TOKENS = 6
    REMOVED = 7
    N_RESIDENCY_FIELDS = 9

cdef struct Residency:
    uint64_t sequence
    bint cleared
    bint is_partial
    Span state
    Span[3] arrays  # added, tokens, removed; while one is read, only their bytes are counted here
    (uint8_t *)[3] to  # where the next of them go while one is read


cdef inline const char *residency_types() noexcept nogil:
    return b"00??*+*20"


cdef inline size_t item_bytes(uint64_t field) noexcept nogil:
    return 4 if field == TOKENS else 8


cdef inline void copy_arrays(const Span *message, Residency *out) noexcept nogil:
    """Copy the arrays of a message that was measured, packed or not, to where `out` says."""
    cdef Reader r
    cdef Field field
    cdef Span item
    r.base = r.p = message.p
    r.end = message.p + message.n
    while r.p < r.end:
        if not read_field(&r, &field, residency_types(), N_RESIDENCY_FIELDS):
            return
        if not ADDED <= field.number <= REMOVED:
            continue
        item = field.span
        if field.wire_type != LENGTH:
            item.n = item_bytes(field.number)
            item.p = r.p - item.n
        out.to[field.number - ADDED] = put_raw(out.to[field.number - ADDED], item.p, item.n)


cdef inline size_t residency_size(const Residency *residency) noexcept nogil:
    return (
        number_size(residency.sequence) + number_size(residency.cleared) + bytes_size(residency.arrays[0].n)
        + bytes_size(residency.arrays[1].n) + bytes_size(residency.arrays[2].n) + bytes_size(residency.state.n)
        + number_size(residency.is_partial)
    )  # fmt: skip


cdef inline uint8_t *put_residency(uint8_t *p, const Residency *residency) noexcept nogil:
    cdef int i
    p = put_number(put_number(p, 1, residency.sequence), 2, residency.cleared)
    for i in range(3):
        p = put_bytes(p, <uint8_t>(ADDED + i), residency.arrays[i].p, residency.arrays[i].n)
    p = put_bytes(p, 8, residency.state.p, residency.state.n)
    return put_number(p, N_RESIDENCY_FIELDS, residency.is_partial)

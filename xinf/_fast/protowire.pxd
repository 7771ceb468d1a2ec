# The protobuf wire format: a reader that checks every bound, and writers into room that the caller has measured.
#
#     message = (tag, value)*      tag = varint of field << 3 | wire type
#     VARINT 7 bits a byte    FIXED64 8 bytes    LENGTH varint, then so many bytes    FIXED32 4 bytes
#
# Source: https://protobuf.dev/programming-guides/encoding/. Numbers are little-endian, as all hosts of xinf are.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT32_MAX, UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5

cdef struct Reader:
    const uint8_t *base  # what offsets in errors count from
    const uint8_t *p
    const uint8_t *end
    const char *fault  # why p cannot go on

cdef struct Span:
    const uint8_t *p
    size_t n


cdef struct Field:
    const uint8_t *start  # its tag
    uint32_t number  # 0: unknown, to be passed over
    uint32_t wire_type
    uint64_t value  # VARINT and FIXED64
    float small  # FIXED32
    Span span  # LENGTH


cdef inline bint fail(Reader *r, const char *reason) noexcept nogil:
    r.fault = reason
    return 0


# ---- reading ----------------------------------------------------------------------------------------------------------


cdef inline bint read_long_varint(Reader *r, uint64_t *out, int max_bytes) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint8_t c
    cdef int i
    for i in range(max_bytes):
        if r.p + i >= r.end:
            return fail(r, "varint beyond the end")
        c = r.p[i]
        if i == 9 and c > 1:
            break
        value |= <uint64_t>(c & 0x7F) << (7 * i)
        if c < 0x80:
            r.p += i + 1
            out[0] = value
            return 1
    return fail(r, "varint too long")


cdef inline bint read_varint(Reader *r, uint64_t *out) noexcept nogil:
    if r.p < r.end and r.p[0] < 0x80:
        out[0] = r.p[0]
        r.p += 1
        return 1
    return read_long_varint(r, out, 10)


cdef inline bint read_tag(Reader *r, uint32_t *out) noexcept nogil:
    cdef uint64_t tag
    if r.p < r.end and r.p[0] < 0x80:
        tag = r.p[0]
        r.p += 1
    elif not read_long_varint(r, &tag, 5):
        return 0
    if tag < 8 or tag > UINT32_MAX:
        return fail(r, "field number out of range")
    out[0] = <uint32_t>tag
    return 1


cdef inline bint read_span(Reader *r, Span *out) noexcept nogil:
    """A length and the bytes it counts, which stay where they are."""
    cdef uint64_t n
    if r.p < r.end and r.p[0] < 0x80:
        n = r.p[0]
        r.p += 1
    elif not read_long_varint(r, &n, 5):
        return 0
    if n > <uint64_t>(r.end - r.p) or n > INT32_MAX:
        return fail(r, "length beyond the end")
    out.p = r.p
    out.n = n
    r.p += n
    return 1


cdef inline bint read_fixed64(Reader *r, uint64_t *out) noexcept nogil:
    if r.end - r.p < 8:
        return fail(r, "number beyond the end")
    memcpy(out, r.p, 8)
    r.p += 8
    return 1


cdef inline bint read_float(Reader *r, float *out) noexcept nogil:
    if r.end - r.p < 4:
        return fail(r, "number beyond the end")
    memcpy(out, r.p, 4)
    r.p += 4
    return 1


cdef inline bint read_field(Reader *r, Field *field, const char *types, uint32_t n_known) noexcept nogil:
    """Read the field at r.p, which is before the end.

    `types`: the wire types of fields 1 to `n_known`, a digit each. `*` is a repeated fixed64, packed or not, `+` a
    repeated fixed32, `?` one that is reserved: unknown.
    """
    cdef uint32_t tag
    cdef char type
    field.start = r.p
    field.span.p = r.p
    field.span.n = 0
    field.value = 0
    if not read_tag(r, &tag):
        return 0
    field.wire_type = tag & 7
    field.number = tag >> 3
    if field.number > n_known:
        field.number = 0
    else:
        type = types[field.number - 1]
        if type == c'?':
            field.number = 0
        elif <uint32_t>(type - c'0') != field.wire_type and not (
            (type == c'*' and (field.wire_type == FIXED64 or field.wire_type == LENGTH))
            or (type == c'+' and (field.wire_type == FIXED32 or field.wire_type == LENGTH))
        ):
            return fail(r, "wrong wire type")
    if field.wire_type == LENGTH:
        return read_span(r, &field.span)
    if field.wire_type == VARINT:
        return read_varint(r, &field.value)
    if field.wire_type == FIXED64:
        return read_fixed64(r, &field.value)
    if field.wire_type == FIXED32:
        return read_float(r, &field.small)
    return fail(r, "unknown wire type")  # groups (3, 4) do not exist in proto3


# ---- writing ----------------------------------------------------------------------------------------------------------
# Defaults are left out, as proto3 does: a size of 0 bytes and no step of p.


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t n = 1
    while value >= 0x80:
        value >>= 7
        n += 1
    return n


cdef inline size_t number_size(uint64_t value) noexcept nogil:
    """Of a varint field with a one-byte tag."""
    return 1 + varint_size(value) if value else 0


cdef inline size_t message_size(size_t n) noexcept nogil:
    """Of a field with a one-byte tag that holds n bytes, however few."""
    return 1 + varint_size(n) + n


cdef inline size_t bytes_size(size_t n) noexcept nogil:
    return message_size(n) if n else 0


cdef inline uint8_t *put_varint(uint8_t *p, uint64_t value) noexcept nogil:
    while value >= 0x80:
        p[0] = <uint8_t>(value | 0x80)
        value >>= 7
        p += 1
    p[0] = <uint8_t>value
    return p + 1


cdef inline uint8_t *put_number(uint8_t *p, uint8_t field, uint64_t value) noexcept nogil:
    if value == 0:
        return p
    p[0] = field << 3 | VARINT
    return put_varint(p + 1, value)


cdef inline uint8_t *put_fixed64(uint8_t *p, uint8_t field, uint64_t value) noexcept nogil:
    if value == 0:
        return p
    p[0] = field << 3 | FIXED64
    memcpy(p + 1, &value, 8)
    return p + 9


cdef inline uint8_t *put_float(uint8_t *p, uint8_t field, float value) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &value, 4)
    if bits == 0:  # -0.0 is no default
        return p
    p[0] = field << 3 | FIXED32
    memcpy(p + 1, &value, 4)
    return p + 5


cdef inline uint8_t *put_raw(uint8_t *p, const void *data, size_t n) noexcept nogil:
    memcpy(p, data, n)
    return p + n


cdef inline uint8_t *put_length(uint8_t *p, uint8_t field, size_t n) noexcept nogil:
    """The tag and length of a message of n bytes, which follow."""
    p[0] = field << 3 | LENGTH
    return put_varint(p + 1, n)


cdef inline uint8_t *put_bytes(uint8_t *p, uint8_t field, const void *data, size_t n) noexcept nogil:
    return put_raw(put_length(p, field, n), data, n) if n else p


cdef inline bytes new_bytes(size_t n):
    """Bytes to be filled."""
    return PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)


cdef inline uint8_t *room(bytes data) noexcept:
    """Where to write into bytes that nobody has seen yet."""
    return <uint8_t *>PyBytes_AS_STRING(data)

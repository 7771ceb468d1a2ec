# The JSON grammar (RFC 8259 with UTF-8): a validating reader over a NUL-terminated buffer that makes no objects.
#
# It accepts exactly what orjson accepts, which leaves these open points of the RFC settled: no byte order mark, no lone
# surrogate escapes, no number that rounds to infinity, any duplicate keys, nesting up to a limit. Every function takes the
# cursor at the first byte of its construct and leaves it behind the last; on an error it notes byte and reason and
# returns 0. The NUL behind the buffer is no valid byte anywhere, so single bytes are looked at without a bounds check.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* The first byte that is not plain inside a string: a quote, a backslash, a control character or non-ASCII. */
    static inline const uint8_t *xinf_plain_end(const uint8_t *p, const uint8_t *end) {
    #if defined(__SSE2__)
        const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\\\'), space = _mm_set1_epi8(' ');
        while (end - p >= 16) {
            __m128i bytes = _mm_loadu_si128((const __m128i *)p);
            /* Signed: bytes from 0x80 on are negative, so this finds control characters and non-ASCII at once. */
            __m128i special = _mm_or_si128(_mm_cmplt_epi8(bytes, space),
                _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, backslash)));
            int mask = _mm_movemask_epi8(special);
            if (mask) return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
    #endif
        while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\\\') p++;
        return p;
    }
    /* 2^1024 - 2^970: the least number that a double rounds to infinity, all of its 309 digits. */
    static const char xinf_overflow_digits[] =
        "17976931348623158079372897140530341507993413271003782693617377898044496829276475094664901797758720709633"
        "02864166928879109465555478519404026306574886715058206819089020007083836762738548458177115317644757302700"
        "69855571366959622842914819860834936475292719074168444365510704342711559699508093042880177904174497792";
    """
    const uint8_t *plain_end "xinf_plain_end"(const uint8_t *p, const uint8_t *end) noexcept nogil
    const char *overflow_digits "xinf_overflow_digits"

cdef enum:
    N_OVERFLOW_DIGITS = 309
    MAX_DEPTH = 1024  # orjson's own limit
    N_DEPTH_WORDS = 16  # 64 levels in each

cdef enum Kind:
    ABSENT = 0
    STRING = 1
    NUMBER = 2
    TRUE = 3
    FALSE = 4
    NULL_VALUE = 5
    ARRAY = 6
    OBJECT = 7

cdef struct Span:
    uint32_t start  # of a string: behind its opening quote
    uint32_t end  # of a string: at its closing quote
    uint32_t n_bytes  # of a string: once unescaped; of anything else: end - start
    uint8_t kind
    uint8_t is_plain  # a string without escapes, a number without fraction and exponent
    uint8_t tag  # free for the owner
    uint8_t unused

cdef struct Reader:
    const uint8_t *base
    const uint8_t *end
    const uint8_t *p
    const uint8_t *error_at
    const char *reason
    int depth_left


cdef inline bint fail(Reader *r, const uint8_t *at, const char *reason) noexcept nogil:
    r.error_at = at
    r.reason = reason
    if at >= r.end:
        r.reason = b"unexpected end of data"
    return 0


cdef inline uint8_t skip_space(Reader *r) noexcept nogil:
    """Skip white space and return the byte after it (NUL at the end)."""
    cdef uint8_t c = r.p[0]
    while c == c' ' or c == c'\n' or c == c'\r' or c == c'\t':
        r.p += 1
        c = r.p[0]
    return c


cdef inline int hex_value(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef inline int hex4(const uint8_t *p) noexcept nogil:
    """Four hexadecimal digits, or -1."""
    cdef int value = 0, i, digit
    for i in range(4):
        digit = hex_value(p[i])
        if digit < 0:
            return -1
        value = value << 4 | digit
    return value


cdef inline bint is_continuation(uint8_t c) noexcept nogil:
    return (c & 0xC0) == 0x80


cdef inline int utf8_width(const uint8_t *p) noexcept nogil:
    """Bytes of the well-formed sequence at p, or 0. Source: The Unicode Standard 16.0, table 3-7."""
    cdef uint8_t c = p[0]
    if c < 0xC2:
        return 0
    if c < 0xE0:
        return 2 if is_continuation(p[1]) else 0
    if c < 0xF0:
        if not is_continuation(p[1]) or not is_continuation(p[2]):
            return 0
        if (c == 0xE0 and p[1] < 0xA0) or (c == 0xED and p[1] > 0x9F):
            return 0
        return 3
    if c > 0xF4 or not is_continuation(p[1]) or not is_continuation(p[2]) or not is_continuation(p[3]):
        return 0
    if (c == 0xF0 and p[1] < 0x90) or (c == 0xF4 and p[1] > 0x8F):
        return 0
    return 4


cdef inline int escape_width(Reader *r, const uint8_t *p, uint32_t *n_unescaped) noexcept nogil:
    """Bytes of the escape at p, or 0 with the error noted; adds what it unescapes to."""
    cdef uint8_t c = p[1]
    cdef int code, low
    if c == c'"' or c == c'\\' or c == c'/' or c == c'n' or c == c't' or c == c'r' or c == c'b' or c == c'f':
        n_unescaped[0] += 1
        return 2
    if c != c'u':
        fail(r, p + 1, b"invalid escape in a string")
        return 0
    code = hex4(p + 2)
    if code < 0:
        fail(r, p + 2, b"invalid \\u escape in a string")
        return 0
    if code < 0xD800 or code > 0xDFFF:
        n_unescaped[0] += 1 if code < 0x80 else 2 if code < 0x800 else 3
        return 6
    if code >= 0xDC00 or p[6] != c'\\' or p[7] != c'u':
        fail(r, p, b"lone surrogate in a string")
        return 0
    low = hex4(p + 8)
    if low < 0xDC00 or low > 0xDFFF:
        fail(r, p, b"lone surrogate in a string")
        return 0
    n_unescaped[0] += 4
    return 12


cdef inline bint read_string(Reader *r, Span *out) noexcept nogil:
    cdef const uint8_t *start = r.p + 1
    cdef const uint8_t *p = start
    cdef const uint8_t *escape
    cdef uint32_t n_unescaped = 0, n_escapes = 0
    cdef int width
    while True:
        p = plain_end(p, r.end)
        if p[0] == c'"':
            break
        if p[0] >= 0x80:
            while p[0] >= 0x80:
                width = utf8_width(p)
                if width == 0:
                    return fail(r, p, b"invalid UTF-8 in a string")
                p += width
        elif p[0] == c'\\':
            width = escape_width(r, p, &n_unescaped)
            if width == 0:
                return 0
            n_escapes += width
            p += width
        else:
            return fail(r, p, b"control character in a string")
    out.start = <uint32_t>(start - r.base)
    out.end = <uint32_t>(p - r.base)
    out.n_bytes = out.end - out.start - n_escapes + n_unescaped
    out.kind = STRING
    out.is_plain = n_escapes == 0
    r.p = p + 1
    return 1


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint overflows(const uint8_t *p, const uint8_t *end, int64_t magnitude) noexcept nogil:
    """Whether the number whose first digit that counts is at p and stands for 10**magnitude rounds to infinity."""
    cdef int i = 0
    cdef uint8_t digit
    if magnitude != 308:
        return magnitude > 308
    while i < N_OVERFLOW_DIGITS:
        digit = c'0'
        if p < end:
            if p[0] == c'.':
                p += 1
                continue
            if is_digit(p[0]):
                digit = p[0]
                p += 1
            else:
                p = end
        if digit != <uint8_t>overflow_digits[i]:
            return digit > <uint8_t>overflow_digits[i]
        i += 1
    return 1


cdef inline bint read_number(Reader *r, Span *out) noexcept nogil:
    cdef const uint8_t *start = r.p
    cdef const uint8_t *p = start
    cdef const uint8_t *whole
    cdef const uint8_t *first = NULL  # first digit that is not 0
    cdef int64_t magnitude = 0, exponent = 0
    cdef bint is_negative
    out.is_plain = 1
    if p[0] == c'-':
        p += 1
    whole = p
    if p[0] == c'0':
        p += 1
        if is_digit(p[0]):
            return fail(r, p, b"a number must not start with 0")
    elif is_digit(p[0]):
        while is_digit(p[0]):
            p += 1
        first = whole
        magnitude = p - whole - 1
    else:
        return fail(r, p, b"a digit is missing in a number")
    if p[0] == c'.':
        out.is_plain = 0
        p += 1
        whole = p
        if not is_digit(p[0]):
            return fail(r, p, b"a digit is missing after the point of a number")
        while is_digit(p[0]):
            if first == NULL and p[0] != c'0':
                first = p
                magnitude = -1 - (p - whole)
            p += 1
    if p[0] == c'e' or p[0] == c'E':
        out.is_plain = 0
        p += 1
        is_negative = p[0] == c'-'
        if is_negative or p[0] == c'+':
            p += 1
        if not is_digit(p[0]):
            return fail(r, p, b"a digit is missing in the exponent of a number")
        while is_digit(p[0]):
            if exponent < <int64_t>1 << 50:  # far beyond what the digits of a 4 GiB body make up for
                exponent = exponent * 10 + (p[0] - c'0')
            p += 1
        magnitude += -exponent if is_negative else exponent
    if first != NULL and magnitude >= 308 and overflows(first, p, magnitude):
        return fail(r, start, b"the number is too large for a double")
    out.start = <uint32_t>(start - r.base)
    out.end = <uint32_t>(p - r.base)
    out.n_bytes = out.end - out.start
    out.kind = NUMBER
    r.p = p
    return 1


cdef inline bint read_literal(Reader *r, Span *out, const char *word, int n, uint8_t kind) noexcept nogil:
    cdef int i
    for i in range(1, n):
        if r.p[i] != <uint8_t>word[i]:
            return fail(r, r.p + i, b"expected a JSON value")
    out.start = <uint32_t>(r.p - r.base)
    out.end = out.start + n
    out.n_bytes = n
    out.kind = kind
    out.is_plain = 1
    r.p += n
    return 1


cdef inline bint enter(Reader *r) noexcept nogil:
    """Step into an array or object."""
    if r.depth_left == 0:
        return fail(r, r.p, b"nested too deeply")
    r.depth_left -= 1
    r.p += 1
    return 1


cdef inline int next_item(Reader *r, uint8_t closer, bint is_first) noexcept nogil:
    """Move to the next item of a container: 1 there is one, 0 it ended (and was left), -1 error."""
    cdef uint8_t c = skip_space(r)
    if c == closer:
        r.p += 1
        r.depth_left += 1
        return 0
    if is_first:
        return 1
    if c != c',':
        if closer == c']':
            fail(r, r.p, b"expected a comma or the end of the array")
        else:
            fail(r, r.p, b"expected a comma or the end of the object")
        return -1
    r.p += 1
    if skip_space(r) == closer:
        fail(r, r.p, b"trailing comma")
        return -1
    return 1


cdef inline bint read_key(Reader *r, Span *key) noexcept nogil:
    """Read `"key" :` and the white space behind it."""
    if r.p[0] != c'"':
        return fail(r, r.p, b"expected a string as key")
    if not read_string(r, key):
        return 0
    if skip_space(r) != c':':
        return fail(r, r.p, b"expected a colon")
    r.p += 1
    skip_space(r)
    return 1


cdef inline bint read_scalar(Reader *r, Span *out) noexcept nogil:
    cdef uint8_t c = r.p[0]
    if c == c'"':
        return read_string(r, out)
    if c == c'-' or is_digit(c):
        return read_number(r, out)
    if c == c't':
        return read_literal(r, out, b"true", 4, TRUE)
    if c == c'f':
        return read_literal(r, out, b"false", 5, FALSE)
    if c == c'n':
        return read_literal(r, out, b"null", 4, NULL_VALUE)
    return fail(r, r.p, b"expected a JSON value")


cdef inline bint read_value(Reader *r, Span *out) noexcept nogil:
    """Read any value; the cursor is at its first byte. Containers are a stack of bits (1: object), not a recursion."""
    cdef uint64_t is_object[N_DEPTH_WORDS]
    cdef int depth = 0, more
    cdef const uint8_t *start = r.p
    cdef Span ignored
    cdef uint8_t closer
    cdef uint8_t kind = OBJECT if start[0] == c'{' else ARRAY
    cdef bint is_first
    if start[0] != c'{' and start[0] != c'[':
        return read_scalar(r, out)
    while True:
        # At the first byte of a value.
        is_first = r.p[0] == c'{' or r.p[0] == c'['
        if is_first:
            closer = r.p[0]
            if not enter(r):  # before the bit is set: there is one for each level that the limit allows
                return 0
            if closer == c'{':
                is_object[depth >> 6] |= <uint64_t>1 << (depth & 63)
            else:
                is_object[depth >> 6] &= ~(<uint64_t>1 << (depth & 63))
            depth += 1
        elif not read_scalar(r, &ignored):
            return 0
        # Behind a value, or inside a new container: close what ends here, then stop at the next value.
        while True:
            closer = c'}' if is_object[(depth - 1) >> 6] >> ((depth - 1) & 63) & 1 else c']'
            more = next_item(r, closer, is_first)
            if more < 0:
                return 0
            if more > 0:
                if closer == c'}' and not read_key(r, &ignored):
                    return 0
                break
            is_first = 0
            depth -= 1
            if depth == 0:
                out.start = <uint32_t>(start - r.base)
                out.end = <uint32_t>(r.p - r.base)
                out.n_bytes = out.end - out.start
                out.kind = kind
                out.is_plain = 0
                return 1


# ---- the text of a validated string ---------------------------------------------------------------------------------


cdef inline uint8_t simple_escape(uint8_t c) noexcept nogil:
    if c == c'n':
        return c'\n'
    if c == c't':
        return c'\t'
    if c == c'r':
        return c'\r'
    if c == c'b':
        return 8
    if c == c'f':
        return 12
    return c


cdef inline bint same_text(const uint8_t *base, const Span *span, const char *word, uint32_t n) noexcept nogil:
    """Whether a string span says `word`. An escaped spelling is compared once unescaped."""
    cdef uint8_t[32] unescaped
    cdef const uint8_t *p
    cdef uint32_t i = 0
    cdef int code
    if span.n_bytes != n or span.kind != STRING:
        return 0
    if span.is_plain:
        return memcmp(base + span.start, word, n) == 0
    if n > sizeof(unescaped):
        return 0
    p = base + span.start
    while i < n:
        if p[0] != c'\\':
            unescaped[i] = p[0]
            p += 1
        elif p[1] == c'u':
            code = hex4(p + 2)
            if code >= 0x80:
                return 0  # all words are ASCII
            unescaped[i] = <uint8_t>code
            p += 6
        else:
            unescaped[i] = simple_escape(p[1])
            p += 2
        i += 1
    return memcmp(unescaped, word, n) == 0


cdef inline uint32_t put_utf8(uint8_t *out, uint32_t code) noexcept nogil:
    if code < 0x80:
        out[0] = <uint8_t>code
        return 1
    if code < 0x800:
        out[0] = <uint8_t>(0xC0 | code >> 6)
        out[1] = <uint8_t>(0x80 | (code & 0x3F))
        return 2
    if code < 0x10000:
        out[0] = <uint8_t>(0xE0 | code >> 12)
        out[1] = <uint8_t>(0x80 | (code >> 6 & 0x3F))
        out[2] = <uint8_t>(0x80 | (code & 0x3F))
        return 3
    out[0] = <uint8_t>(0xF0 | code >> 18)
    out[1] = <uint8_t>(0x80 | (code >> 12 & 0x3F))
    out[2] = <uint8_t>(0x80 | (code >> 6 & 0x3F))
    out[3] = <uint8_t>(0x80 | (code & 0x3F))
    return 4


cdef inline uint32_t unescape(const uint8_t **at, uint8_t *out) noexcept nogil:
    """One validated escape at `at[0]`, which moves behind it. Gives the bytes written, at most 4."""
    cdef const uint8_t *p = at[0]
    cdef int code
    if p[1] != c'u':
        out[0] = simple_escape(p[1])
        at[0] = p + 2
        return 1
    code = hex4(p + 2)
    at[0] = p + 6
    if 0xD800 <= code < 0xDC00:
        code = 0x10000 + ((code - 0xD800) << 10) + (hex4(p + 8) - 0xDC00)
        at[0] = p + 12
    return put_utf8(out, <uint32_t>code)

# Finding canonical text in rendered text, and walking both side by side where they are not written alike.
#
#     walk_json       {"a":"é"}          {"a": "\u00e9"}      white space outside strings and spelling in them do not count
#     walk_escaped    say "hi"           say \"hi\"           a text that the template wrote as a JSON string
#     walk_unescaped  say \"hi\"         say "hi"             a JSON string that the template wrote as its text
#
# Nothing that is read is trusted to be JSON. Both texts have some readable bytes behind them, so that an escape may be
# looked at before it is known to be whole. Finding is O(bytes looked at), a walk O(bytes walked).

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp

from xinf._fast.jsonread cimport hex4, plain_end, put_utf8, simple_escape

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* The first place of a needle of n bytes in [p, end), or NULL. 32 bytes behind `end` are readable. What was looked at
       is taken off `work`; when nothing is left of it, nothing is found. */
    static const uint8_t *xinf_find(const uint8_t *p, const uint8_t *end, const uint8_t *needle, size_t n, int64_t *work) {
        const uint8_t *last;
        if (n == 0 || p > end || (size_t)(end - p) < n) return NULL;
        last = end - n;
    #if defined(__SSE2__)
        const __m128i first = _mm_set1_epi8((char)needle[0]), tail = _mm_set1_epi8((char)needle[n - 1]);
        for (; p <= last; p += 16) {
            __m128i heads = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), first);
            __m128i tails = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + n - 1)), tail);
            unsigned mask = (unsigned)_mm_movemask_epi8(_mm_and_si128(heads, tails));
            if ((*work -= 16) < 0) return NULL;
            for (; mask; mask &= mask - 1) {
                const uint8_t *at = p + __builtin_ctz(mask);
                if (at > last) return NULL;
                if (memcmp(at, needle, n) == 0) return at;
                *work -= 8;
            }
        }
    #else
        while (p <= last) {
            const uint8_t *at = (const uint8_t *)memchr(p, needle[0], (size_t)(last - p) + 1);
            *work -= at ? at - p + 8 : last - p + 16;
            if (at == NULL || *work < 0) return NULL;
            if (memcmp(at, needle, n) == 0) return at;
            p = at + 1;
        }
    #endif
        return NULL;
    }
    /* How many bytes of both are the same from the start. */
    static inline size_t xinf_common(const uint8_t *a, const uint8_t *b, size_t n) {
        size_t i = 0;
        for (; i + 8 <= n; i += 8) {
            uint64_t x, y;
            memcpy(&x, a + i, 8);
            memcpy(&y, b + i, 8);
            if (x != y) break;
        }
        while (i < n && a[i] == b[i]) i++;
        return i;
    }
    """
    const uint8_t *find "xinf_find"(
        const uint8_t *p, const uint8_t *end, const uint8_t *needle, size_t n, int64_t *work) noexcept nogil
    size_t common "xinf_common"(const uint8_t *a, const uint8_t *b, size_t n) noexcept nogil

cdef struct Walker:
    const uint8_t *text  # canonical
    uint32_t i
    uint32_t i_end
    const uint8_t *rendered
    uint32_t r
    uint32_t r_end
    bint is_string  # walk_json: i is inside a string
    const uint32_t *ends  # where chunks of the text end
    uint32_t *stops  # out: where they end in the rendered text
    size_t k  # the first chunk that ends behind i
    size_t k_end  # k: note nothing


cdef inline bint is_space(uint8_t c) noexcept nogil:
    return c == c' ' or 9 <= c <= 13


cdef inline void advance(Walker *w, uint32_t n) noexcept nogil:
    """Over bytes that mean themselves in both."""
    while w.k < w.k_end and w.ends[w.k] <= w.i + n:
        w.stops[w.k] = w.r + (w.ends[w.k] - w.i)
        w.k += 1
    w.i += n
    w.r += n


cdef inline void advance_over(Walker *w, uint32_t n_text, uint32_t n_rendered) noexcept nogil:
    """Over a character that is written differently. A chunk that ends inside of it ends in front of it."""
    while w.k < w.k_end and w.ends[w.k] <= w.i + n_text:
        w.stops[w.k] = w.r + (n_rendered if w.ends[w.k] == w.i + n_text else 0)
        w.k += 1
    w.i += n_text
    w.r += n_rendered


cdef inline uint32_t read_escape(const uint8_t *p, uint32_t n, uint8_t *out, uint32_t *width) noexcept nogil:
    """The escape at p, of whose text n bytes are left: bytes of UTF-8 put into `out`, 0 when it is none."""
    cdef int code, low
    cdef uint8_t c
    if n < 2 or p[0] != c'\\':
        return 0
    c = p[1]
    width[0] = 2
    if c != c'u':
        out[0] = simple_escape(c)
        return out[0] != c or c == c'"' or c == c'\\' or c == c'/'
    code = hex4(p + 2) if n >= 6 else -1
    width[0] = 6
    if code < 0 or 0xDC00 <= code <= 0xDFFF:
        return 0
    if 0xD800 <= code < 0xDC00:
        low = hex4(p + 8) if n >= 12 and p[6] == c'\\' and p[7] == c'u' else -1
        if low < 0xDC00 or low > 0xDFFF:
            return 0
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        width[0] = 12
    return put_utf8(out, <uint32_t>code)


cdef inline bint advance_escape(Walker *w) noexcept nogil:
    """Over a character that is an escape in one of the texts, or in both."""
    cdef uint8_t[4] of_text
    cdef uint8_t[4] of_rendered
    cdef uint32_t text_width = 0, rendered_width = 0, n_text, n_rendered
    cdef const uint8_t *t = w.text + w.i
    cdef const uint8_t *r = w.rendered + w.r
    n_text = read_escape(t, w.i_end - w.i, of_text, &text_width)
    n_rendered = read_escape(r, w.r_end - w.r, of_rendered, &rendered_width)
    if n_text and n_rendered:
        if n_text != n_rendered or memcmp(of_text, of_rendered, n_text) != 0:
            return 0
    elif t[0] == c'"' or r[0] == c'"':
        return 0  # where one of the strings ends
    elif n_text and r[0] != c'\\':
        if w.r_end - w.r < n_text or memcmp(of_text, r, n_text) != 0:
            return 0
        rendered_width = n_text
    elif n_rendered and t[0] != c'\\':
        if w.i_end - w.i < n_rendered or memcmp(of_rendered, t, n_rendered) != 0:
            return 0
        text_width = n_rendered
    else:
        return 0
    advance_over(w, text_width, rendered_width)
    return 1


cdef inline void walk_json(Walker *w) noexcept nogil:
    """As far as both are the same JSON. The text has no white space between its tokens."""
    cdef uint32_t n, same
    cdef uint8_t c
    while w.i < w.i_end and w.r < w.r_end:
        c = w.rendered[w.r]
        if not w.is_string:
            if is_space(c):
                w.r += 1
                continue
            if w.text[w.i] != c:
                return
            w.is_string = c == c'"'
            advance(w, 1)
            continue
        n = <uint32_t>(plain_end(w.text + w.i, w.text + w.i_end) - (w.text + w.i))
        n = min(n, w.r_end - w.r)
        same = <uint32_t>common(w.text + w.i, w.rendered + w.r, n)
        if same:
            advance(w, same)
        elif w.text[w.i] == c'\\' or c == c'\\':
            if not advance_escape(w):
                return
        elif w.text[w.i] != c:
            return
        else:
            w.is_string = c != c'"'
            advance(w, 1)


cdef inline void walk_escaped(Walker *w) noexcept nogil:
    """As far as the rendered text is the JSON string of the text; it does not go behind the closing quote."""
    cdef uint32_t n, same
    cdef const uint8_t *r
    while w.i < w.i_end and w.r < w.r_end:
        r = w.rendered + w.r
        n = min(<uint32_t>(plain_end(r, w.rendered + w.r_end) - r), w.i_end - w.i)
        same = <uint32_t>common(w.text + w.i, r, n)
        if same:
            advance(w, same)
        elif n:
            return
        elif r[0] == c'\\':
            if not advance_quoted(w):
                return
        elif r[0] == c'"' or r[0] != w.text[w.i]:
            return
        else:
            advance(w, 1)


cdef inline bint advance_quoted(Walker *w) noexcept nogil:
    """Over a character of the text whose escape is in the rendered text."""
    cdef uint8_t[4] out
    cdef uint32_t width = 0
    cdef uint32_t n = read_escape(w.rendered + w.r, w.r_end - w.r, out, &width)
    if n == 0 or w.i_end - w.i < n or memcmp(out, w.text + w.i, n) != 0:
        return 0
    advance_over(w, n, width)
    return 1


cdef inline void walk_unescaped(Walker *w) noexcept nogil:
    """As far as the rendered text is what the text, the inside of a JSON string, means."""
    cdef uint8_t[4] out
    cdef uint32_t n, same, width = 0
    cdef const uint8_t *t
    while w.i < w.i_end and w.r < w.r_end:
        t = w.text + w.i
        n = min(<uint32_t>(plain_end(t, w.text + w.i_end) - t), w.r_end - w.r)
        same = <uint32_t>common(t, w.rendered + w.r, n)
        if same:
            advance(w, same)
        elif n:
            return
        elif t[0] == c'\\':
            n = read_escape(t, w.i_end - w.i, out, &width)
            if n == 0 or w.r_end - w.r < n or memcmp(out, w.rendered + w.r, n) != 0:
                return
            advance_over(w, width, n)
        elif t[0] != w.rendered[w.r]:
            return
        else:
            advance(w, 1)

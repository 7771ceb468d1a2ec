# Where contents stand in the rendered text: texts as they are, trimmed or as JSON strings; JSON object by object; the texts
# of JSON strings. Every search ends where `Job.work` is used up.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from xinf._fast.binding cimport (
    ESCAPED, LONGEST_ESCAPE, MAX_LOST_OBJECTS, MISSING, NOWHERE, PARTIAL, PREFIX_BYTES, WHOLE, Job, Match, Place,
    begin_of, mark_begin, start_walk,
)
from xinf._fast.walk cimport (
    Walker, common, find, is_space, read_escape, walk_escaped, walk_json, walk_unescaped,
)


# ---- texts --------------------------------------------------------------------------------------------------------


cdef inline void keep_spaces(const uint8_t *text, uint32_t n, uint32_t lead, uint32_t body_end, const uint8_t *rendered,
                             uint32_t lo, uint32_t hi, Place *place) noexcept nogil:
    """Widen the place of a text's body by what is there of the white space around it."""
    cdef uint32_t kept = 0
    while kept < lead and place.start > lo and rendered[place.start - 1] == text[lead - kept - 1]:
        kept += 1
        place.start -= 1
    place.skip = lead - kept
    place.end += <uint32_t>common(text + body_end, rendered + place.end, min(n - body_end, hi - place.end))


cdef inline Match match_at(Job *j, size_t k, size_t k_end, uint32_t at, Place *place) noexcept nogil:
    """Look whether the text of these chunks begins at `at`, maybe trimmed."""
    cdef const uint8_t *text = j.kept.text + begin_of(j, k)
    cdef const uint8_t *rendered = j.rendered.text
    cdef uint32_t n = j.kept.ends[k_end - 1] - begin_of(j, k), hi = j.rendered.n_bytes
    cdef uint32_t lead = 0, body_end = n, start = at, same
    while lead < n and is_space(text[lead]):
        lead += 1
    place.skip = 0
    place.start = at
    if lead == n:  # nothing but white space, of which any part may be there
        place.end = at + <uint32_t>common(text, rendered + at, min(n, hi - at))
        return WHOLE
    while is_space(text[body_end - 1]):
        body_end -= 1
    while start < hi and start - at < lead and is_space(rendered[start]):
        start += 1
    same = <uint32_t>common(text + lead, rendered + start, min(body_end - lead, hi - start))
    j.work -= same
    if same < body_end - lead and same < PREFIX_BYTES:
        return MISSING
    place.start = start
    place.end = start + same
    if same < body_end - lead:
        place.skip = lead
        return PARTIAL
    keep_spaces(text, n, lead, body_end, rendered, at, hi, place)
    return WHOLE


cdef inline Match find_text(Job *j, size_t k, size_t k_end, uint32_t lo, uint32_t hi, Place *place) noexcept nogil:
    """Look for the text of these chunks in [lo, hi), maybe trimmed. PARTIAL when only its beginning is there."""
    cdef const uint8_t *text = j.kept.text + begin_of(j, k)
    cdef const uint8_t *rendered = j.rendered.text
    cdef const uint8_t *at = rendered + lo
    cdef uint32_t n = j.kept.ends[k_end - 1] - begin_of(j, k)
    cdef uint32_t lead = 0, body_end = n, same, left
    cdef Match match = MISSING
    while lead < n and is_space(text[lead]):
        lead += 1
    if lead == n:
        return MISSING
    while is_space(text[body_end - 1]):
        body_end -= 1
    while True:
        at = find(at, rendered + hi, text + lead, min(body_end - lead, <uint32_t>PREFIX_BYTES), &j.work)
        if at == NULL:
            return match
        left = hi - <uint32_t>(at - rendered)
        same = <uint32_t>common(text + lead, at, min(body_end - lead, left))
        j.work -= same
        if same == body_end - lead:
            break
        if match == MISSING:
            match = PARTIAL
            place.start = <uint32_t>(at - rendered)
            place.end = place.start + same
            place.skip = lead
        at += 1
    place.start = <uint32_t>(at - rendered)
    place.end = place.start + same
    keep_spaces(text, n, lead, body_end, rendered, lo, hi, place)
    return WHOLE


cdef inline bint walk_string(Job *j, size_t k, size_t k_end, uint32_t at, uint32_t hi, uint32_t *end) noexcept nogil:
    """Place the text of these chunks where it stands as a JSON string, whose quote is at `at`. 0: it does not."""
    cdef Walker w
    start_walk(&w, j, k, k_end, at + 1, hi)
    walk_escaped(&w)
    j.work -= w.r - at
    if w.i == w.i_end and w.r < hi and j.rendered.text[w.r] == c'"':
        end[0] = w.r + 1
        return 1
    memset(j.stops + k, 0xFF, (w.k - k) * sizeof(uint32_t))
    return 0


cdef inline bint find_string(Job *j, size_t k, size_t k_end, uint32_t lo, uint32_t hi, uint32_t *end) noexcept nogil:
    """Look for the text of these chunks as a JSON string in [lo, hi), and place it."""
    cdef const uint8_t *at = j.rendered.text + lo
    while True:
        at = find(at, j.rendered.text + hi, <const uint8_t *>b'"', 1, &j.work)
        if at == NULL:
            return 0
        if walk_string(j, k, k_end, <uint32_t>(at - j.rendered.text), hi, end):
            mark_begin(j, k, <uint32_t>(at - j.rendered.text))
            return 1
        at += 1


cdef inline void put_text(Job *j, size_t k, size_t k_end, const Place *place) noexcept nogil:
    """Give chunks of a text their places, those that are there."""
    cdef uint32_t start = begin_of(j, k), length = place.end - place.start, offset
    mark_begin(j, k, place.start)
    for k in range(k, k_end):
        offset = j.kept.ends[k] - start
        offset = offset - place.skip if offset > place.skip else 0
        j.stops[k] = place.start + min(offset, length)


cdef inline size_t put_beginning(Job *j, size_t k, size_t k_end, const Place *place) noexcept nogil:
    """Give those chunks of a text their places that end within it. Gives the first that does not."""
    cdef uint32_t reach = begin_of(j, k) + place.skip + (place.end - place.start)
    cdef size_t whole_end = k
    while whole_end < k_end and j.kept.ends[whole_end] <= reach:
        whole_end += 1
    put_text(j, k, whole_end, place)
    return whole_end


cdef inline uint32_t next_brace(Job *j, uint32_t i, uint32_t i_end, bint is_string, bint *is_plain) noexcept nogil:
    """The next object in JSON text, from i on. `is_plain`: nothing but what closes or parts values is in between."""
    cdef const uint8_t *text = j.kept.text
    cdef uint8_t c
    is_plain[0] = not is_string
    while i < i_end:
        c = text[i]
        j.work -= 1
        if is_string:
            if c == c'\\':
                i += 1
            elif c == c'"':
                is_string = 0
        elif c == c'{':
            return i
        elif c == c'"':
            is_string = 1
            is_plain[0] = 0
        elif c != c'[' and c != c']' and c != c'}' and c != c',':
            is_plain[0] = 0
        i += 1
    return i_end


cdef inline uint32_t find_object(Job *j, uint32_t i, uint32_t i_end, uint32_t lo, uint32_t hi, uint32_t least) noexcept nogil:
    """Where in [lo, hi) the object at i of the canonical text begins, or NOWHERE; `least` bytes tell."""
    cdef const uint8_t *rendered = j.rendered.text
    cdef const uint8_t *at = rendered + lo
    cdef Walker w
    while True:
        at = find(at, rendered + hi, <const uint8_t *>b'{', 1, &j.work)
        if at == NULL:
            return NOWHERE
        w.text = j.kept.text
        w.i = i
        w.i_end = min(i + least + LONGEST_ESCAPE, i_end)
        w.rendered = rendered
        w.r = <uint32_t>(at - rendered)
        w.r_end = hi
        w.is_string = 0
        w.k = w.k_end = 0
        walk_json(&w)
        j.work -= w.r - (at - rendered)
        if w.i == w.i_end or w.i >= i + least:
            return <uint32_t>(at - rendered)
        at += 1


cdef inline uint32_t place_json(Job *j, size_t k, size_t k_end, uint32_t i, uint32_t i_end, uint32_t lo, uint32_t hi,
                         uint32_t least, uint32_t *first, uint32_t *first_i) noexcept nogil:
    """Place the JSON text [i, i_end), of chunks k to k_end, object by object. Gives where the last that was found ends.

    `first`, `first_i`: where the first object that was found begins, in the rendered and in the canonical text.
    """
    cdef Walker w
    cdef uint32_t n_lost = 0, brace, at
    cdef bint is_plain = 1
    start_walk(&w, j, k, k_end, lo, hi)
    w.i = i
    w.i_end = i_end
    while w.i < i_end:
        brace = next_brace(j, w.i, i_end, w.is_string, &is_plain)
        if brace == i_end:
            break
        at = find_object(j, brace, i_end, w.r, hi, least)
        while w.k < k_end and w.ends[w.k] <= brace:  # they end in front of it
            if is_plain and first[0] != NOWHERE:
                j.stops[w.k] = w.r
            w.k += 1
        w.i = brace
        w.is_string = 0
        if at == NOWHERE:
            n_lost += 1
            if n_lost > MAX_LOST_OBJECTS or j.work < 0:
                return w.r
            w.i = brace + 1
            continue
        if first[0] == NOWHERE:
            first[0] = at
            first_i[0] = brace
            mark_begin(j, w.k, at)
        w.r = at
        walk_json(&w)
        j.work -= w.i - brace
    if is_plain and first[0] != NOWHERE:  # brackets and commas that the template left out
        while w.k < k_end:
            j.stops[w.k] = w.r
            w.k += 1
    return w.r


cdef inline uint32_t value_end(const uint8_t *text, uint32_t i, uint32_t i_end) noexcept nogil:
    """Behind the JSON value at i. A number or literal ends at the next quote: what follows it is the key of a member."""
    cdef uint32_t depth = 0
    cdef bint is_string = 0, is_scalar = text[i] != c'"' and text[i] != c'{' and text[i] != c'['
    cdef uint8_t c
    while i < i_end:
        c = text[i]
        i += 1
        if is_string:
            if c == c'\\':
                i += 1
            elif c == c'"':
                is_string = 0
                if depth == 0:
                    break
        elif c == c'"':
            if is_scalar:
                return i - 1
            is_string = 1
        elif c == c'{' or c == c'[':
            depth += 1
        elif (c == c'}' or c == c']') and depth:
            depth -= 1
            if depth == 0:
                break
    return min(i, i_end)


cdef inline bint value_space(const uint8_t *p, uint32_t n, uint32_t *width) noexcept nogil:
    """Whether white space comes next inside a JSON string, and how many bytes of it."""
    cdef uint8_t[4] out
    if p[0] == c'\\':
        return read_escape(p, n, out, width) == 1 and is_space(out[0])
    width[0] = 1
    return is_space(p[0])


cdef inline bint find_value(Job *j, size_t k, size_t k_end, uint32_t i, uint32_t i_end, const uint8_t *prefix, uint32_t n,
                     uint32_t lo, uint32_t hi, uint32_t *end) noexcept nogil:
    """Look for what a JSON string means, from i on, in [lo, hi), and place it."""
    cdef const uint8_t *at = j.rendered.text + lo
    cdef uint32_t rest, width = 0
    cdef Walker w
    if lo >= hi:
        return 0
    while True:
        at = find(at, j.rendered.text + hi, prefix, n, &j.work)
        if at == NULL:
            return 0
        start_walk(&w, j, k, k_end, <uint32_t>(at - j.rendered.text), hi)
        while w.k < k_end and w.ends[w.k] <= i:
            w.k += 1
        w.i = i
        w.i_end = i_end
        walk_unescaped(&w)
        j.work -= w.r - (at - j.rendered.text)
        rest = w.i
        while rest < i_end and value_space(j.kept.text + rest, i_end - rest, &width):
            rest += width
        if rest == i_end:
            break
        memset(j.stops + k, 0xFF, (w.k - k) * sizeof(uint32_t))
        at += 1
    mark_begin(j, k, <uint32_t>(at - j.rendered.text))
    while w.k < k_end:  # the closing quote, and white space that was trimmed
        j.stops[w.k] = w.r
        w.k += 1
    if end != NULL:
        end[0] = w.r
    return 1

# cython: autotestdict=False
"""Binds the chunks of a chain to token positions: how many tokens of the rendered prompt a chunk's end determines.

    canonical   ROLE user │ TEXT 64 B │ TEXT rest │ EXTRA ... │ ROLE assistant       chunks, as sink.pxd cuts and hashes them
                        │           │         │       ┊                      │
    rendered    <|im_start|>user\\nWhat is the weather ...<tool_call>...<|im_end|>\\n<|im_start|>assistant\\n
                                  │           │         │
    tokens      1 2            3  4    5  6 ...                                      of each, the bytes up to its end: `stops`

A content that stands in the rendered text as it is (or trimmed, or as a JSON string) is an anchor: behind the header of its
role, which the template puts there, or by itself if it is long enough not to be met by chance. Anchors are taken in the
order of the chain, each behind the one before. What lies between two of them and is no anchor is settled next: short texts,
JSON that is written otherwise, headers of messages without text. What is left is a gap, interpolated by bytes.

No chunk stands behind the first byte of an anchor that comes after it in the chain: an order of segments that is not the
template's predicts too little, never too much. A rewritten content may be off by what the template put into it.

    bind        O(bytes of body and prompt + tokens); for hostile bodies at most WORK_FACTOR times that
    memory      Aligner: pieces and 4 bytes each; per call about 2 x prompt bytes + 4 x tokens + 26 x chunks, kept up to KEEP_BYTES
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memcpy, memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_calloc, xinf_malloc
from xinf._fast.binding cimport (
    CAPS, ESCAPED, FINAL_HEADER_BYTES, HEADER_BYTES, KEEP_BYTES, LARGE_BODY_BYTES, LONG_BYTES, MARK_BYTES, MISSING, NOWHERE,
    PARTIAL, PREFIX_BYTES, RESYNC_AFAR_BYTES, RESYNC_BYTES, VALUE_BYTES, WHOLE, WORK_FACTOR, Header, Job, Match, Place,
    begin_of, free_job, grow_places, header_of, is_blank, job_bytes, mark_begin, new_job, run_end, window_of,
)
from xinf._fast.canonical cimport TOKEN_ID_BYTES, is_order
from xinf._fast.jsonread cimport ABSENT, NULL_VALUE
from xinf._fast.places cimport (
    find_string, find_text, find_value, match_at, place_json, put_beginning, put_text, value_end, value_space, walk_string,
)
from xinf._fast.rendered cimport PIECE_PADDING, Pieces, count_tokens, join
from xinf._fast.scan cimport TRUNCATE_PROMPT_TOKENS, Scan
from xinf._fast.sink cimport (
    KIND_EXTRA, KIND_INSTRUCTIONS, KIND_PAYLOAD, KIND_PROMPT, KIND_ROLE, KIND_TEXT, KIND_TOKENS, KIND_TOOLS,
    KIND_TOOLS_MARK, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES,
)
from xinf._fast.walk cimport common, find, read_escape

# ---- anchors --------------------------------------------------------------------------------------------------------


cdef Match adjacent(Job *j, const Header *header, size_t k, size_t k_end, Place *place) noexcept nogil:
    """Look for the text of these chunks right behind a header.

    Headers of pending messages of the same role come first.
    """
    cdef const uint8_t *rendered = j.rendered.text
    cdef const uint8_t *at = rendered + j.cursor
    cdef const uint8_t *hi = rendered + window_of(j, k_end)
    cdef uint32_t tries, behind
    cdef Match match
    for tries in range(j.n_pending_roles + 2):
        at = find(at, hi, header.text, header.n_text, &j.work)
        if at == NULL:
            return MISSING
        place.header = <uint32_t>(at - rendered)
        behind = place.header + header.n_text
        match = match_at(j, k, k_end, behind, place)
        if match == WHOLE or (match == PARTIAL and tries == 0):
            return match
        if behind < j.rendered.n_bytes and rendered[behind] == c'"':
            if walk_string(j, k, k_end, behind, j.rendered.n_bytes, &place.end):
                place.start = behind
                return ESCAPED
        at += 1
    return MISSING


cdef void set_anchor(Job *j, size_t k, size_t k_end, Match match, const Place *place) noexcept nogil:
    """Note the place of a text, and go on behind it."""
    if match == WHOLE:
        put_text(j, k, k_end, place)
    elif match == PARTIAL:
        k_end = put_beginning(j, k, k_end, place)
    else:
        mark_begin(j, k, place.start)
    j.cursor = place.end
    j.pending = k_end
    j.n_pending_roles = 0
    j.has_pending_payload = 0


cdef void anchor_message(Job *j, size_t role, size_t k_end) noexcept nogil:
    """A message whose chunks are its role and a text."""
    cdef const Header *header = header_of(j, role)
    cdef size_t k = role + 1
    cdef Place place
    cdef Match match
    if header != NULL and not is_blank(j, k, k_end):  # nothing stands behind any header
        match = adjacent(j, header, k, k_end, &place)
        if match != MISSING:
            settle(j, role, place.header)
            mark_begin(j, role, place.header)
            j.stops[role] = j.role_at = place.start
            set_anchor(j, k, k_end, match, &place)
            return
    j.n_pending_roles += 1
    if j.kept.ends[k_end - 1] - begin_of(j, k) < LONG_BYTES:
        return
    match = find_text(j, k, k_end, j.cursor, window_of(j, k_end), &place)
    if match == MISSING:
        return
    settle(j, k, place.start)
    if j.stops[role] == NOWHERE:
        j.stops[role] = j.role_at = place.start
    set_anchor(j, k, k_end, match, &place)


cdef void anchor_text(Job *j, size_t k, size_t k_end) noexcept nogil:
    """A text without a header of its own: a completion's prompt, instructions, a further part of a message."""
    cdef Place place
    cdef Match match = MISSING
    if j.pending == k and match_at(j, k, k_end, j.cursor, &place) == WHOLE:
        match = WHOLE
    elif j.kept.ends[k_end - 1] - begin_of(j, k) >= LONG_BYTES:
        match = find_text(j, k, k_end, j.cursor, window_of(j, k_end), &place)
    if match == MISSING:
        return
    settle(j, k, place.start)
    set_anchor(j, k, k_end, match, &place)


# ---- what stands between anchors -------------------------------------------------------------------------------------


cdef void settle(Job *j, size_t k_end, uint32_t hi) noexcept nogil:
    """Look for what is pending between the last anchor and `hi`, in the order of the chain."""
    cdef uint32_t at = j.cursor
    cdef size_t k = j.pending, next_k
    cdef uint8_t kind
    while k < k_end:
        kind = j.kept.kinds[k]
        next_k = k + 1
        if kind == KIND_ROLE and next_k < k_end and j.kept.kinds[next_k] == KIND_TEXT:
            next_k = run_end(j, next_k, k_end)
            settle_message(j, k, next_k, &at, hi)
        elif kind == KIND_ROLE:
            settle_role(j, k, &at, hi)
        elif kind == KIND_TEXT or kind == KIND_INSTRUCTIONS:
            next_k = run_end(j, k, k_end)
            settle_text(j, k, next_k, &at, hi)
        elif kind == KIND_TOOLS_MARK:
            if next_k < k_end and j.kept.kinds[next_k] == KIND_TOOLS:
                next_k = run_end(j, next_k, k_end)
                settle_tools(j, k, next_k, &at, hi)
        elif kind == KIND_EXTRA:
            next_k = run_end(j, k, k_end)
            settle_extras(j, k, next_k, &at, hi)
        k = next_k
    j.pending = k_end
    j.n_pending_roles = 0
    j.has_pending_payload = 0


cdef void settle_role(Job *j, size_t k, uint32_t *at, uint32_t hi) noexcept nogil:
    """The next header of this role. It may be another's, so it holds nothing back."""
    cdef const Header *header = header_of(j, k)
    cdef const uint8_t *found
    j.role_at = at[0]
    if header == NULL:
        return
    found = find(j.rendered.text + at[0], j.rendered.text + hi, header.text, header.n_text, &j.work)
    if found != NULL:
        j.begins[k] = <uint32_t>(found - j.rendered.text)
        at[0] = j.stops[k] = j.role_at = j.begins[k] + header.n_text


cdef void settle_message(Job *j, size_t role, size_t k_end, uint32_t *at, uint32_t hi) noexcept nogil:
    """A role with a text. The header met next may be another's, so the text is looked for first, and from before it on."""
    cdef uint32_t lo = at[0]
    cdef size_t k = role + 1
    j.role_at = lo
    if not is_blank(j, k, k_end):
        settle_text(j, k, k_end, at, hi)
        if j.begins[k] != NOWHERE and j.begins[k] >= lo:
            settle_role(j, role, &lo, j.begins[k])
            if j.stops[role] == NOWHERE:
                j.stops[role] = j.role_at = j.begins[k]
            return
    settle_role(j, role, at, hi)
    if is_blank(j, k, k_end):
        settle_text(j, k, k_end, at, hi)


cdef void settle_text(Job *j, size_t k, size_t k_end, uint32_t *at, uint32_t hi) noexcept nogil:
    """A text that is short, or is not there as it is."""
    cdef uint32_t n = j.kept.ends[k_end - 1] - begin_of(j, k)
    cdef Place place
    place.end = at[0]
    if is_blank(j, k, k_end):
        match_at(j, k, k_end, at[0], &place)
    elif find_text(j, k, k_end, at[0], hi, &place) != WHOLE:
        if find_string(j, k, k_end, at[0], hi, &place.end):
            at[0] = place.end
        elif n >= LONG_BYTES and find_text(j, k, k_end, 0, j.cursor, &place) == WHOLE:
            put_text(j, k, k_end, &place)  # in another place than its order says: it holds back what is before it
        return
    place.end = min(place.end, hi)
    put_text(j, k, k_end, &place)
    at[0] = place.end


cdef void settle_tools(Job *j, size_t mark, size_t k_end, uint32_t *at, uint32_t hi) noexcept nogil:
    """The tools, which begin with a mark: what the template writes in front of them."""
    cdef size_t k = mark + 1
    cdef uint32_t first = NOWHERE, first_i = 0
    at[0] = place_json(j, k, k_end, begin_of(j, k), j.kept.ends[k_end - 1], at[0], hi, RESYNC_BYTES, &first, &first_i)
    if first == NOWHERE:
        place_json(j, k, k_end, begin_of(j, k), j.kept.ends[k_end - 1], 0, j.cursor, RESYNC_AFAR_BYTES, &first, &first_i)
    if first != NOWHERE and first_i - begin_of(j, k) <= MARK_BYTES:
        j.stops[mark] = first


cdef void settle_extras(Job *j, size_t k, size_t k_end, uint32_t *at, uint32_t hi) noexcept nogil:
    """The other fields of a message: `"key":value` each, from a chunk of its own on."""
    cdef const uint8_t *text = j.kept.text
    cdef uint32_t i = begin_of(j, k), i_end = j.kept.ends[k_end - 1], value, end, first, first_i = 0
    cdef size_t next_k
    while k < k_end and i < i_end:
        value = value_end(text, i, i_end) + 1  # behind the key and the colon
        if value >= i_end:
            return
        end = value_end(text, value, i_end)
        next_k = k
        while next_k < k_end and j.kept.ends[next_k] <= end:
            next_k += 1
        j.work -= end - i
        if next_k > k:
            if text[value] == c'"':
                settle_value(j, k, next_k, value + 1, end - 1, at, hi)
            elif text[value] == c'{' or text[value] == c'[':
                first = NOWHERE
                at[0] = place_json(j, k, next_k, value, end, at[0], hi, RESYNC_BYTES, &first, &first_i)
        k = next_k
        i = end


cdef void settle_value(Job *j, size_t k, size_t k_end, uint32_t i, uint32_t i_end, uint32_t *at, uint32_t hi) noexcept nogil:
    """A string, [i, i_end) of the canonical text: reasoning stands before the content of its message, or behind it."""
    cdef uint8_t[PREFIX_BYTES + 4] prefix
    cdef uint32_t n = 0, width = 0, from_i
    if i_end < i + VALUE_BYTES:
        return
    while i < i_end and value_space(j.kept.text + i, i_end - i, &width):
        i += width
    from_i = i
    while i < i_end and n < PREFIX_BYTES:
        if j.kept.text[i] == c'\\':
            width = 0
            n += read_escape(j.kept.text + i, i_end - i, prefix + n, &width)
            if width == 0:
                return
            i += width
        else:
            prefix[n] = j.kept.text[i]
            n += 1
            i += 1
    if n < VALUE_BYTES:
        return
    if find_value(j, k, k_end, from_i, i_end, prefix, n, at[0], hi, at):
        return
    find_value(j, k, k_end, from_i, i_end, prefix, n, j.role_at, at[0], NULL)


# ---- the whole ------------------------------------------------------------------------------------------------------


cdef void align(Job *j) noexcept nogil:
    """Find a place for each chunk of a chat or a text."""
    cdef size_t k = 0, k_end, n = j.n - 1 if j.has_answer_header else j.n
    cdef uint8_t kind
    while k < n:
        kind = j.kept.kinds[k]
        if kind == KIND_ROLE and k + 1 < n and j.kept.kinds[k + 1] == KIND_TEXT:
            k_end = run_end(j, k + 1, n)
            anchor_message(j, k, k_end)
            k = k_end
        elif kind == KIND_TEXT or kind == KIND_INSTRUCTIONS:
            k_end = run_end(j, k, n)
            anchor_text(j, k, k_end)
            k = k_end
        else:
            j.n_pending_roles += kind == KIND_ROLE
            j.has_pending_payload |= kind == KIND_PAYLOAD
            k += 1
    if j.has_answer_header:
        k_end = final_header(j, n)
        settle(j, n, <uint32_t>k_end)
        j.stops[n] = j.rendered.n_bytes
    else:
        settle(j, n, j.rendered.n_bytes)


cdef uint32_t final_header(Job *j, size_t k) noexcept nogil:
    """Where the header of the answer begins; the end of the prompt when that is not known."""
    cdef const Header *header = header_of(j, k)
    cdef const uint8_t *end = j.rendered.text + j.rendered.n_bytes
    cdef const uint8_t *lo = j.rendered.text + j.cursor
    cdef const uint8_t *at
    cdef const uint8_t *last = NULL
    if header == NULL:
        return j.rendered.n_bytes
    if end - lo >= header.n_text and memcmp(end - header.n_text, header.text, header.n_text) == 0:
        last = end - header.n_text
    else:
        at = end - FINAL_HEADER_BYTES if end - lo > FINAL_HEADER_BYTES else lo
        while at != NULL:
            at = find(at, end, header.text, header.n_text, &j.work)
            if at != NULL:
                last = at
                at += 1
    if last == NULL:
        return j.rendered.n_bytes
    mark_begin(j, k, <uint32_t>(last - j.rendered.text))
    return j.begins[k]


cdef void count_contents(Job *j) noexcept nogil:
    """Texts, tools and other fields with a place for each of their chunks, and those without."""
    cdef size_t k = 0, k_end
    cdef uint8_t kind
    while k < j.n:
        kind = j.kept.kinds[k]
        k_end = k + 1
        if kind == KIND_TEXT or kind == KIND_INSTRUCTIONS or kind == KIND_TOOLS or kind == KIND_EXTRA:
            k_end = run_end(j, k, j.n)
            while k < k_end and j.stops[k] != NOWHERE:
                k += 1
            if k == k_end:
                j.n_found += 1
            else:
                j.n_gaps += 1
        k = k_end


cdef void hold_back(Job *j) noexcept nogil:
    """No chunk stands behind the first byte of what comes after it in the chain."""
    cdef uint32_t cap = j.rendered.n_bytes
    cdef size_t k = j.n
    while k > 0:
        k -= 1
        if j.stops[k] != NOWHERE:
            j.stops[k] = min(j.stops[k], cap)
        if j.begins[k] != NOWHERE:
            j.begins[k] = min(j.begins[k], cap)
            if j.flags[k] & CAPS:
                cap = j.begins[k]


cdef inline uint32_t weight_of(const Job *j, size_t k) noexcept nogil:
    """The bytes that a chunk takes in a gap."""
    if j.kept.kinds[k] == KIND_PAYLOAD:
        return j.sink.ends[k] - (j.sink.ends[k - 1] if k else 0)
    return j.kept.ends[k] - begin_of(j, k) + (HEADER_BYTES if j.kept.kinds[k] == KIND_ROLE else 0)


cdef void fill_gaps(Job *j) noexcept nogil:
    """Interpolate between chunks with places.

    A role and other fields that were not found stay where the text before them is: a template may leave them out.
    """
    cdef size_t k = 0, end
    cdef uint64_t total, passed, waiting
    cdef uint32_t low = 0, high, width
    while k < j.n:
        if j.stops[k] != NOWHERE:
            low = j.stops[k] = max(low, j.stops[k])
            k += 1
            continue
        end = k
        total = passed = waiting = 0
        while end < j.n and j.stops[end] == NOWHERE:
            total += weight_of(j, end)
            end += 1
        width = 0
        if end < j.n and j.n_found:
            high = j.begins[end]
            if high == NOWHERE:
                high = j.stops[end]
                total += weight_of(j, end)
            width = high - low if high > low else 0
        while k < end:
            waiting += weight_of(j, k)
            if j.kept.kinds[k] != KIND_ROLE and j.kept.kinds[k] != KIND_EXTRA:
                passed += waiting
                waiting = 0
            j.stops[k] = low + (<uint32_t>(<uint64_t>width * passed // total) if total else 0)
            k += 1
        low = j.stops[end - 1]


cdef void bind_ids(Job *j, const uint8_t *tokens, size_t n_tokens, uint32_t *positions) noexcept nogil:
    """A prompt of token ids: as many as the engine was given alike."""
    cdef size_t n_ids = j.kept.n_bytes // TOKEN_ID_BYTES, k
    cdef size_t same = common(j.kept.text, tokens, TOKEN_ID_BYTES * min(n_ids, n_tokens)) // TOKEN_ID_BYTES
    for k in range(j.n):
        positions[k] = <uint32_t>min(<size_t>(j.kept.ends[k] // TOKEN_ID_BYTES), same)
    j.n_found = same == n_ids
    j.n_gaps = same != n_ids


cdef bint bind_chunks(Job *j, const Pieces *pieces, const uint8_t *tokens, size_t n_tokens, uint32_t *positions) noexcept nogil:
    """Positions of the chunks that were kept. 0: no memory."""
    if j.kept.kinds[0] == KIND_TOKENS:
        bind_ids(j, tokens, n_tokens, positions)
        return 1
    if not join(pieces, tokens, n_tokens, &j.rendered) or not grow_places(j):
        return 0
    memset(j.stops, 0xFF, j.n * sizeof(uint32_t))
    memset(j.begins, 0xFF, j.n * sizeof(uint32_t))
    memset(j.flags, 0, j.n)
    j.work = WORK_FACTOR * <int64_t>(j.rendered.n_bytes + j.kept.n_bytes) + (1 << 16)
    align(j)
    count_contents(j)
    hold_back(j)
    fill_gaps(j)
    count_tokens(&j.rendered, j.stops, j.n, positions)
    if j.has_answer_header:
        positions[j.n - 1] = <uint32_t>n_tokens
    return 1


@cython.final
@cython.auto_pickle(False)
cdef class Bound:
    """The chunks of a prompt and where they stand."""

    cdef readonly bytes chain  # (n,) uint64, as Scan.chain gives it
    cdef readonly bytes positions  # (n,) uint32, not decreasing
    cdef readonly int n_found  # contents found in the rendered prompt
    cdef readonly int n_gaps  # contents that the template wrote otherwise, or left out

    def __cinit__(self):
        self.chain = self.positions = b""


@cython.final
@cython.auto_pickle(False)
cdef class Aligner:
    """The pieces of a tokenizer, and what its model's template writes in front of contents."""

    cdef Pieces pieces
    cdef Header *headers
    cdef size_t n_headers
    cdef list kept_headers  # what `headers` points into
    cdef Job *spare  # buffers of the last call, while no other one uses them

    def __init__(self, pieces, *, headers=None):
        """`pieces[id]`: the bytes that a token stands for in a prompt. `headers[role]`: those right before a content.

        Raises: TypeError for what is not bytes, ValueError when the pieces are 4 GiB or more, MemoryError.
        """
        if self.pieces.blob != NULL:
            raise ValueError("an Aligner is made once")
        self.take_pieces(pieces)
        self.take_headers(dict(headers or {}))

    def __dealloc__(self):
        free(self.pieces.blob)
        free(self.pieces.offsets)
        free(self.headers)
        free_job(self.spare)

    cdef void take_pieces(self, object pieces) except *:
        cdef bytes piece
        cdef size_t n = len(pieces), i, total = 0
        cdef uint32_t at = 0, length
        for piece in pieces:
            if piece is None:
                raise TypeError("a piece is None, must be bytes")
            total += PyBytes_GET_SIZE(piece)
        if total + PIECE_PADDING >= UINT32_MAX or n >= UINT32_MAX:
            raise ValueError(f"the pieces have {total} bytes, the limit is {UINT32_MAX}")
        self.pieces.offsets = <uint32_t *>xinf_malloc((n + 1) * sizeof(uint32_t))
        self.pieces.blob = <uint8_t *>xinf_calloc(total + PIECE_PADDING, 1)
        if self.pieces.offsets == NULL or self.pieces.blob == NULL:
            raise MemoryError(f"out of memory for {n} pieces of a tokenizer")
        for i in range(n):
            piece = pieces[i]
            length = <uint32_t>PyBytes_GET_SIZE(piece)
            if at + length > total:
                raise ValueError("the pieces changed while they were read")
            memcpy(self.pieces.blob + at, PyBytes_AS_STRING(piece), length)
            self.pieces.offsets[i] = at
            at += length
        self.pieces.offsets[n] = at
        self.pieces.n = <uint32_t>n

    cdef void take_headers(self, dict headers) except *:
        cdef bytes role, text
        cdef Header *header
        self.kept_headers = []
        self.headers = <Header *>xinf_calloc(len(headers) + 1, sizeof(Header))
        if self.headers == NULL:
            raise MemoryError("out of memory for the headers of roles")
        for role, text in headers.items():
            if role is None or text is None:
                raise TypeError("a header is None, must be bytes")
            if not text:
                continue  # nothing to look for
            self.kept_headers.append((role, text))
            header = &self.headers[self.n_headers]
            header.role = <const uint8_t *>PyBytes_AS_STRING(role)
            header.n_role = <uint32_t>PyBytes_GET_SIZE(role)
            header.text = <const uint8_t *>PyBytes_AS_STRING(text)
            header.n_text = <uint32_t>PyBytes_GET_SIZE(text)
            self.n_headers += 1

    def bind(self, Scan scan not None, tokens, *, seed, order, chunk_bytes):
        """Bind a prompt's chunks to positions among its `tokens`: (n_tokens,) uint32, C-contiguous.

        `seed`, `order` and `chunk_bytes` are those of Scan.chain, which gives the same chain. Nothing is bound of a list of
        several prompts and of one that is truncated: then there are no chunks.
        Raises: ValueError, MemoryError.
        """
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, must be {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}")
        if not is_order(order):
            raise ValueError(f"order is {order}, must be 0, 1 or 2 and flags")
        cdef Py_buffer view
        cdef uint64_t start = <uint64_t>(seed & 0xFFFFFFFFFFFFFFFF)
        PyObject_GetBuffer(tokens, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            if view.itemsize not in (1, 4) or view.len % 4 or view.len // 4 >= UINT32_MAX:
                raise ValueError(f"tokens must be items of 4 bytes, got {view.len} bytes in items of {view.itemsize}")
            return self.bound(scan, <const uint8_t *>view.buf, view.len // 4, start, order, chunk_bytes)
        finally:
            PyBuffer_Release(&view)

    cdef Bound bound(self, Scan scan, const uint8_t *tokens, size_t n_tokens, uint64_t seed, int order, uint32_t chunk_bytes):
        # Whoever calls meanwhile from another thread gets buffers of its own.
        cdef Job *j = self.spare
        self.spare = NULL
        if j == NULL:
            j = new_job()
            if j == NULL:
                raise MemoryError("out of memory for the buffers of an Aligner")
        try:
            return self.bound_by(j, scan, tokens, n_tokens, seed, order, chunk_bytes)
        finally:
            if self.spare == NULL and job_bytes(j) <= KEEP_BYTES:
                self.spare = j
            else:
                free_job(j)

    cdef Bound bound_by(self, Job *j, Scan scan, const uint8_t *tokens, size_t n_tokens, uint64_t seed, int order,
                        uint32_t chunk_bytes):
        cdef Bound out = Bound.__new__(Bound)
        cdef bint is_ok
        cdef uint32_t *positions
        if PyBytes_GET_SIZE(scan.body) < LARGE_BODY_BYTES:
            scan.feed(&j.sink, seed, order, chunk_bytes)
        else:
            with nogil:
                scan.feed(&j.sink, seed, order, chunk_bytes)
        if j.sink.has_failed:
            raise MemoryError("out of memory while hashing a prompt")
        self.begin(j, scan)
        out.chain = PyBytes_FromStringAndSize(<char *>j.sink.hashes, j.n * sizeof(uint64_t))
        out.positions = PyBytes_FromStringAndSize(NULL, j.n * sizeof(uint32_t))
        if j.n == 0:
            return out
        positions = <uint32_t *>PyBytes_AS_STRING(out.positions)
        if PyBytes_GET_SIZE(scan.body) < LARGE_BODY_BYTES:
            is_ok = bind_chunks(j, &self.pieces, tokens, n_tokens, positions)
        else:
            with nogil:
                is_ok = bind_chunks(j, &self.pieces, tokens, n_tokens, positions)
        if not is_ok:
            raise MemoryError("out of memory while binding a prompt")
        out.n_found = <int>j.n_found
        out.n_gaps = <int>j.n_gaps
        return out

    cdef void begin(self, Job *j, Scan scan) noexcept nogil:
        """Set up for the prompt that was fed."""
        cdef uint8_t truncates = scan.fields[TRUNCATE_PROMPT_TOKENS].kind
        j.n = j.sink.n
        if truncates != ABSENT and truncates != NULL_VALUE:
            j.n = 0
        elif j.n and memchr(j.kept.kinds, KIND_PROMPT, j.n) != NULL:
            j.n = 0
        j.headers = self.headers
        j.n_headers = self.n_headers
        j.has_answer_header = j.sink.n_roles > scan.dialogue.n_complete
        j.pending = 0
        j.n_pending_roles = j.has_pending_payload = 0
        j.cursor = j.role_at = 0
        j.n_found = j.n_gaps = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the table and of the buffers that are kept."""
        cdef size_t total = self.n_headers * sizeof(Header)
        if self.pieces.offsets != NULL:
            total += self.pieces.offsets[self.pieces.n] + PIECE_PADDING + 4 * (<size_t>self.pieces.n + 1)
        return total + (job_bytes(self.spare) if self.spare != NULL else 0)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

# cython: autotestdict=False
"""One validating pass over a request body: its routed fields, and the prefix chain of its prompt.

    body   {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}
                     ▲                           ▲                ▲                    ▲
    scan    fields[MODEL]        messages[0].role, .content  (spans: start, end)   fields[STREAM]
                                          │
    chain   seed ─▶ salt, options ─▶ ROLE "user" ─▶ TEXT 64 B ─▶ TEXT rest ─▶ ... ─▶ ROLE "assistant"

The pass keeps spans of the body, never copies; of duplicate keys the last wins. Hashing comes afterwards (`Scan.chain`),
because the model, the salt and the tools may stand behind the messages.

Canonical text, the unit of the chain: a chunk is up to `chunk_bytes` of unescaped text under one kind, restarted after
each role header, content part and message. Kinds are part of the hash, so text never passes for structure. White space
between JSON tokens does not count; `null` counts as absent; payloads of images and audio count as one chunk each.
Memory: at most 48 bytes per message and 16 per content part, both capped; behind a cap the chain ends early, which only
shortens what can match. A scan is O(body), a chain O(prompt).
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast cimport alloc
from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.dialogue cimport (
    PART_FIRST, PART_TEXT, Dialogue, Message, clear_dialogue, read_messages,
)
from xinf._fast.jsonread cimport (
    ABSENT, ARRAY, FALSE, MAX_DEPTH, NULL_VALUE, NUMBER, OBJECT, STRING, TRUE,
    Reader, Span, enter, fail, next_item, read_key, read_string, read_value, same_text, skip_space, unescape,
)
from xinf._fast.sink cimport (
    KIND_CHAT, KIND_COMPLETION, KIND_EXTRA, KIND_INPUT, KIND_INSTRUCTIONS, KIND_OPTION, KIND_PART, KIND_PAYLOAD,
    KIND_PROMPT, KIND_ROLE, KIND_SALT, KIND_TEXT, KIND_TOKENS, KIND_TOOLS, KIND_TOOLS_MARK, MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES, Sink, emit, feed_json, feed_text, mix, mix_json, record,
)

# Where a chat template puts the tools. The shim probes its renderer and publishes one of these per model.
SYSTEM_TOOLS_REST = 0  # leading system and developer messages, tools, other messages (Qwen, Llama 3, most others)
TOOLS_FIRST = 1  # tools, all messages
TOOLS_BEFORE_LAST_USER = 2  # tools stand before the last user message (Mistral)

cdef enum:
    ORDER_TOOLS_FIRST = 1
    ORDER_TOOLS_BEFORE_LAST_USER = 2
    MEDIA_BYTES = 1024  # what a payload counts as in text, so that a large image does not look like a large prompt
    TOKEN_ID_BYTES = 4  # what a token id counts as in text

# Fields of the request that are looked at. Those from OPTION_FIRST on change how the whole prompt is rendered.
cdef enum:
    MODEL, STREAM, MAX_TOKENS, MAX_COMPLETION_TOKENS, MAX_OUTPUT_TOKENS, N, USER, SESSION_ID, CACHE_SALT
    MESSAGES, PROMPT, INPUT, TOOLS, TOOL_CHOICE, ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, INSTRUCTIONS
    OPTION_FIRST, CHAT_TEMPLATE = OPTION_FIRST, CHAT_TEMPLATE_KWARGS, DOCUMENTS, FUNCTIONS, REASONING_EFFORT
    ADD_SPECIAL_TOKENS, TRUNCATE_PROMPT_TOKENS, MM_PROCESSOR_KWARGS
    N_FIELDS
    UNKNOWN = N_FIELDS

cdef struct FieldName:
    const char *name
    uint32_t n

cdef FieldName[N_FIELDS] FIELD_NAMES
cdef list FIELD_TEXTS = [
    b"model", b"stream", b"max_tokens", b"max_completion_tokens", b"max_output_tokens", b"n", b"user", b"session_id",
    b"cache_salt", b"messages", b"prompt", b"input", b"tools", b"tool_choice", b"add_generation_prompt",
    b"continue_final_message", b"instructions", b"chat_template", b"chat_template_kwargs", b"documents", b"functions",
    b"reasoning_effort", b"add_special_tokens", b"truncate_prompt_tokens", b"mm_processor_kwargs",
]  # fmt: skip


def _set_field_names():
    assert len(FIELD_TEXTS) == N_FIELDS
    for i, text in enumerate(FIELD_TEXTS):
        FIELD_NAMES[i].name = PyBytes_AS_STRING(text)  # FIELD_TEXTS keeps it alive
        FIELD_NAMES[i].n = <uint32_t>len(text)


_set_field_names()

# Shapes of `prompt` and `input`.
cdef enum:
    SHAPE_NONE, SHAPE_TEXT, SHAPE_TEXTS, SHAPE_IDS, SHAPE_ID_LISTS, SHAPE_OBJECTS, SHAPE_WRONG

cdef struct Prompt:
    uint8_t shape
    uint64_t n_text_bytes
    uint64_t n_ids

class ScanError(ValueError):
    """The body is not JSON. `offset` is the first byte that cannot be right, `reason` a phrase for people."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


# ---- prompts ------------------------------------------------------------------------------------------------------


cdef bint is_token_id(const uint8_t *base, const Span *span) noexcept nogil:
    return span.kind == NUMBER and span.is_plain and base[span.start] != c'-' and parse_id(base, span) <= UINT32_MAX


cdef uint64_t parse_id(const uint8_t *base, const Span *span) noexcept nogil:
    """The value of a plain number, or something above UINT32_MAX."""
    cdef uint64_t value = 0
    cdef uint32_t i
    if span.n_bytes > 10:
        return UINT32_MAX + <uint64_t>1
    for i in range(span.start, span.end):
        value = value * 10 + (base[i] - c'0')
    return value


cdef bint read_ids(Reader *r, Prompt *prompt) noexcept nogil:
    """An inner array of token ids."""
    cdef Span span
    cdef int more
    cdef bint is_first = 1
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more <= 0:
            return more == 0
        is_first = 0
        if not read_value(r, &span):
            return 0
        if is_token_id(r.base, &span):
            prompt.n_ids += 1
        else:
            prompt.shape = SHAPE_WRONG


cdef bint read_prompt(Reader *r, Prompt *prompt, Span *out) noexcept nogil:
    """A prompt: a string, or an array of strings, of token ids or of arrays of token ids."""
    cdef Span span
    cdef int more
    cdef uint8_t shape
    cdef bint is_first = 1
    memset(prompt, 0, sizeof(Prompt))
    if r.p[0] != c'[':
        if not read_value(r, out):
            return 0
        prompt.shape = SHAPE_TEXT if out.kind == STRING else SHAPE_NONE if out.kind == NULL_VALUE else SHAPE_WRONG
        prompt.n_text_bytes = out.n_bytes if out.kind == STRING else 0
        return 1
    out.start = <uint32_t>(r.p - r.base)
    if not enter(r):
        return 0
    while True:
        more = next_item(r, c']', is_first)
        if more < 0:
            return 0
        if more == 0:
            break
        if r.p[0] == c'[':
            shape = SHAPE_ID_LISTS
            if not read_ids(r, prompt):
                return 0
        else:
            if not read_value(r, &span):
                return 0
            if span.kind == STRING:
                shape = SHAPE_TEXTS
                prompt.n_text_bytes += span.n_bytes
            elif is_token_id(r.base, &span):
                shape = SHAPE_IDS
                prompt.n_ids += 1
            else:
                shape = SHAPE_WRONG
        if is_first and prompt.shape == SHAPE_NONE:
            prompt.shape = shape
        elif prompt.shape != shape:
            prompt.shape = SHAPE_WRONG
        is_first = 0
    out.end = <uint32_t>(r.p - r.base)
    out.n_bytes = out.end - out.start
    out.kind = ARRAY
    return 1


# ---- what is hashed, in which order ----------------------------------------------------------------------------------


cdef void feed_message(Sink *sink, Dialogue *d, const Message *message) noexcept nogil:
    cdef uint32_t i, n_bytes, n_parts = 0
    cdef const Span *span
    # An absent role is an empty one. Escapes in a role change the hash, not the meaning: that can only miss a match.
    emit(sink, sink.body + message.role.start, message.role.end - message.role.start, KIND_ROLE, message.role.n_bytes)
    if message.content.kind == STRING:
        feed_text(sink, &message.content, KIND_TEXT)
    for i in range(message.parts_begin, message.parts_end):
        span = &d.parts.items[i]
        if span.tag == PART_FIRST:
            n_parts += 1
            if n_parts > 1:
                emit(sink, NULL, 0, KIND_PART, 0)
        elif span.tag == PART_TEXT:
            feed_text(sink, span, KIND_TEXT)
        else:
            n_bytes = mix_json(sink, span, KIND_PAYLOAD)
            record(sink, n_bytes if n_bytes < MEDIA_BYTES else MEDIA_BYTES)
    for i in range(message.extras_begin, message.extras_end):
        feed_json(sink, &d.extras.items[i], KIND_EXTRA)


cdef void feed_tools(Sink *sink, const Span *tools, const Span *choice) noexcept nogil:
    mix(sink, choice, KIND_TOOLS_MARK)
    emit(sink, NULL, 0, KIND_TOOLS_MARK, 0)
    feed_json(sink, tools, KIND_TOOLS)


cdef uint32_t tools_position(Dialogue *d, const uint8_t *body, int order) noexcept nogil:
    """How many messages stand before the tools."""
    cdef uint32_t i
    if order == ORDER_TOOLS_FIRST:
        return 0
    if order == ORDER_TOOLS_BEFORE_LAST_USER:
        for i in range(d.n_complete, 0, -1):
            if same_text(body, &d.items[i - 1].role, b"user", 4):
                return i - 1
        return d.n_complete
    for i in range(d.n_complete):
        if not same_text(body, &d.items[i].role, b"system", 6) and not same_text(body, &d.items[i].role, b"developer", 9):
            return i
    return d.n_complete


cdef void feed_prompt(Sink *sink, const Prompt *prompt, const Span *span) noexcept nogil:
    """Hash `prompt` or `input`. Its array was validated, so this walk only looks for the items."""
    cdef Reader r
    cdef Span item
    cdef uint32_t n_prompts = 0
    cdef uint64_t token
    cdef uint32_t narrow
    if prompt.shape == SHAPE_TEXT:
        feed_text(sink, span, KIND_TEXT)
        return
    if prompt.shape == SHAPE_NONE or prompt.shape == SHAPE_WRONG or prompt.shape == SHAPE_OBJECTS:
        return
    r.base = sink.body
    r.end = sink.body + span.end
    r.p = sink.body + span.start + 1
    r.depth_left = MAX_DEPTH
    sink.fill = 0
    while r.p < r.end:
        if r.p[0] == c'"' or r.p[0] == c'[':
            n_prompts += 1
            if n_prompts > 1:
                emit(sink, NULL, 0, KIND_PROMPT, 0)
        if r.p[0] == c'"':
            read_string(&r, &item)
            feed_text(sink, &item, KIND_TEXT)
        elif c'0' <= r.p[0] <= c'9':
            read_value(&r, &item)
            token = parse_id(sink.body, &item)
            narrow = <uint32_t>token
            memcpy(sink.buffer + sink.fill, &narrow, TOKEN_ID_BYTES)
            sink.fill += TOKEN_ID_BYTES
            if sink.fill + TOKEN_ID_BYTES > sink.chunk_bytes:
                flush_tokens(sink)
        else:
            if r.p[0] == c']':
                flush_tokens(sink)
            r.p += 1


cdef void flush_tokens(Sink *sink) noexcept nogil:
    if sink.fill:
        emit(sink, sink.buffer, sink.fill, KIND_TOKENS, sink.fill)
        sink.fill = 0


# ---- the scan -----------------------------------------------------------------------------------------------------


cdef int field_of(const uint8_t *base, const Span *key) noexcept nogil:
    cdef int i
    for i in range(N_FIELDS):
        if FIELD_NAMES[i].n == key.n_bytes and same_text(base, key, FIELD_NAMES[i].name, FIELD_NAMES[i].n):
            return i
    return UNKNOWN


@cython.final
@cython.auto_pickle(False)
cdef class Scan:
    """What `scan` found in a body; keeps the body alive. Spans become Python objects only when asked for."""

    cdef bytes body
    cdef const uint8_t *base
    cdef Span top
    cdef Span[N_FIELDS] fields
    cdef Dialogue dialogue
    cdef bint has_chat_dialogue  # the dialogue is `messages`, not `input`
    cdef Prompt prompt
    cdef Prompt input_prompt
    cdef object model_text

    def __cinit__(self, bytes body not None, int max_depth=256):
        if not 1 <= max_depth <= MAX_DEPTH:
            raise ValueError(f"max_depth is {max_depth}, must be 1 to {MAX_DEPTH}")
        if PyBytes_GET_SIZE(body) >= UINT32_MAX:
            raise ValueError(f"the body has {PyBytes_GET_SIZE(body)} bytes, the limit is {UINT32_MAX}")
        self.body = body
        self.base = <const uint8_t *>PyBytes_AS_STRING(body)
        cdef Reader r
        cdef bint is_ok
        r.base = r.p = self.base
        r.end = self.base + PyBytes_GET_SIZE(body)
        r.depth_left = max_depth
        r.reason = NULL
        r.error_at = NULL
        with nogil:
            is_ok = self.read_body(&r)
        if not is_ok:
            if r.error_at == NULL:
                raise MemoryError("out of memory while scanning a request")
            raise ScanError(r.reason.decode("ascii"), r.error_at - self.base)

    def __dealloc__(self):
        free(self.dialogue.items)
        free(self.dialogue.parts.items)
        free(self.dialogue.extras.items)

    cdef bint read_body(self, Reader *r) noexcept nogil:
        if skip_space(r) == c'{':
            if not self.read_request(r):
                return 0
        elif not read_value(r, &self.top):
            return 0
        skip_space(r)
        return 1 if r.p == r.end else fail(r, r.p, b"unexpected content behind the JSON value")

    cdef bint read_request(self, Reader *r) noexcept nogil:
        cdef Span key
        cdef int more
        cdef bint is_first = 1
        self.top.kind = OBJECT
        if not enter(r):
            return 0
        while True:
            more = next_item(r, c'}', is_first)
            if more <= 0:
                return more == 0
            is_first = 0
            if not read_key(r, &key) or not self.read_field(r, field_of(r.base, &key)):
                return 0

    cdef bint read_field(self, Reader *r, int field) noexcept nogil:
        cdef Span ignored
        if field == UNKNOWN:
            return read_value(r, &ignored)
        if field == MESSAGES and r.p[0] == c'[':
            self.has_chat_dialogue = 1
            self.fields[MESSAGES].kind = ARRAY
            return read_messages(r, &self.dialogue)
        if field == MESSAGES:
            clear_dialogue(&self.dialogue)
        if field == PROMPT:
            return read_prompt(r, &self.prompt, &self.fields[PROMPT])
        if field == INPUT:
            if is_array_of_objects(r):
                return self.read_input_dialogue(r)
            if not self.has_chat_dialogue:
                clear_dialogue(&self.dialogue)
            return read_prompt(r, &self.input_prompt, &self.fields[INPUT])
        return read_value(r, &self.fields[field])

    cdef bint read_input_dialogue(self, Reader *r) noexcept nogil:
        """The Responses API's list of items, which are messages by and large."""
        memset(&self.input_prompt, 0, sizeof(Prompt))
        self.input_prompt.shape = SHAPE_OBJECTS
        if self.has_chat_dialogue:
            return read_value(r, &self.fields[INPUT])
        self.fields[INPUT].kind = ARRAY
        return read_messages(r, &self.dialogue)

    # ---- fields ---------------------------------------------------------------------------------------------------

    cdef bytes unescaped(self, const Span *span):
        """The text of a string span as UTF-8."""
        if span.is_plain:
            return self.body[span.start:span.end]
        cdef bytes out = PyBytes_FromStringAndSize(NULL, span.n_bytes)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
        cdef const uint8_t *p = self.base + span.start
        cdef const uint8_t *end = self.base + span.end
        while p < end:
            if p[0] == c'\\':
                to += unescape(&p, to)
            else:
                to[0] = p[0]
                to += 1
                p += 1
        return out

    cdef object integer(self, const Span *span):
        """A plain integer of at most 63 bits, or None."""
        if span.kind != NUMBER or not span.is_plain or span.n_bytes > 20:
            return None
        value = int(self.body[span.start:span.end])
        return value if -INT64_MAX <= value <= INT64_MAX else None

    @property
    def model(self) -> str | None:
        """The model asked for; None when absent or no string."""
        if self.model_text is None and self.fields[MODEL].kind == STRING:
            self.model_text = self.unescaped(&self.fields[MODEL]).decode("utf-8")
        return self.model_text

    @property
    def stream(self) -> bool:
        return self.fields[STREAM].kind == TRUE

    @property
    def max_tokens(self) -> int | None:
        """Tokens to generate at most: max_completion_tokens, else max_tokens, else max_output_tokens."""
        for field in (MAX_COMPLETION_TOKENS, MAX_TOKENS, MAX_OUTPUT_TOKENS):
            value = self.integer(&self.fields[<int>field])
            if value is not None:
                return value
        return None

    @property
    def n(self) -> int:
        """Answers asked for; 1 when absent."""
        value = self.integer(&self.fields[N])
        return 1 if value is None else value

    @property
    def session(self) -> bytes | None:
        """session_id, else user, as UTF-8; None when absent or empty."""
        for field in (SESSION_ID, USER):
            if self.fields[<int>field].kind == STRING and self.fields[<int>field].n_bytes:
                return self.unescaped(&self.fields[<int>field])
        return None

    @property
    def cache_salt(self) -> bytes | None:
        """What keeps this request's cache apart. The chain contains it already."""
        return self.unescaped(&self.fields[CACHE_SALT]) if self.fields[CACHE_SALT].kind == STRING else None

    @property
    def kind(self) -> str:
        """"chat" (messages), "completion" (prompt), "embedding" (input of texts or token ids), else "other"."""
        if self.fields[MESSAGES].kind != ABSENT:
            return "chat"
        if self.fields[PROMPT].kind != ABSENT:
            return "completion"
        if self.fields[INPUT].kind != ABSENT and self.input_prompt.shape != SHAPE_OBJECTS:
            return "embedding"
        return "other"

    @property
    def has_tools(self) -> bool:
        """Whether there is a tools array with something in it."""
        cdef const Span *tools = &self.fields[TOOLS]
        cdef uint32_t i
        if tools.kind == ARRAY:
            for i in range(tools.start + 1, tools.end - 1):
                if self.base[i] > c' ':
                    return True
        return False

    @property
    def n_messages(self) -> int:
        return self.dialogue.n

    @property
    def n_token_ids(self) -> int:
        """Token ids given instead of text, over all prompts."""
        return self.prompt.n_ids + self.input_prompt.n_ids

    @property
    def n_text_bytes(self) -> int:
        """Bytes of prompt text, unescaped, with roles and tools; a token id counts 4, a payload 1024 at most."""
        cdef Dialogue *d = &self.dialogue
        cdef uint64_t total = self.prompt.n_text_bytes + self.input_prompt.n_text_bytes
        cdef uint32_t i
        total += TOKEN_ID_BYTES * (self.prompt.n_ids + self.input_prompt.n_ids)
        for i in range(d.n):
            total += d.items[i].role.n_bytes
            if d.items[i].content.kind == STRING:
                total += d.items[i].content.n_bytes
            for j in range(d.items[i].parts_begin, d.items[i].parts_end):
                if d.parts.items[j].tag == PART_TEXT:
                    total += d.parts.items[j].n_bytes
                else:
                    total += min(d.parts.items[j].n_bytes, <uint32_t>MEDIA_BYTES)
            for j in range(d.items[i].extras_begin, d.items[i].extras_end):
                total += d.extras.items[j].n_bytes
        if self.has_tools:
            total += self.fields[TOOLS].n_bytes
        if self.fields[INSTRUCTIONS].kind == STRING:
            total += self.fields[INSTRUCTIONS].n_bytes
        return total

    @property
    def type_error(self) -> tuple[str, str] | None:
        """The first routed field of a wrong type and what was expected: ("messages[2].role", "a string")."""
        if self.top.kind != OBJECT:
            return "body", "an object"
        for field, expected in (
            (MODEL, "a string"), (STREAM, "a boolean"), (MAX_TOKENS, "an integer"), (MAX_COMPLETION_TOKENS, "an integer"),
            (MAX_OUTPUT_TOKENS, "an integer"), (N, "an integer"), (USER, "a string"), (SESSION_ID, "a string"),
            (CACHE_SALT, "a string"), (TOOLS, "an array"),
        ):  # fmt: skip
            if not self.is_of_type(&self.fields[<int>field], expected):
                return (<bytes>FIELD_TEXTS[<int>field]).decode(), expected
        if self.fields[MESSAGES].kind not in (ABSENT, ARRAY):
            return "messages", "an array"
        if self.prompt.shape == SHAPE_WRONG:
            return "prompt", "a string, an array of strings or an array of token ids"
        if self.input_prompt.shape == SHAPE_WRONG:
            return "input", "a string, an array of strings or an array of token ids"
        # Items of the Responses API are of many shapes; only the chat's own are checked.
        if self.has_chat_dialogue and self.dialogue.wrong_field != NULL:
            inner = self.dialogue.wrong_field.decode()
            return (f"messages[{self.dialogue.wrong_index}].{inner}" if inner else "messages",
                    self.dialogue.wrong_expected.decode())
        return None

    cdef bint is_of_type(self, const Span *span, str expected):
        if span.kind == ABSENT or span.kind == NULL_VALUE:
            return True
        if expected == "a string":
            return span.kind == STRING
        if expected == "a boolean":
            return span.kind == TRUE or span.kind == FALSE
        if expected == "an array":
            return span.kind == ARRAY
        return self.integer(span) is not None

    # ---- chain ----------------------------------------------------------------------------------------------------

    def chain(self, seed: int, order: int = 0, chunk_bytes: int = 64) -> bytes:
        """Hash the prompt into a chain of little-endian uint64, one per chunk.

        `seed`: whatever else must keep prefixes apart (model, LoRA, tenant), modulo 2**64. `order`: SYSTEM_TOOLS_REST,
        TOOLS_FIRST or TOOLS_BEFORE_LAST_USER. Empty for a body without a prompt. Raises: ValueError, MemoryError.
        """
        return self.chain_with_ends(seed, order, chunk_bytes)[0]

    def chain_with_ends(self, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[bytes, bytes]:
        """The same, and per chunk the bytes of canonical text up to its end (uint32, not decreasing)."""
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, must be {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}")
        if order not in (SYSTEM_TOOLS_REST, TOOLS_FIRST, TOOLS_BEFORE_LAST_USER):
            raise ValueError(f"order is {order}, must be 0, 1 or 2")
        cdef Sink sink
        cdef uint64_t start = <uint64_t>(seed & 0xFFFFFFFFFFFFFFFF)
        cdef int tools_order = order
        cdef bint has_tools = self.has_tools
        sink.body = self.base
        sink.hashes = NULL
        sink.ends = NULL
        sink.n = sink.capacity = 0
        sink.n_bytes = 0
        sink.fill = 0
        sink.chunk_bytes = chunk_bytes
        sink.has_failed = 0
        sink.state = start
        try:
            with nogil:
                self.feed(&sink, tools_order, has_tools)
            if sink.has_failed:
                raise MemoryError("out of memory while hashing a prompt")
            if sink.n == 0:
                return b"", b""
            return (PyBytes_FromStringAndSize(<char *>sink.hashes, sink.n * sizeof(uint64_t)),
                    PyBytes_FromStringAndSize(<char *>sink.ends, sink.n * sizeof(uint32_t)))
        finally:
            free(sink.hashes)
            free(sink.ends)

    cdef void feed(self, Sink *sink, int order, bint has_tools) noexcept nogil:
        cdef int i
        mix(sink, &self.fields[CACHE_SALT], KIND_SALT)
        for i in range(OPTION_FIRST, N_FIELDS):
            mix(sink, &self.fields[i], KIND_OPTION + i - OPTION_FIRST)
        if self.fields[MESSAGES].kind == ARRAY or self.input_prompt.shape == SHAPE_OBJECTS:
            self.feed_dialogue(sink, order, has_tools)
        elif self.fields[PROMPT].kind != ABSENT:
            sink.state = chunk_hash(sink.state, NULL, 0, KIND_COMPLETION)
            feed_prompt(sink, &self.prompt, &self.fields[PROMPT])
        elif self.fields[INPUT].kind != ABSENT:
            sink.state = chunk_hash(sink.state, NULL, 0, KIND_INPUT)
            feed_prompt(sink, &self.input_prompt, &self.fields[INPUT])

    cdef void feed_dialogue(self, Sink *sink, int order, bint has_tools) noexcept nogil:
        cdef Dialogue *d = &self.dialogue
        cdef uint32_t i, n_before = tools_position(d, sink.body, order)
        sink.state = chunk_hash(sink.state, NULL, 0, KIND_CHAT)
        if self.fields[INSTRUCTIONS].kind == STRING:
            feed_text(sink, &self.fields[INSTRUCTIONS], KIND_INSTRUCTIONS)
        for i in range(d.n_complete + 1):
            if i == n_before and has_tools:
                feed_tools(sink, &self.fields[TOOLS], &self.fields[TOOL_CHOICE])
            if i < d.n_complete:
                feed_message(sink, d, &d.items[i])
        # The header of the answer, which the next turn begins its own copy of the answer with.
        if (d.n and not d.is_cut and self.fields[ADD_GENERATION_PROMPT].kind != FALSE
                and self.fields[CONTINUE_FINAL_MESSAGE].kind != TRUE):
            emit(sink, <const uint8_t *>b"assistant", 9, KIND_ROLE, 9)


cdef bint is_array_of_objects(Reader *r) noexcept nogil:
    """Look ahead, without moving, whether an array with an object in front starts here."""
    cdef const uint8_t *p = r.p
    cdef bint found
    if p[0] != c'[':
        return 0
    r.p += 1
    found = skip_space(r) == c'{'
    r.p = p
    return found


def scan(body: bytes, max_depth: int = 256) -> Scan:
    """Validate a JSON body and find its routed fields. Of duplicate keys the last wins.

    Raises: ScanError when it is not JSON or nested deeper than `max_depth` (1 to 1024); MemoryError.
    """
    return Scan(body, max_depth)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

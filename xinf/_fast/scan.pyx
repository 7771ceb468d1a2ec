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
from libc.string cimport memset

from xinf._fast cimport alloc
from xinf._fast.canonical cimport (
    MEDIA_BYTES, ORDER_DEVELOPER_HOISTED, ORDER_MASK, ORDER_THINKING_LAST, ORDER_TOLD_OF_TOOLS, ORDER_TOOLS_BEFORE_LAST_USER,
    ORDER_TOOLS_FIRST, TOKEN_ID_BYTES, feed_message, feed_prompt, feed_tools, has_developer, is_leading, is_order,
    is_thinking_only, tools_position,
)
from xinf._fast.chunkhash cimport chunk_hash, hash_bytes
from xinf._fast.dialogue cimport PART_FIRST, PART_TEXT, Dialogue, Message, clear_dialogue, read_messages
from xinf._fast.jsonread cimport (
    ABSENT, ARRAY, FALSE, MAX_DEPTH, NULL_VALUE, NUMBER, OBJECT, STRING, TRUE,
    Reader, Span, enter, fail, next_item, read_key, read_string, read_value, same_text, skip_space, unescape,
)
from xinf._fast.prompt cimport (
    SHAPE_ID_LISTS, SHAPE_IDS, SHAPE_OBJECTS, SHAPE_TEXT, SHAPE_TEXTS, SHAPE_WRONG, Prompt, parse_id, read_prompt,
)
from xinf._fast.sink cimport (
    KIND_CHAT, KIND_COMPLETION, KIND_INPUT, KIND_INSTRUCTIONS, KIND_OPTION, KIND_SALT, KIND_TOOLS_MARK, MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES, Sink, Written, emit_role, feed_text, fill_json, free_sink, init_sink, mix,
)

# Where a chat template puts the tools. The shim probes its renderer and publishes one of these per model.
SYSTEM_TOOLS_REST = 0  # leading system and developer messages, tools, other messages (Qwen, Llama 3, most others)
TOOLS_FIRST = ORDER_TOOLS_FIRST  # tools, all messages
TOOLS_BEFORE_LAST_USER = ORDER_TOOLS_BEFORE_LAST_USER  # tools stand before the last user message (Mistral)
# Added to one of these:
TOLD_OF_TOOLS = ORDER_TOLD_OF_TOOLS  # that there are tools changes what stands before everything (Llama 3)
DEVELOPER_HOISTED = ORDER_DEVELOPER_HOISTED  # with a developer message, it and all system messages are moved to the front
# enable_thinking changes nothing but the header of the answer (Qwen 3)
THINKING_LAST = ORDER_THINKING_LAST
# As engines publish them among their segments.
ORDER_FLAGS = {"has_tools": TOLD_OF_TOOLS, "developer": DEVELOPER_HOISTED, "thinking": THINKING_LAST}


def order_of(segments) -> int:
    """Give the number, for `Scan.chain`, of an order as engines publish it: names of segments and flags."""
    flags = sum([flag for name, flag in ORDER_FLAGS.items() if name in segments])
    told = [name for name in segments if name not in ORDER_FLAGS]
    if told[:1] == ["tools"]:
        return TOOLS_FIRST + flags
    return (TOOLS_BEFORE_LAST_USER if "last_user" in told else SYSTEM_TOOLS_REST) + flags

cdef enum:
    # Other threads may run meanwhile from here on. Below, that would cost more than it gives: some 20 us of theirs at most.
    LARGE_BODY_BYTES = 1 << 18

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


class ScanError(ValueError):
    """The body is not JSON. `offset` is the first byte that cannot be right, `reason` a phrase for people."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


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
        if PyBytes_GET_SIZE(body) < LARGE_BODY_BYTES:
            is_ok = self.read_body(&r)
        else:
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
        return self.is_stream()

    cdef bint is_stream(self) noexcept nogil:
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

    cdef bint asks_for_one(self) noexcept nogil:
        """Whether `n` is 1, without an object."""
        cdef const Span *span = &self.fields[N]
        if span.kind != NUMBER or not span.is_plain or span.n_bytes > 20:
            return 1
        return span.n_bytes == 1 and self.base[span.start] == c'1'

    @property
    def session(self) -> bytes | None:
        """session_id, else user, as UTF-8; None when absent or empty."""
        for field in (SESSION_ID, USER):
            if self.fields[<int>field].kind == STRING and self.fields[<int>field].n_bytes:
                return self.unescaped(&self.fields[<int>field])
        return None

    cdef bint session_hash(self, uint64_t *out) except -1:
        """What prefix.hash_bytes gives for the session; 0 when there is none."""
        cdef const Span *span = &self.fields[SESSION_ID]
        cdef bytes text
        if span.kind != STRING or not span.n_bytes:
            span = &self.fields[USER]
        if span.kind != STRING or not span.n_bytes:
            return 0
        if span.is_plain:
            out[0] = chunk_hash(0, self.base + span.start, span.n_bytes, 0)
            return 1
        text = self.unescaped(span)
        out[0] = hash_bytes(text)
        return 1

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
        return self.names_tools()

    cdef bint names_tools(self) noexcept nogil:
        cdef const Span *tools = &self.fields[TOOLS]
        cdef uint32_t i
        if tools.kind == ARRAY:
            for i in range(tools.start + 1, tools.end - 1):
                if self.base[i] > c' ':
                    return 1
        return 0

    @property
    def n_messages(self) -> int:
        return self.dialogue.n

    @property
    def n_token_ids(self) -> int:
        """Token ids given instead of text, over all prompts."""
        return self.token_ids()

    cdef uint64_t token_ids(self) noexcept nogil:
        return self.prompt.n_ids + self.input_prompt.n_ids

    @property
    def n_text_bytes(self) -> int:
        """Bytes of prompt text, unescaped, with roles and tools; a token id counts 4, a payload 1024 at most."""
        return self.text_bytes()

    cdef uint64_t text_bytes(self) noexcept nogil:
        cdef Dialogue *d = &self.dialogue
        cdef uint64_t total = self.prompt.n_text_bytes + self.input_prompt.n_text_bytes
        cdef uint32_t i, j
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
        if self.names_tools():
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
        TOOLS_FIRST or TOOLS_BEFORE_LAST_USER, plus flags (ORDER_FLAGS). Empty for a body without a prompt.

        Raises: ValueError, MemoryError.
        """
        return self.chained(seed, order, chunk_bytes, 0)[0]

    def chain_with_ends(self, seed: int, order: int = 0, chunk_bytes: int = 64) -> tuple[bytes, bytes]:
        """The same, and per chunk the bytes of canonical text up to its end (uint32, not decreasing)."""
        return self.chained(seed, order, chunk_bytes, 1)

    cdef tuple chained(self, object seed, object order, object chunk_bytes, bint has_ends):
        if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}, must be {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}")
        if not is_order(order):
            raise ValueError(f"order is {order}, must be 0, 1 or 2 and flags")
        cdef Sink sink
        cdef uint64_t start = <uint64_t>(seed & 0xFFFFFFFFFFFFFFFF)
        cdef int tools_order = order
        cdef uint32_t size = chunk_bytes
        init_sink(&sink)
        try:
            if PyBytes_GET_SIZE(self.body) < LARGE_BODY_BYTES:
                self.feed(&sink, start, tools_order, size)
            else:
                with nogil:
                    self.feed(&sink, start, tools_order, size)
            if sink.has_failed:
                raise MemoryError("out of memory while hashing a prompt")
            if sink.n == 0:
                return b"", b""
            hashes = PyBytes_FromStringAndSize(<char *>sink.hashes, sink.n * sizeof(uint64_t))
            ends = PyBytes_FromStringAndSize(<char *>sink.ends, sink.n * sizeof(uint32_t)) if has_ends else None
            return hashes, ends
        finally:
            free_sink(&sink)

    cdef void feed(self, Sink *sink, uint64_t seed, int order, uint32_t chunk_bytes) noexcept nogil:
        """Hash the prompt into the sink, which keeps its memory from one prompt to the next."""
        cdef int i
        sink.body = self.base
        sink.n = 0
        sink.n_roles = 0
        sink.n_bytes = 0
        sink.fill = 0
        sink.chunk_bytes = chunk_bytes
        sink.has_failed = 0
        sink.is_watched = sink.kept != NULL
        if sink.is_watched:
            sink.kept.n_bytes = 0
        sink.state = seed
        mix(sink, &self.fields[CACHE_SALT], KIND_SALT)
        for i in range(OPTION_FIRST, N_FIELDS):
            if not (i == CHAT_TEMPLATE_KWARGS and self.thinks_last(order)):
                mix(sink, &self.fields[i], KIND_OPTION + i - OPTION_FIRST)
        if self.fields[MESSAGES].kind == ARRAY or self.input_prompt.shape == SHAPE_OBJECTS:
            self.feed_dialogue(sink, order)
        elif self.fields[PROMPT].kind != ABSENT:
            sink.state = chunk_hash(sink.state, NULL, 0, KIND_COMPLETION)
            feed_prompt(sink, &self.prompt, &self.fields[PROMPT])
        elif self.fields[INPUT].kind != ABSENT:
            sink.state = chunk_hash(sink.state, NULL, 0, KIND_INPUT)
            feed_prompt(sink, &self.input_prompt, &self.fields[INPUT])

    cdef bint thinks_last(self, int order) noexcept nogil:
        return order & ORDER_THINKING_LAST and is_thinking_only(&self.fields[CHAT_TEMPLATE_KWARGS], self.base)

    cdef void feed_dialogue(self, Sink *sink, int order) noexcept nogil:
        cdef Dialogue *d = &self.dialogue
        cdef uint32_t i, n_before = tools_position(d, sink.body, order)
        cdef bint has_tools = self.names_tools()
        cdef bint is_hoisted = order & ORDER_DEVELOPER_HOISTED and has_developer(d, sink.body)
        sink.state = chunk_hash(sink.state, NULL, 0, KIND_CHAT)
        if has_tools and order & ORDER_TOLD_OF_TOOLS:
            sink.state = chunk_hash(sink.state, NULL, 0, KIND_TOOLS_MARK)
        if self.fields[INSTRUCTIONS].kind == STRING:
            feed_text(sink, &self.fields[INSTRUCTIONS], KIND_INSTRUCTIONS)
        if is_hoisted:
            if has_tools and order & ORDER_MASK == ORDER_TOOLS_FIRST:
                feed_tools(sink, &self.fields[TOOLS], &self.fields[TOOL_CHOICE])
                has_tools = 0
            for i in range(d.n_complete):
                if is_leading(&d.items[i], sink.body):
                    feed_message(sink, d, &d.items[i])
        for i in range(d.n_complete + 1):
            if i == n_before and has_tools:
                feed_tools(sink, &self.fields[TOOLS], &self.fields[TOOL_CHOICE])
            if i < d.n_complete and not (is_hoisted and is_leading(&d.items[i], sink.body)):
                feed_message(sink, d, &d.items[i])
        # The header of the answer, which the next turn begins its own copy of the answer with.
        if (d.n and not d.is_cut and self.fields[ADD_GENERATION_PROMPT].kind != FALSE
                and self.fields[CONTINUE_FINAL_MESSAGE].kind != TRUE):
            if self.thinks_last(order):
                mix(sink, &self.fields[CHAT_TEMPLATE_KWARGS], KIND_OPTION + CHAT_TEMPLATE_KWARGS - OPTION_FIRST)
            emit_role(sink, <const uint8_t *>b"assistant", 9, 9)

    # ---- for people -----------------------------------------------------------------------------------------------

    def canonical(self, order: int = 0) -> list[tuple[str, bytes]]:
        """The prompt as the chain goes through it: pieces of ("role", "text", "json", "payload" or "ids", bytes).

        The lengths add up to the ends of `chain_with_ends`; a payload is cut to what it counts as, token ids have 4 bytes
        each. Slow: for showing where a match ends. Raises: ValueError.
        """
        if not is_order(order):
            raise ValueError(f"order is {order}, must be 0, 1 or 2 and flags")
        pieces = []
        if self.fields[MESSAGES].kind == ARRAY or self.input_prompt.shape == SHAPE_OBJECTS:
            self.tell_dialogue(pieces, order)
        elif self.fields[PROMPT].kind != ABSENT:
            self.tell_prompt(pieces, &self.prompt, &self.fields[PROMPT])
        elif self.fields[INPUT].kind != ABSENT:
            self.tell_prompt(pieces, &self.input_prompt, &self.fields[INPUT])
        return [piece for piece in pieces if piece[1]]

    cdef tell_dialogue(self, list pieces, int order):
        """What feed_dialogue hashes."""
        cdef Dialogue *d = &self.dialogue
        cdef uint32_t i, n_before = tools_position(d, self.base, order)
        cdef bint has_tools = self.names_tools()
        cdef bint is_hoisted = order & ORDER_DEVELOPER_HOISTED and has_developer(d, self.base)
        if self.fields[INSTRUCTIONS].kind == STRING:
            pieces.append(("text", self.unescaped(&self.fields[INSTRUCTIONS])))
        if is_hoisted:
            if has_tools and order & ORDER_MASK == ORDER_TOOLS_FIRST:
                pieces.append(("json", self.written(&self.fields[TOOLS], UINT32_MAX)))
                has_tools = 0
            for i in range(d.n_complete):
                if is_leading(&d.items[i], self.base):
                    self.tell_message(pieces, &d.items[i])
        for i in range(d.n_complete + 1):
            if i == n_before and has_tools:
                pieces.append(("json", self.written(&self.fields[TOOLS], UINT32_MAX)))
            if i < d.n_complete and not (is_hoisted and is_leading(&d.items[i], self.base)):
                self.tell_message(pieces, &d.items[i])
        if (d.n and not d.is_cut and self.fields[ADD_GENERATION_PROMPT].kind != FALSE
                and self.fields[CONTINUE_FINAL_MESSAGE].kind != TRUE):
            pieces.append(("role", b"assistant"))

    cdef tell_message(self, list pieces, const Message *message):
        """What feed_message hashes."""
        cdef Dialogue *d = &self.dialogue
        cdef uint32_t i
        pieces.append(("role", self.unescaped(&message.role)))
        if message.content.kind == STRING:
            pieces.append(("text", self.unescaped(&message.content)))
        for i in range(message.parts_begin, message.parts_end):
            if d.parts.items[i].tag == PART_TEXT:
                pieces.append(("text", self.unescaped(&d.parts.items[i])))
            elif d.parts.items[i].tag != PART_FIRST:
                pieces.append(("payload", self.written(&d.parts.items[i], MEDIA_BYTES)))
        for i in range(message.extras_begin, message.extras_end):
            pieces.append(("json", self.written(&d.extras.items[i], UINT32_MAX)))

    cdef tell_prompt(self, list pieces, const Prompt *prompt, const Span *span):
        """What feed_prompt hashes."""
        cdef Reader r
        cdef Span item
        if prompt.shape == SHAPE_TEXT:
            pieces.append(("text", self.unescaped(span)))
        if prompt.shape != SHAPE_TEXTS and prompt.shape != SHAPE_IDS and prompt.shape != SHAPE_ID_LISTS:
            return
        r.base = self.base
        r.end = self.base + span.end
        r.p = self.base + span.start + 1
        r.depth_left = MAX_DEPTH
        while r.p < r.end:
            if r.p[0] == c'"':
                read_string(&r, &item)
                pieces.append(("text", self.unescaped(&item)))
            elif c'0' <= r.p[0] <= c'9':
                read_value(&r, &item)
                pieces.append(("ids", (<uint32_t>parse_id(self.base, &item)).to_bytes(TOKEN_ID_BYTES, "little")))
            else:
                r.p += 1

    cdef bytes written(self, const Span *span, uint32_t limit):
        """A value as written, without the white space between its tokens, up to `limit` bytes."""
        cdef Written json
        cdef uint32_t size = min(limit, span.end - span.start)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
        json.p = self.base + span.start
        json.end = self.base + span.end
        json.is_string = span.kind == STRING
        json.is_escaped = 0
        return out[:fill_json(&json, <uint8_t *>PyBytes_AS_STRING(out), size)]


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

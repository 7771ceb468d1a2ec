# What decide.pyx needs of a scanned body. See scan.pyx.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from xinf._fast.dialogue cimport Dialogue, Message
from xinf._fast.jsonread cimport Reader, Span
from xinf._fast.prompt cimport Prompt
from xinf._fast.sink cimport Sink

# Fields of the request that are looked at. Those from OPTION_FIRST on change how the whole prompt is rendered.
cdef enum:
    MODEL, STREAM, MAX_TOKENS, MAX_COMPLETION_TOKENS, MAX_OUTPUT_TOKENS, N, USER, SESSION_ID, CACHE_SALT
    MESSAGES, PROMPT, INPUT, TOOLS, TOOL_CHOICE, ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, INSTRUCTIONS
    OPTION_FIRST, CHAT_TEMPLATE = OPTION_FIRST, CHAT_TEMPLATE_KWARGS, DOCUMENTS, FUNCTIONS, REASONING_EFFORT
    ADD_SPECIAL_TOKENS, TRUNCATE_PROMPT_TOKENS, MM_PROCESSOR_KWARGS
    N_FIELDS
    UNKNOWN = N_FIELDS


@cython.final
cdef class Scan:
    cdef bytes body
    cdef const uint8_t *base
    cdef Span top
    cdef Span[N_FIELDS] fields
    cdef Dialogue dialogue
    cdef bint has_chat_dialogue  # the dialogue is `messages`, not `input`
    cdef Prompt prompt
    cdef Prompt input_prompt
    cdef object model_text

    cdef bint read_body(self, Reader *r) noexcept nogil
    cdef bint read_request(self, Reader *r) noexcept nogil
    cdef bint read_field(self, Reader *r, int field) noexcept nogil
    cdef bint read_input_dialogue(self, Reader *r) noexcept nogil
    cdef bytes unescaped(self, const Span *span)
    cdef object integer(self, const Span *span)
    cdef bint is_of_type(self, const Span *span, str expected)
    cdef bint is_stream(self) noexcept nogil
    cdef bint asks_for_one(self) noexcept nogil
    cdef bint names_tools(self) noexcept nogil
    cdef uint64_t token_ids(self) noexcept nogil
    cdef uint64_t text_bytes(self) noexcept nogil
    cdef bint session_hash(self, uint64_t *out) except -1
    cdef tuple chained(self, object seed, object order, object chunk_bytes, bint has_ends)
    cdef void feed(self, Sink *sink, uint64_t seed, int order, uint32_t chunk_bytes) noexcept nogil
    cdef bint thinks_last(self, int order) noexcept nogil
    cdef void feed_dialogue(self, Sink *sink, int order) noexcept nogil
    cdef tell_dialogue(self, list pieces, int order)
    cdef tell_message(self, list pieces, const Message *message)
    cdef tell_prompt(self, list pieces, const Prompt *prompt, const Span *span)
    cdef bytes written(self, const Span *span, uint32_t limit)

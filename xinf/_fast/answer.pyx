# cython: autotestdict=False
"""Chunks of an answer, chained behind the prompt that it answers: what the next prompt of the conversation will have.

    prompt of this turn   ... │ ROLE assistant              the last chunk of its chain
    prompt of the next    ... │ ROLE assistant │ TEXT 64 B │ TEXT rest │ ROLE user ...
                                                 └─ these ─┴───────────┘

    continue_chain  O(bytes of text + tokens)
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.sink cimport KIND_TEXT, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES


def continue_chain(bytes chain not None, bytes text not None, ends, *, n_before: int, chunk_bytes: int) -> tuple[bytes, bytes]:
    """Give hashes, (n,) uint64, and positions, (n,) uint32, of the chunks of an answer.

    `chain`: of the prompt, (m,) uint64. `text`: of the answer, UTF-8. `ends`: (n_tokens,) uint32, not decreasing: the bytes
    of text up to the end of each of its tokens. `n_before`: tokens of the prompt, which positions count from. A chunk that
    ends behind the last token is left out. Raises: ValueError, MemoryError.
    """
    cdef Py_buffer view
    if PyBytes_GET_SIZE(chain) == 0 or PyBytes_GET_SIZE(chain) % 8:
        raise ValueError(f"chain has {PyBytes_GET_SIZE(chain)} bytes, must be one or more hashes of 8")
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES:
        raise ValueError(f"chunk_bytes is {chunk_bytes}, must be {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES}")
    PyObject_GetBuffer(ends, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    try:
        if view.itemsize != 4:
            raise ValueError(f"ends must be items of 4 bytes, not {view.itemsize}")
        n_tokens = view.len // 4
        if not 0 <= n_before <= UINT32_MAX - n_tokens:
            raise ValueError(f"n_before is {n_before}, with {n_tokens} tokens behind it")
        return chained(chain, text, <const uint32_t *>view.buf, n_tokens, n_before, chunk_bytes)
    finally:
        PyBuffer_Release(&view)


cdef tuple chained(
    bytes chain, bytes text, const uint32_t *ends, size_t n_tokens, uint32_t n_before, uint32_t chunk_bytes
):
    cdef size_t n_text = PyBytes_GET_SIZE(text), start = 0, token = 0, n = 0, end
    cdef size_t n_chunks = (n_text + chunk_bytes - 1) // chunk_bytes
    cdef bytes hashes = PyBytes_FromStringAndSize(NULL, n_chunks * sizeof(uint64_t))
    cdef bytes positions = PyBytes_FromStringAndSize(NULL, n_chunks * sizeof(uint32_t))
    cdef uint64_t *to_hashes = <uint64_t *>PyBytes_AS_STRING(hashes)
    cdef uint32_t *to_positions = <uint32_t *>PyBytes_AS_STRING(positions)
    cdef uint64_t state
    memcpy(&state, PyBytes_AS_STRING(chain) + PyBytes_GET_SIZE(chain) - sizeof(uint64_t), sizeof(uint64_t))
    while start < n_text and n_tokens and ends[n_tokens - 1] > start:
        end = min(start + chunk_bytes, n_text)
        state = chunk_hash(state, <const uint8_t *>PyBytes_AS_STRING(text) + start, end - start, KIND_TEXT)
        while token < n_tokens and ends[token] <= end:
            token += 1
        to_hashes[n] = state
        to_positions[n] = n_before + <uint32_t>token
        n += 1
        start = end
    return hashes[: n * 8], positions[: n * 4]

# The chained 64-bit hash of a chunk: multiply 64 x 64 -> 128 and fold, in the manner of wyhash (Wang Yi, public domain).
#
#     hash[i] = chunk_hash(hash[i-1], bytes of chunk i, kind of chunk i)
#
# The length and the kind go in, so that chunks of different cuts or meanings never collide by construction. Equal on
# every little-endian machine: shim and gateway compute the same chain. The oracle is tests/model/chunk_hash.py.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if !defined(__SIZEOF_INT128__)
    #error "xinf needs a compiler with 128-bit integers (GCC or Clang on a 64-bit target)"
    #endif
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the prefix chain is defined for little-endian machines"
    #endif

    /* wyhash's odd constants with 32 bits set each. */
    #define XINF_S0 0xa0761d6478bd642fULL
    #define XINF_S1 0xe7037ed1a0b428dbULL
    #define XINF_S2 0x8ebc6af09c88c6e3ULL
    #define XINF_S3 0x589965cc75374cc3ULL

    static inline uint64_t xinf_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline uint64_t xinf_load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

    static inline uint64_t xinf_chunk_hash(uint64_t previous, const uint8_t *p, size_t n, uint64_t kind) {
        /* The hash before goes in last, so that a chunk does not wait for the one before it. */
        uint64_t state = xinf_fold(XINF_S0, (((uint64_t)n << 8) | kind) ^ XINF_S1);
        while (n >= 32) {  /* two lanes, so that the multiplications overlap */
            uint64_t one = xinf_fold(xinf_load64(p) ^ XINF_S1, xinf_load64(p + 8) ^ state);
            uint64_t two = xinf_fold(xinf_load64(p + 16) ^ XINF_S2, xinf_load64(p + 24) ^ state ^ XINF_S3);
            state = one ^ ((two << 23) | (two >> 41));
            p += 32;
            n -= 32;
        }
        if (n > 0) {
            uint8_t rest[32] = {0};
            memcpy(rest, p, n);
            uint64_t one = xinf_fold(xinf_load64(rest) ^ XINF_S1, xinf_load64(rest + 8) ^ state);
            uint64_t two = xinf_fold(xinf_load64(rest + 16) ^ XINF_S2, xinf_load64(rest + 24) ^ state ^ XINF_S3);
            state = one ^ ((two << 23) | (two >> 41));
        }
        return xinf_fold(state ^ XINF_S2, state ^ XINF_S3 ^ previous);
    }
    """
    uint64_t chunk_hash "xinf_chunk_hash"(uint64_t previous, const uint8_t *p, size_t n, uint64_t kind) noexcept nogil
    uint64_t load64 "xinf_load64"(const uint8_t *p) noexcept nogil
    uint64_t fold "xinf_fold"(uint64_t a, uint64_t b) noexcept nogil


cdef inline uint64_t hash_bytes(bytes data):
    """The hash of something that is not in a chain: a name, a session."""
    return chunk_hash(0, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), 0)

"""The chunk hash in Python integers: what xinf/_fast/chunkhash.pxd computes, from its definition."""

from __future__ import annotations

S0, S1, S2, S3 = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3
MASK = (1 << 64) - 1


def fold(a: int, b: int) -> int:
    product = a * b
    return (product & MASK) ^ (product >> 64)


def chunk_hash(previous: int, data: bytes, kind: int) -> int:
    state = fold(S0, ((len(data) << 8) | kind) ^ S1)
    padded = data + bytes(-len(data) % 32)
    for at in range(0, len(padded), 32):
        a, b, c, d = (int.from_bytes(padded[at + 8 * i : at + 8 * i + 8], "little") for i in range(4))
        one = fold(a ^ S1, b ^ state)
        two = fold(c ^ S2, d ^ state ^ S3)
        state = one ^ ((two << 23 | two >> 41) & MASK)
    return fold(state ^ S2, state ^ S3 ^ previous)

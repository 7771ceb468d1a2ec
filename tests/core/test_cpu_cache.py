from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xinf.core.cpu_cache import grant_cpu_cache, size_cpu_cache, wanted_cpu_cache


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_cache_holds_one_request_and_takes_no_more_of_less(token_bytes: int, max_len: int, a: int, b: int) -> None:
    one = token_bytes * (max_len + 32)
    less, more = (
        size_cpu_cache(
            wanted_bytes=wanted_cpu_cache(token_bytes=token_bytes, max_model_len=max_len),
            sequence_bytes=one,
            free_bytes=free,
        )
        for free in sorted((a, b))
    )
    assert less <= more
    assert less >= min(one, 32768 * token_bytes)
    assert more <= max(a // 4, b // 4, one, 16 << 20)


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 34), st.integers(0, 1 << 40))
def test_grant_is_no_more_than_there_is_and_no_less_than_one_request(wanted: int, one: int, beyond: int) -> None:
    free = one + beyond
    granted = grant_cpu_cache(wanted_bytes=wanted, sequence_bytes=one, free_bytes=free)
    assert one <= granted <= free
    assert granted <= max(one, wanted, 16 << 20)
    assert granted <= max(one, free // 4, 16 << 20)

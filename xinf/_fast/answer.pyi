from typing_extensions import Buffer

def continue_chain(
    chain: bytes, text: bytes, ends: Buffer, *, n_before: int, chunk_bytes: int
) -> tuple[bytes, bytes]: ...

from typing import final

from typing_extensions import Buffer as _Source

@final
class Buffer:
    def __new__(cls, source: _Source, item_bytes: int, is_writable: bool, name: str) -> Buffer: ...

def _fail_allocation(k: int) -> None: ...

"""The hot path's leaves in Cython: buffers in, numbers out.

Owns the JSON scanner with the prefix chain (`scan`), what binds a chain to token positions (`bind`), the prefix index
(`prefix`), the in-flight ledger with the picker (`ledger`), what makes one decision of them under a policy (`decide`,
with `fleet` for the replicas, `group` for those of a model, and `choice`), the blocks that an engine holds and the
chunks that stand for them (`residency`), the chunks of an answer (`answer`), the counters of requests (`counters`), the
Link's messages (`frame`, `framewriter`), the heads of HTTP/1.1 (`http1`), and the buffers that callers hand in
(`buffer`). Knows nothing of asyncio, gRPC or records: those are xinf/gateway and xinf/router.

The extensions are the surface: import them as modules (`from xinf._fast.scan import scan`). There is no pure-Python
fallback; the naive models that they are compared with live in tests/model/.

Invariants: no operation keeps a pointer into a caller's buffer except Scan, which keeps the body alive; memory is
malloc'ed in slabs and bounded by an argument; a failed allocation raises MemoryError and leaves the object usable.
"""

from importlib.util import find_spec

__all__ = [
    "answer",
    "bind",
    "buffer",
    "choice",
    "counters",
    "decide",
    "fleet",
    "frame",
    "framewriter",
    "group",
    "http1",
    "ledger",
    "prefix",
    "residency",
    "scan",
]

for _name in __all__:
    if find_spec(f"{__name__}.{_name}") is None:
        raise ImportError(f"xinf._fast.{_name} is not built: run `make build` or `setup.py build_ext --inplace`")

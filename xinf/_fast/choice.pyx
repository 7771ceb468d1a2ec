# cython: autotestdict=False
"""The replica chosen for one request: made, filled in and read by decide.pyx, looked at by whoever asked."""

cimport cython
from libc.math cimport NAN, isnan
from libc.stdlib cimport free


@cython.final
@cython.freelist(64)
@cython.no_gc
@cython.auto_pickle(False)
cdef class Choice:
    """The replica chosen for one request, and what must be remembered until it ends.

    Made by `choose`; handed back to `submitted`, `started` and `finished`.
    """

    def __cinit__(self, *, str replica_id="", handle: int = -1, str reason="load", chosen_s: float = 0.0):
        self.replica_id = replica_id
        self.handle = handle
        self.reason = reason
        self.chosen_s = chosen_s
        self.index_state = "off"
        self.prompt_tokens = 1
        self.begun_s = self.cost_s = NAN

    def __dealloc__(self):
        free(self.hashes)

    @property
    def started_s(self) -> float | None:
        """When the first byte of a stream came."""
        return None if isnan(self.begun_s) else self.begun_s

    def __repr__(self) -> str:
        return f"Choice({self.replica_id!r}, {self.reason!r}, predicted_cached_tokens={self.predicted_cached_tokens})"

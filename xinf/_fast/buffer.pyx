# cython: autotestdict=False
"""A caller's buffer, held while a call works on it."""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdlib cimport free
from libc.string cimport memcpy

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_malloc


@cython.final
@cython.auto_pickle(False)
cdef class Buffer:
    """A held buffer of fixed-size items, or bytes. `items` is aligned: what is not is copied.

    `name`: what errors call it. Raises: ValueError when it does not fit, TypeError and BufferError when it is none or
    cannot be written to, MemoryError.
    """

    def __cinit__(self, source, int item_bytes, bint is_writable, str name):
        PyObject_GetBuffer(source, &self.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if is_writable else 0))
        if self.view.itemsize not in (1, item_bytes) or self.view.len % item_bytes:
            size, length = self.view.itemsize, self.view.len
            raise ValueError(f"{name} must be items of {item_bytes} bytes, got {length} bytes in items of {size}")
        self.n = self.view.len // item_bytes
        self.items = self.view.buf
        if self.view.len and <size_t>self.view.buf % <size_t>item_bytes:
            if is_writable:
                raise ValueError(f"{name} must be aligned to {item_bytes} bytes")
            self.copy = self.items = xinf_malloc(self.view.len)
            if self.copy == NULL:
                raise MemoryError(f"out of memory for an aligned copy of {name}")
            memcpy(self.copy, self.view.buf, self.view.len)

    def __dealloc__(self):
        free(self.copy)
        PyBuffer_Release(&self.view)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

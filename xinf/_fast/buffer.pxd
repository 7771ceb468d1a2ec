# What other leaves need of a buffer. See buffer.pyx.

cimport cython


@cython.final
cdef class Buffer:
    cdef Py_buffer view
    cdef size_t n  # items
    cdef void *items  # aligned
    cdef void *copy

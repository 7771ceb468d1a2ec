# What framewriter.pyx shares with frame.pyx.

cdef enum:
    LOAD_FIELDS = 6

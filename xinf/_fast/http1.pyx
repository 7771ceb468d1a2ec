# cython: autotestdict=False
"""HTTP/1 bytes that the front `direct` writes and recognises with every request.

    answer     O(bytes), one allocation
    front      the same without a body
    digits_of  O(len(before)), a comparison
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_SIZE
from libc.string cimport memchr, memcmp, memcpy

DEF MAX_DIGITS = 18


cdef inline char* put(char* to, const char* data, Py_ssize_t n_bytes) noexcept:
    memcpy(to, data, <size_t>n_bytes)
    return to + n_bytes


cdef inline bint is_clean(const char* data, Py_ssize_t n_bytes) noexcept:
    return memchr(data, 13, <size_t>n_bytes) == NULL and memchr(data, 10, <size_t>n_bytes) == NULL


cdef Py_ssize_t size_of(list headers) except -2:
    """The bytes that the header lines need, -1 when one of them cannot be written as it is."""
    cdef Py_ssize_t n_bytes = 0, n_name
    cdef object pair, name, value
    for pair in headers:
        # Exact types: with others, code of theirs could change the list between counting and writing.
        if not PyTuple_CheckExact(pair) or PyTuple_GET_SIZE(pair) != 2:
            raise TypeError("headers are pairs of name and value")
        name, value = (<tuple>pair)[0], (<tuple>pair)[1]
        if not PyBytes_CheckExact(name) or not PyBytes_CheckExact(value):
            raise TypeError("names and values of headers are bytes")
        n_name = PyBytes_GET_SIZE(name)
        if not is_clean(PyBytes_AS_STRING(name), n_name):
            return -1
        if not is_clean(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)):
            return -1
        if n_name == 10 and memcmp(PyBytes_AS_STRING(name), b"connection", 10) == 0:
            return -1
        n_bytes += n_name + PyBytes_GET_SIZE(value) + 4
    return n_bytes


cdef char* put_headers(char* to, list headers):
    cdef object pair, name, value
    for pair in headers:
        name, value = (<tuple>pair)[0], (<tuple>pair)[1]
        to = put(to, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        to = put(to, b": ", 2)
        to = put(to, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
        to = put(to, b"\r\n", 2)
    return to


cdef Py_ssize_t put_number(char* to, Py_ssize_t number) noexcept:
    """Write a number that is not negative; returns its length, at most 20."""
    cdef char[20] digits
    cdef Py_ssize_t at = 20
    while True:
        at -= 1
        digits[at] = <char>(48 + number % 10)
        number //= 10
        if number == 0:
            break
    memcpy(to, &digits[at], <size_t>(20 - at))
    return 20 - at


def answer(bytes line not None, list headers not None, bytes body not None):
    """Write a whole answer: `line` (with its line end), header lines, the body's content-length, the body.

    None when a header must not be written as it is: it has a line end in it, or its name is `connection`.
    Raises: TypeError for headers that are no tuples of two bytes.
    """
    cdef Py_ssize_t n_headers = size_of(headers)
    if n_headers == -1:
        return None
    cdef Py_ssize_t n_line = PyBytes_GET_SIZE(line), n_body = PyBytes_GET_SIZE(body), n_number
    cdef char[20] number
    n_number = put_number(number, n_body)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n_line + n_headers + 16 + n_number + 4 + n_body)
    cdef char* to = put(PyBytes_AS_STRING(out), PyBytes_AS_STRING(line), n_line)
    to = put_headers(to, headers)
    to = put(to, b"content-length: ", 16)
    to = put(to, number, n_number)
    to = put(to, b"\r\n\r\n", 4)
    put(to, PyBytes_AS_STRING(body), n_body)
    return out


def front(bytes line not None, list headers not None, bytes framing not None):
    """Write an answer up to its body: `line`, header lines, `framing` (whole lines), the empty line.

    None and Raises: as `answer`.
    """
    cdef Py_ssize_t n_headers = size_of(headers)
    if n_headers == -1:
        return None
    cdef Py_ssize_t n_line = PyBytes_GET_SIZE(line), n_framing = PyBytes_GET_SIZE(framing)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n_line + n_headers + n_framing + 2)
    cdef char* to = put(PyBytes_AS_STRING(out), PyBytes_AS_STRING(line), n_line)
    to = put_headers(to, headers)
    to = put(to, PyBytes_AS_STRING(framing), n_framing)
    put(to, b"\r\n", 2)
    return out


def digits_of(bytes data not None, Py_ssize_t at, bytes before not None, bytes after not None):
    """Give the digits between `before` and `after` if `data` has these three from `at` on, 1 to 18 digits; else None.

    Raises: IndexError when `at` is not in `data`.
    """
    if not 0 <= at <= PyBytes_GET_SIZE(data):
        raise IndexError(f"{at} is not in {PyBytes_GET_SIZE(data)} bytes")
    cdef const char* text = PyBytes_AS_STRING(data) + at
    cdef Py_ssize_t n_data = PyBytes_GET_SIZE(data) - at, begin = PyBytes_GET_SIZE(before)
    cdef Py_ssize_t n_after = PyBytes_GET_SIZE(after), end = begin
    if n_data < begin + 1 + n_after or memcmp(text, PyBytes_AS_STRING(before), <size_t>begin) != 0:
        return None
    while end < n_data and end - begin <= MAX_DIGITS and 48 <= text[end] <= 57:
        end += 1
    if end == begin or end - begin > MAX_DIGITS or n_data - end < n_after:
        return None
    if memcmp(text + end, PyBytes_AS_STRING(after), <size_t>n_after) != 0:
        return None
    return PyBytes_FromStringAndSize(text + begin, end - begin)

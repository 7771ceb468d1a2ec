# cython: autotestdict=False
"""What one deployment's requests add up to: C integers, so that counting a request costs less than looking it up.

    began() ──▶ count_decision(reason) ──▶ count_tokens(...) ──▶ ended(status, duration_s, first_byte_s)
    in_flight+1      per attempt              if it is ok         in_flight-1, status class, both histograms

Invariants: a counter never goes back (`in_flight` is a gauge); there is nothing to allocate, so nothing to fail; the sets
of labels are bounded: seven status classes, MAX_REASONS reasons and "other". Sums wrap at 2**64.

    began, ended, count_tokens, count_request, observe  O(1)     count_decision  O(reasons)
    requests, reasons, counts  build Python objects, for the scrape only
"""

cimport cython
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    N_BOUNDS = 14
    N_STATUSES = 7
    N_REASONS = 32

cdef double[N_BOUNDS] BOUNDS_S
BOUNDS_S[:] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]

# Upper ends of a histogram's buckets, inclusive; one more bucket is for everything longer.
BUCKETS_S = tuple(BOUNDS_S)
# Reasons told apart; whatever comes after them counts as "other".
MAX_REASONS = N_REASONS

# By number: a client that went away, the five classes, and what is no status at all.
cdef tuple STATUSES = ("499", "1xx", "2xx", "3xx", "4xx", "5xx", "other")


cdef inline uint64_t difference(uint64_t a, uint64_t b) noexcept nogil:
    return a - b if a > b else b - a


@cython.final
@cython.auto_pickle(False)
cdef class Histogram:
    """Counts per bucket of BUCKETS_S, the last for everything longer and their sum."""

    cdef uint64_t[N_BOUNDS + 1] buckets
    cdef readonly double sum_s

    cdef inline void add(self, double seconds) noexcept nogil:
        cdef int at = 0
        while at < N_BOUNDS and not seconds <= BOUNDS_S[at]:
            at += 1
        self.buckets[at] += 1
        self.sum_s += seconds

    def observe(self, double seconds) -> None:
        """Count one duration."""
        self.add(seconds)

    @property
    def counts(self) -> list[int]:
        """One count per bucket, not cumulated."""
        return [self.buckets[at] for at in range(N_BOUNDS + 1)]


@cython.final
@cython.auto_pickle(False)
cdef class ModelCounters:
    """The counters of one deployment.

    A request that is served costs `began`, one `count_decision` per attempt, `count_tokens` (by position) if its engine said
    them, and `ended`: 0.2 us together. One that is refused before it is served costs `count_request`. `retries`,
    `stream_errors` and `slow_readers` are rare and plain attributes: `counters.retries += 1`.
    """

    cdef uint64_t[N_STATUSES] statuses
    cdef uint64_t[N_REASONS + 1] by_reason
    cdef list reason_names  # by_reason[i] counts reason_names[i]; the last of by_reason is "other"
    cdef public int64_t in_flight
    cdef public uint64_t retries
    cdef public uint64_t stream_errors
    cdef public uint64_t slow_readers
    cdef readonly uint64_t prompt_tokens
    cdef readonly uint64_t cached_tokens
    cdef readonly uint64_t completion_tokens
    cdef readonly uint64_t predicted_tokens
    cdef readonly uint64_t cached_error
    cdef readonly Histogram first_byte
    cdef readonly Histogram duration

    def __cinit__(self):
        self.reason_names = []
        self.first_byte = Histogram()
        self.duration = Histogram()

    cdef inline void count_status(self, int status) noexcept nogil:
        cdef int at = status // 100
        if status == 499:
            at = 0
        elif not 1 <= at <= 5:
            at = 6
        self.statuses[at] += 1

    def began(self) -> None:
        """Count a request into `in_flight`; each is followed by one `ended`."""
        self.in_flight += 1

    def ended(self, int status, double duration_s, first_byte_s=None) -> None:
        """Count the end of a request that `began`.

        `status`: 499 when the client went away. `duration_s`, `first_byte_s`: since it arrived; None: it had no answer.
        """
        self.in_flight -= 1
        self.count_status(status)
        self.duration.add(duration_s)
        if first_byte_s is not None:
            self.first_byte.add(first_byte_s)

    def count_tokens(self, uint64_t prompt, uint64_t cached, uint64_t completion, uint64_t predicted) -> None:
        """Count what an engine said of a request. `predicted`: cached tokens that the router expected.

        Raises: OverflowError for a negative number.
        """
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
        self.predicted_tokens += predicted
        self.cached_error += difference(predicted, cached)

    def count_decision(self, str reason not None) -> None:
        """Count a choice of a replica."""
        # Reasons are literals of the router, so nearly always the very same object.
        cdef Py_ssize_t at, n = PyList_GET_SIZE(self.reason_names)
        for at in range(n):
            if PyList_GET_ITEM(self.reason_names, at) == <PyObject *>reason:
                self.by_reason[at] += 1
                return
        self.by_reason[self.number_of(reason)] += 1

    cdef Py_ssize_t number_of(self, str reason) except -1:
        if reason == "other":
            return N_REASONS
        if reason in self.reason_names:
            return self.reason_names.index(reason)
        if len(self.reason_names) == N_REASONS:
            return N_REASONS
        self.reason_names.append(reason)
        return len(self.reason_names) - 1

    def count_request(self, int status) -> None:
        """Count a request that ended. `status`: 499 when the client went away."""
        self.count_status(status)

    @property
    def requests(self) -> dict[str, int]:
        """Requests that ended, by status class; classes without any are left out."""
        return {STATUSES[at]: self.statuses[at] for at in range(N_STATUSES) if self.statuses[at]}

    @property
    def reasons(self) -> dict[str, int]:
        """Choices by reason."""
        found = {name: self.by_reason[at] for at, name in enumerate(self.reason_names)}
        if self.by_reason[N_REASONS]:
            found["other"] = self.by_reason[N_REASONS]
        return found

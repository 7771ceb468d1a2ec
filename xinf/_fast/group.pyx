# cython: autotestdict=False
"""The replicas of one model, as rows, and what is known of them together. Filled and read by decide.pyx.

    add  O(1)    remove, prefill_rate, service  O(replicas)
"""

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport free
from libc.string cimport memmove

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_realloc
from xinf._fast.ledger cimport Ledger, Row
from xinf._fast.losses cimport LEAST_WEIGHT, learn_loss, lost_weight


@cython.final
@cython.auto_pickle(False)
cdef class Group:
    """See the module."""

    def __cinit__(self, str model not None):
        self.model = model
        self.lost_weight = LEAST_WEIGHT

    def __dealloc__(self):
        free(self.rows)

    cdef int add(self, uint32_t row) except -1:
        cdef uint32_t capacity = max(8, 2 * self.capacity)
        cdef uint32_t *grown
        if self.n == self.capacity:
            grown = <uint32_t *>xinf_realloc(self.rows, capacity * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError(f"out of memory for the replicas of {self.model}")
            self.rows = grown
            self.capacity = capacity
        self.rows[self.n] = row
        self.n += 1
        return 0

    cdef void remove(self, uint32_t row) noexcept nogil:
        cdef uint32_t i
        for i in range(self.n):
            if self.rows[i] == row:
                self.n -= 1
                memmove(&self.rows[i], &self.rows[i + 1], (self.n - i) * sizeof(uint32_t))
                return

    cdef double prefill_rate(self, double prior) noexcept:
        """Tokens per second: the mean, in seconds per token, of those that were measured, else `prior`."""
        return self.peers.n / self.peers.s_per_token if self.peers.n else prior

    cdef double service(self, Ledger ledger, double prior) noexcept:
        """How long a request stays, in seconds: the mean of those that were measured, else `prior`."""
        cdef double seconds = 0
        cdef uint32_t i, n = 0
        cdef Row *row
        for i in range(self.n):
            row = &ledger.rows[self.rows[i]]
            if row.rates.has_service:
                seconds += row.rates.service_s
                n += 1
        return seconds / n if n else prior

    cdef void learn_loss(self, Ledger ledger, double own_tokens, double lost_tokens) noexcept nogil:
        """A request computed `own_tokens`, of them `lost_tokens` again. All rows have the same weight of own prefill."""
        cdef uint32_t i
        cdef double weight
        learn_loss(&self.losses, own_tokens, lost_tokens)
        weight = lost_weight(&self.losses)
        if abs(weight - self.lost_weight) < 0.1 * self.lost_weight:
            return  # not worth going through all rows
        self.lost_weight = weight
        for i in range(self.n):
            ledger.rows[self.rows[i]].lost_weight = weight
            ledger.refresh(self.rows[i])

    @property
    def bytes_per_token(self) -> float:
        """Of prompt text."""
        return self.density.bytes_per_token

    @property
    def repetition(self) -> tuple[int, int]:
        """Prompt tokens computed, and those of them that had been asked for before."""
        return self.losses.computed_tokens, self.losses.repeated_tokens

    @property
    def savings(self) -> tuple[int, float, float]:
        """Choices compared with least-load, seconds saved and seconds lost."""
        return self.n_compared, self.saved_s, self.regret_s

    cdef void lend_rates(self, Ledger ledger) noexcept:
        """Let rows that nothing was measured of count as fast as the others: they are chosen, or not, for that."""
        cdef uint32_t i
        cdef Row *row
        cdef double rate = self.prefill_rate(0), stay = self.service(ledger, 0)
        for i in range(self.n):
            row = &ledger.rows[self.rows[i]]
            if row.rates.has_prefill and row.rates.has_service:
                continue
            if rate and not row.rates.has_prefill:
                row.rates.prefill_tokens_per_s = rate
            if stay and not row.rates.has_service:
                row.rates.service_s = stay
            ledger.refresh(self.rows[i])


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

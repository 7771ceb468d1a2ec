# What is learnt from answers: exponentially forgetting means with a prior. The oracle is tests/model/rates_model.py.

cdef enum:
    MIN_PREFILL_TOKENS = 64  # the prefill rate is taken from requests with so much to compute; smaller ones show fixed costs

cdef struct Rates:
    double prefill_tokens_per_s
    double service_s  # how long a request stays
    double trust  # share of the predicted cached tokens that comes true, 0 to 1
    bint has_prefill  # measured, not prior
    bint has_service

cdef struct Density:
    double bytes_per_token  # of prompt text
    bint has_sample


cdef inline void set_prior(Rates *rates, double prefill_tokens_per_s, double service_s) noexcept nogil:
    rates.prefill_tokens_per_s = prefill_tokens_per_s
    rates.service_s = service_s
    rates.trust = 1.0
    rates.has_prefill = 0
    rates.has_service = 0


cdef inline double new_share(bint has_sample) noexcept nogil:
    """Weight of a new sample. A change of the engine's speed is believed after some ten answers."""
    return 0.1 if has_sample else 1.0


cdef inline void learn_prefill(Rates *rates, double n_tokens, double seconds) noexcept nogil:
    """`n_tokens` were computed, those queued before them included, until the first token came."""
    cdef double sample, share
    if n_tokens < MIN_PREFILL_TOKENS or seconds <= 0:
        return
    sample = min(n_tokens / seconds, 1e8)  # a rate above is clock noise
    share = new_share(rates.has_prefill)
    # The mean of seconds per token, not of tokens per second: one lucky sample must not dominate.
    rates.prefill_tokens_per_s = 1 / ((1 - share) / rates.prefill_tokens_per_s + share / sample)
    rates.has_prefill = 1


cdef inline void learn_service(Rates *rates, double seconds) noexcept nogil:
    """A request stayed so long. 1 ms at least keeps a tie between idle and busy from ever being exact."""
    rates.service_s = max(1e-3, rates.service_s + new_share(rates.has_service) * (seconds - rates.service_s))
    rates.has_service = 1


cdef inline void learn_trust(Rates *rates, double promised_tokens, double cached_tokens) noexcept nogil:
    """The index promised cached tokens and the engine found so many. Never 0, so that an index that is right can show it."""
    if promised_tokens > 0:
        rates.trust = max(0.05, rates.trust + 0.1 * (min(cached_tokens, promised_tokens) / promised_tokens - rates.trust))


cdef inline void learn_density(Density *density, double n_bytes, double n_tokens) noexcept nogil:
    """A prompt of `n_bytes` turned out to have `n_tokens`."""
    cdef double sample
    if n_bytes <= 0 or n_tokens <= 0:
        return
    # A token stands for at least a part of a byte and at most for a long run of spaces.
    sample = min(max(n_bytes / n_tokens, 0.25), 64.0)
    density.bytes_per_token += new_share(density.has_sample) * (sample - density.bytes_per_token)
    density.has_sample = 1

# What is learnt from answers: exponentially forgetting means, and lines through points where two causes are to be told
# apart. Each has a prior. The oracle is tests/model/rates_model.py.
#
#     seconds to the first token = fixed_s + tokens to compute / prefill_tokens_per_s
#     seconds per further token  = ...     + requests there x slope

from libc.stdint cimport uint32_t
from libc.string cimport memset

cdef enum:
    MIN_PREFILL_TOKENS = 64  # the prefill rate is taken from requests with so much to compute; smaller ones show fixed costs
    MEMORY = 32  # points that a line is drawn through; older ones fade
    ENOUGH = 6  # points before a slope is believed
    MIN_ANSWER_TOKENS = 8  # of shorter answers the time per token is noise

cdef struct Line:  # y over x through points, older ones weighing less
    double mean_x
    double mean_y
    double xx  # variance of x
    double xy  # covariance
    uint32_t n  # points, up to MEMORY

cdef struct Rates:
    double prefill_tokens_per_s
    double own_s_per_token  # the same as this replica alone shows it
    double fixed_s  # to the first token, however little is computed
    double service_s  # how long a request has a slot
    double crowd_s  # how much longer an answer takes for each request that is there
    double answer_tokens
    double trust  # share of the predicted cached tokens that comes true, 0 to 1
    Line prefill  # seconds to the first token over tokens to compute
    Line decode  # seconds per token over requests there
    bint has_prefill  # measured, not prior
    bint has_service

cdef struct Peers:  # what was measured of all replicas of a model
    double s_per_token  # the sum
    uint32_t n

cdef struct Density:
    double bytes_per_token  # of prompt text
    bint has_sample


cdef inline void set_prior(Rates *rates, double prefill_tokens_per_s, double service_s) noexcept nogil:
    memset(rates, 0, sizeof(Rates))
    rates.prefill_tokens_per_s = prefill_tokens_per_s
    rates.service_s = service_s
    rates.trust = 1.0


cdef inline double new_share(bint has_sample) noexcept nogil:
    """Weight of a new sample. A change of the engine's speed is believed after some ten answers."""
    return 0.1 if has_sample else 1.0


cdef inline void add_point(Line *line, double x, double y) noexcept nogil:
    """Of the first points all weigh the same; then each new one weighs 1 / MEMORY."""
    cdef double dx = x - line.mean_x, dy = y - line.mean_y, share
    line.n += line.n < MEMORY
    share = 1.0 / line.n
    line.mean_x += share * dx
    line.mean_y += share * dy
    line.xx = (1 - share) * (line.xx + share * dx * dx)
    line.xy = (1 - share) * (line.xy + share * dx * dy)


cdef inline bint has_slope(const Line *line) noexcept nogil:
    """Whether the points are far enough apart to tell what x does from what is always there."""
    return line.n >= ENOUGH and line.xx > 0.0625 * line.mean_x * line.mean_x


cdef inline void forget_prefill(Rates *rates, Peers *peers) noexcept nogil:
    """Take what a replica showed out of what all showed."""
    if rates.has_prefill:
        peers.n -= 1
        peers.s_per_token = peers.s_per_token - rates.own_s_per_token if peers.n else 0.0


cdef inline void learn_prefill(Rates *rates, Peers *peers, double n_tokens, double seconds) noexcept nogil:
    """`n_tokens` were computed, those queued before them included, until the first token came.

    Replicas that differ from the mean by a quarter or less count as equal to it, as most are: what a line says from 32
    points is no better than that, and whoever looked fast would get everything.
    """
    cdef Line *line = &rates.prefill
    cdef double per_token, common
    if n_tokens < MIN_PREFILL_TOKENS or seconds <= 0:
        return
    if line.n >= ENOUGH:
        # A request that stalled must not undo what all others say; an engine that became slow is believed after some.
        seconds = min(seconds, 4 * (rates.fixed_s + n_tokens * rates.own_s_per_token))
    add_point(line, n_tokens, seconds)
    if has_slope(line):
        per_token = line.xy / line.xx
    else:
        per_token = (line.mean_y - rates.fixed_s) / line.mean_x
    # At least a tenth of the time is the tokens', at most all of it. Below 1e-8 it is clock noise.
    per_token = max(min(max(per_token, 0.1 * line.mean_y / line.mean_x), line.mean_y / line.mean_x), 1e-8)
    rates.fixed_s = max(0.0, line.mean_y - per_token * line.mean_x)
    forget_prefill(rates, peers)
    rates.own_s_per_token = per_token
    peers.s_per_token += per_token
    peers.n += 1
    common = peers.s_per_token / peers.n
    per_token -= max(-0.25 * common, min(0.25 * common, per_token - common))
    rates.prefill_tokens_per_s = 1 / per_token
    rates.has_prefill = 1


cdef inline void learn_crowd(Rates *rates, double requests, double n_tokens, double seconds) noexcept nogil:
    """The tokens of an answer took `seconds` from the first to the last, with so many requests there."""
    cdef Line *line = &rates.decode
    cdef double per_token, slope
    if n_tokens < MIN_ANSWER_TOKENS or seconds <= 0:
        return
    rates.answer_tokens += new_share(line.n > 0) * (n_tokens - rates.answer_tokens)
    per_token = seconds / (n_tokens - 1)
    if line.n >= ENOUGH:
        per_token = min(per_token, 4 * line.mean_y)
    add_point(line, requests, per_token)
    if has_slope(line):
        slope = max(0.0, min(line.xy / line.xx, line.mean_y / line.mean_x))
    else:
        # An H100 takes some 60 % longer for a step of 64 sequences of a small model than for one of a single one.
        slope = 0.01 * line.mean_y
    rates.crowd_s = slope * rates.answer_tokens


cdef inline void learn_service(Rates *rates, double seconds) noexcept nogil:
    """A request had a slot for so long. 1 ms at least keeps a tie between idle and busy from ever being exact."""
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

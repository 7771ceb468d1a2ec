# What is known of a replica's cache and from whom, and whether it comes true.
#
#     engine tells nothing ──────────────▶ MARKS   what was routed there, by marks           "approx"
#            tells chunk by chunk ───────▶ TOLD    what it says; by its own model: "approx"  "exact"
#            says "off" ─────────────────▶ NONE    prefixes are not looked at                "off"
#
#     TOLD ──less than LEAVE_SHARE of the predictions within a block──▶ MARKS, what is told being checked all the same
#          ◀──more than RETURN_SHARE of what would have been predicted──┘
#
# Checked are answers that say something: where chunks were predicted or found. The share forgets: an answer weighs
# 1 / MEMORY once there were so many. It begins anew with each change of sides.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

cdef enum:
    # What the engine says.
    SAYS_NOTHING = 0
    SAYS_OFF = 1
    SAYS_APPROX = 2
    SAYS_EXACT = 3

cdef enum:
    # What is gone by.
    VIEW_NONE = 0
    VIEW_MARKS = 1
    VIEW_TOLD_APPROX = 2
    VIEW_TOLD_EXACT = 3
    N_VIEWS = 4

cdef enum:
    # Why.
    BY_BEGINNING = 0  # nothing was told yet
    BY_POLICY = 1  # the policy or the bounds of the indexes leave no use for it
    BY_ENGINE = 2
    BY_FORM = 3  # its prompts are chained in another form than those of the deployment
    BY_CHECK = 4  # predictions did not come true
    BY_RECOVERY = 5  # they would have again
    N_CAUSES = 6

cdef enum:
    MEMORY = 200  # answers
    ENOUGH_TO_LEAVE = 50
    ENOUGH_TO_RETURN = 100

cdef struct Standing:
    uint8_t says
    uint8_t has_entries  # a snapshot came
    uint8_t is_doubted  # by the check
    uint8_t is_misformed
    uint8_t view
    uint8_t cause
    uint8_t is_followed  # what is told is looked up: gone by, or checked
    uint32_t n_checked  # answers, since the last change of sides
    double share  # of them, within a block
    uint32_t[24] n_changes  # by view and cause


cdef inline double leave_share() noexcept nogil:
    return 0.85


cdef inline double return_share() noexcept nogil:
    return 0.95


cdef inline bint is_told(const Standing *s) noexcept nogil:
    return s.view >= VIEW_TOLD_APPROX


cdef inline void begin_standing(Standing *s, bint has_marks, bint has_told, bint uses_prefixes) noexcept nogil:
    memset(s, 0, sizeof(Standing))
    s.view = N_VIEWS  # none
    review(s, has_marks, has_told, uses_prefixes, BY_BEGINNING)
    memset(s.n_changes, 0, sizeof(s.n_changes))


cdef inline void review(Standing *s, bint has_marks, bint has_told, bint uses_prefixes, uint8_t cause) noexcept nogil:
    """Work the view out again. `cause`: of the change, if it is one. `has_*`: there is such an index for it."""
    cdef uint8_t view
    s.is_followed = uses_prefixes and has_told and s.has_entries and s.says != SAYS_OFF and not s.is_misformed
    if not uses_prefixes or not (has_marks or has_told):
        view = VIEW_NONE
        cause = BY_POLICY
    elif s.is_misformed:
        view = VIEW_NONE
        cause = BY_FORM
    elif s.says == SAYS_OFF:
        view = VIEW_NONE
    elif s.is_followed and not s.is_doubted:
        view = VIEW_TOLD_EXACT if s.says == SAYS_EXACT else VIEW_TOLD_APPROX
    else:
        view = VIEW_MARKS if has_marks else VIEW_NONE
    if view != s.view:
        s.n_changes[view * N_CAUSES + cause] += 1
        s.view = view
        s.cause = cause


cdef inline bint check(Standing *s, bint is_within) noexcept nogil:
    """Take in whether a prediction came true. 1: it changes sides, and `review` is due."""
    cdef uint32_t weight
    s.n_checked += s.n_checked < MEMORY
    weight = s.n_checked
    s.share += ((1.0 if is_within else 0.0) - s.share) / weight
    if s.is_doubted:
        if s.n_checked < ENOUGH_TO_RETURN or s.share <= return_share():
            return 0
    elif s.n_checked < ENOUGH_TO_LEAVE or s.share >= leave_share():
        return 0
    s.is_doubted = not s.is_doubted
    s.n_checked = 0
    s.share = 0.0
    return 1

# Who holds a chunk: replicas as ids, and interned sets of ids that many chunks share.
#
#     replica ──id_of──▶ id ──held──▶ number of chunks        slots (uint32, linear probing, by content)
#             ◀──owner──                                      ┌───┬───┬───┬───┐
#                                                             │ 0 │ 7 │ 0 │ 3 │ ──▶ sets[7] {ids, refs}
#                                                             └───┴───┴───┴───┘
#
# Chunks of one stretch of a prompt have the same holders, so a chunk names a set, and a thousand replicas that hold the
# same system prompt cost one set of a thousand ids, not one per chunk. A set is not changed while a chunk refers to it,
# with two exceptions that change it for all of its chunks at once: scrubbing takes retired ids out, and emptying (under
# pressure) takes all out. A set without ids is dead: its chunks hold nothing, and are swept out by the owner.
#
# Dropping a replica only retires its id, in O(1); an id is used again once no set lists it.
#
# Invariants: ids of a set are sorted and distinct; `refs` counts the chunks of a set, which is free when it gets 0;
# held[id] is the sum of the refs of the sets that list `id`; set bytes never pass `max_set_bytes`.
#
#     with_id  O(log ids), O(ids) for a set that is new     unref  O(1)     drop  O(1)     scrub  O(ids) per set

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memmove, memset

from xinf._fast.alloc cimport xinf_calloc, xinf_malloc
from xinf._fast.chunkhash cimport fold

cdef enum:
    NO_ID = 0xFFFF  # of a replica: holds nothing; of an id: retired
    N_FEW = 4
    MALLOC_BYTES = 16  # what an allocation costs besides
    FIRST_SLOTS = 256

cdef union Ids:
    uint16_t[N_FEW] few
    uint16_t *many

cdef struct HolderSet:
    uint64_t hash  # sum of the hashes of its ids
    Ids ids
    uint32_t refs  # chunks that refer to it; of a free one: the next free one
    uint32_t seen  # the match that looked at it last
    uint16_t n
    uint16_t capacity  # of `many`; 0: `few`
    uint8_t is_used  # since the hand passed
    uint8_t is_listed  # in the slots
    uint8_t is_free
    uint8_t unused

cdef struct Holders:
    # replicas and ids
    uint32_t n_replicas  # replicas allowed
    uint32_t n_ids  # twice as many, so that retired ones can wait for the scrubber
    uint16_t *id_of  # replica -> id or NO_ID
    uint16_t *owner  # id -> replica or NO_ID
    uint32_t *held  # id -> chunks that it holds
    uint16_t *free_ids
    uint32_t n_free_ids
    uint32_t n_retired
    uint32_t n_active  # replicas that hold anything
    uint64_t n_held  # pairs of a replica and a chunk it holds
    # sets; handle 0 is the empty one
    HolderSet *sets
    uint32_t *slots
    uint32_t n_slots  # at most half of them are taken
    int shift  # 64 - log2(n_slots)
    uint32_t max_sets
    uint32_t n_sets  # handles ever given out
    uint32_t n_spare  # of them, free again
    uint32_t n_made  # sets ever made, modulo 2**32
    uint32_t free_set
    size_t set_bytes
    size_t max_set_bytes
    uint32_t scrub_hand
    uint32_t empty_hand
    # the last step, so that a stretch of chunks with the same holders costs one look-up
    uint32_t last_from
    uint32_t last_to
    uint16_t last_id


cdef inline size_t holder_table_bytes(const Holders *h) noexcept nogil:
    """Bytes of the tables that are there from the start."""
    return h.n_replicas * sizeof(uint16_t) + h.n_ids * (2 * sizeof(uint16_t) + sizeof(uint32_t))


cdef inline void plan_holders(Holders *h, size_t max_bytes) noexcept nogil:
    """Sizes for an index of `max_bytes`: a set per 1024 bytes, an id per 2048, an eighth of the bytes for sets."""
    memset(h, 0, sizeof(Holders))
    h.n_ids = 64
    while h.n_ids < 1 << 15 and <size_t>h.n_ids * 2048 <= max_bytes:
        h.n_ids *= 2
    h.n_replicas = h.n_ids // 2
    h.max_sets = 128
    while h.max_sets < 1 << 24 and <size_t>h.max_sets * 2048 <= max_bytes:
        h.max_sets *= 2
    h.n_slots = FIRST_SLOTS
    h.shift = 64 - 8
    h.max_set_bytes = max_bytes // 8
    h.last_id = NO_ID


cdef inline bint open_holders(Holders *h) noexcept nogil:
    """Allocate the tables. 0: out of memory; what was had is freed by close_holders."""
    cdef uint32_t i
    h.id_of = <uint16_t *>xinf_malloc(h.n_replicas * sizeof(uint16_t))
    h.owner = <uint16_t *>xinf_malloc(h.n_ids * sizeof(uint16_t))
    h.held = <uint32_t *>xinf_calloc(h.n_ids, sizeof(uint32_t))
    h.free_ids = <uint16_t *>xinf_malloc(h.n_ids * sizeof(uint16_t))
    # Reserved whole, so that a set never moves; the kernel gives pages as they are used.
    h.sets = <HolderSet *>xinf_malloc((<size_t>h.max_sets + 1) * sizeof(HolderSet))
    h.slots = <uint32_t *>xinf_calloc(h.n_slots, sizeof(uint32_t))
    h.set_bytes = h.n_slots * sizeof(uint32_t)
    if not (h.id_of and h.owner and h.held and h.free_ids and h.sets and h.slots):
        return 0
    memset(&h.sets[0], 0, sizeof(HolderSet))
    memset(h.id_of, 0xFF, h.n_replicas * sizeof(uint16_t))
    memset(h.owner, 0xFF, h.n_ids * sizeof(uint16_t))
    for i in range(h.n_ids):
        h.free_ids[i] = <uint16_t>(h.n_ids - 1 - i)
    h.n_free_ids = h.n_ids
    return 1


cdef inline void close_holders(Holders *h) noexcept nogil:
    cdef uint32_t i
    for i in range(1, h.n_sets + 1):
        if h.sets[i].capacity:
            free(h.sets[i].ids.many)
    free(h.id_of)
    free(h.owner)
    free(h.held)
    free(h.free_ids)
    free(h.sets)
    free(h.slots)


# ---- counting -----------------------------------------------------------------------------------------------------


cdef inline void gain(Holders *h, uint16_t id) noexcept nogil:
    """`id` holds one chunk more."""
    h.n_active += h.held[id] == 0
    h.held[id] += 1
    h.n_held += 1


cdef inline void lose(Holders *h, uint16_t id, uint32_t n_chunks) noexcept nogil:
    """`id` holds so many chunks less."""
    h.held[id] -= n_chunks
    if h.owner[id] == NO_ID:
        if h.held[id] == 0:
            h.n_retired -= 1
            h.free_ids[h.n_free_ids] = id
            h.n_free_ids += 1
        return
    h.n_held -= n_chunks
    h.n_active -= h.held[id] == 0


cdef inline uint16_t *ids_of(HolderSet *set) noexcept nogil:
    return set.ids.many if set.capacity else set.ids.few


cdef inline void lose_all(Holders *h, uint32_t handle, uint32_t n_chunks) noexcept nogil:
    """So many chunks of a set are gone, for each of its ids."""
    cdef uint16_t *ids = ids_of(&h.sets[handle])
    cdef uint32_t i
    for i in range(h.sets[handle].n):
        lose(h, ids[i], n_chunks)


# ---- sets ---------------------------------------------------------------------------------------------------------


cdef inline uint64_t id_hash(uint16_t id) noexcept nogil:
    return fold(id + <uint64_t>0xE7037ED1A0B428DB, <uint64_t>0x9E3779B97F4A7C15)


cdef inline uint32_t slot_home(const Holders *h, uint64_t hash) noexcept nogil:
    return <uint32_t>((hash * <uint64_t>0x9E3779B97F4A7C15) >> h.shift)


cdef inline void list_set(Holders *h, uint32_t handle) noexcept nogil:
    cdef uint32_t mask = h.n_slots - 1
    cdef uint32_t at = slot_home(h, h.sets[handle].hash)
    while h.slots[at]:
        at = (at + 1) & mask
    h.slots[at] = handle
    h.sets[handle].is_listed = 1


cdef inline void unlist_set(Holders *h, uint32_t handle) noexcept nogil:
    """Take a set out of the slots and close the gap, so that there are no tombstones."""
    cdef uint32_t mask = h.n_slots - 1
    cdef uint32_t gap, at, home
    if not h.sets[handle].is_listed:
        return
    h.sets[handle].is_listed = 0
    gap = slot_home(h, h.sets[handle].hash)
    while h.slots[gap] != handle:
        gap = (gap + 1) & mask
    at = gap
    while True:
        at = (at + 1) & mask
        if not h.slots[at]:
            break
        home = slot_home(h, h.sets[h.slots[at]].hash)
        # Movable if its home is not between the gap and where it is, cyclically.
        if ((at - home) & mask) >= ((at - gap) & mask):
            h.slots[gap] = h.slots[at]
            gap = at
    h.slots[gap] = 0


cdef inline void clear_ids(Holders *h, HolderSet *set) noexcept nogil:
    if set.capacity:
        free(set.ids.many)
        h.set_bytes -= set.capacity * sizeof(uint16_t) + MALLOC_BYTES
    set.capacity = 0
    set.n = 0
    set.hash = 0


cdef inline void unref(Holders *h, uint32_t handle) noexcept nogil:
    """A chunk no longer refers to a set."""
    cdef HolderSet *set = &h.sets[handle]
    set.refs -= 1
    if set.refs:
        return
    unlist_set(h, handle)
    clear_ids(h, set)
    set.is_free = 1
    set.refs = h.free_set
    h.free_set = handle
    h.n_spare += 1
    if handle == h.last_from or handle == h.last_to:
        h.last_id = NO_ID


cdef inline void empty_set(Holders *h, uint32_t handle) noexcept nogil:
    """Let nobody hold the chunks of a set any more."""
    cdef HolderSet *set = &h.sets[handle]
    unlist_set(h, handle)
    lose_all(h, handle, set.refs)
    clear_ids(h, set)
    if handle == h.last_from or handle == h.last_to:
        h.last_id = NO_ID


cdef inline bint empty_next(Holders *h, uint32_t keep) noexcept nogil:
    """Empty the next set of several holders that was not used since the hand passed it last. 0: there is none."""
    cdef uint64_t step
    cdef HolderSet *set
    for step in range(2 * <uint64_t>h.n_sets):
        h.empty_hand = h.empty_hand % h.n_sets + 1
        set = &h.sets[h.empty_hand]
        # A set of one is a replica's own chunks, all of them: never worth its few bytes.
        if set.is_free or set.n < 2 or h.empty_hand == keep:
            continue
        if set.is_used:
            set.is_used = 0
            continue
        empty_set(h, h.empty_hand)
        return 1
    return 0


cdef inline bint is_pressed(const Holders *h) noexcept nogil:
    """Whether sets are getting scarce."""
    return h.n_sets - h.n_spare > h.max_sets // 4 * 3 or h.set_bytes > h.max_set_bytes // 4 * 3


cdef inline bint grow_slots(Holders *h) noexcept nogil:
    """Twice the slots; the old and the new ones count until the old ones are freed."""
    cdef uint32_t *old = h.slots
    cdef uint32_t n_old = h.n_slots, i
    cdef size_t n_bytes = 2 * <size_t>n_old * sizeof(uint32_t)
    if h.set_bytes + n_bytes > h.max_set_bytes:
        return 0
    h.slots = <uint32_t *>xinf_calloc(2 * <size_t>n_old, sizeof(uint32_t))
    if h.slots == NULL:
        h.slots = old
        return 0
    h.n_slots = 2 * n_old
    h.shift -= 1
    for i in range(n_old):
        if old[i]:
            list_set(h, old[i])
    free(old)
    h.set_bytes += n_bytes // 2
    return 1


cdef inline uint32_t new_set(Holders *h, uint32_t n, uint32_t keep) noexcept nogil:
    """A set with room for n ids, at the price of another one if need be (never `keep`). 0: there is none."""
    cdef uint32_t capacity = 8, handle = h.free_set
    cdef size_t n_bytes = 0
    cdef HolderSet *set
    cdef uint16_t *many = NULL
    if h.n_sets - h.n_spare >= h.n_slots // 2 and not grow_slots(h):
        return 0
    if n > N_FEW:
        while capacity < n:
            capacity *= 2
        n_bytes = capacity * sizeof(uint16_t) + MALLOC_BYTES
    if handle == 0:
        if h.n_sets == h.max_sets:
            return 0
        n_bytes += sizeof(HolderSet)
    while h.set_bytes + n_bytes > h.max_set_bytes:
        if not empty_next(h, keep):
            return 0
    if n > N_FEW:
        many = <uint16_t *>xinf_malloc(capacity * sizeof(uint16_t))
        if many == NULL:
            return 0
    if handle:
        h.free_set = h.sets[handle].refs
        h.n_spare -= 1
    else:
        h.n_sets += 1
        handle = h.n_sets
    h.n_made += 1
    h.set_bytes += n_bytes
    set = &h.sets[handle]
    memset(set, 0, sizeof(HolderSet))
    if n > N_FEW:
        set.capacity = <uint16_t>capacity
        set.ids.many = many
    set.n = <uint16_t>n
    return handle


cdef inline uint32_t place_of(const uint16_t *ids, uint32_t n, uint16_t id) noexcept nogil:
    """How many of the sorted ids are below `id`."""
    cdef uint32_t low = 0, middle
    while n > low:
        middle = (low + n) // 2
        if ids[middle] < id:
            low = middle + 1
        else:
            n = middle
    return low


cdef inline bint lists(Holders *h, uint32_t handle, uint16_t id) noexcept nogil:
    cdef HolderSet *set = &h.sets[handle]
    cdef uint32_t at = place_of(ids_of(set), set.n, id)
    return at < set.n and ids_of(set)[at] == id


cdef inline uint32_t with_id(Holders *h, uint32_t source, uint16_t id) noexcept nogil:
    """The set of the ids of `source` and `id`; `source` itself if it lists it. 0: no room for one more set.

    A set that is new has no refs yet: the caller refers to it at once.
    """
    cdef HolderSet *old = &h.sets[source]
    cdef HolderSet *set
    cdef uint16_t *ids = ids_of(old)
    cdef uint16_t *others
    cdef uint32_t n = old.n, at = place_of(ids, n, id), handle
    cdef uint32_t slot
    cdef uint64_t hash = old.hash + id_hash(id)
    if at < n and ids[at] == id:
        return source
    slot = slot_home(h, hash)
    while h.slots[slot]:
        set = &h.sets[h.slots[slot]]
        if set.hash == hash and set.n == n + 1:
            others = ids_of(set)
            if (others[at] == id and memcmp(others, ids, at * 2) == 0
                    and memcmp(others + at + 1, ids + at, (n - at) * 2) == 0):
                return h.slots[slot]
        slot = (slot + 1) & (h.n_slots - 1)
    handle = new_set(h, n + 1, source)
    if handle == 0:
        return 0
    set = &h.sets[handle]
    others = ids_of(set)
    memcpy(others, ids, at * 2)
    others[at] = id
    memcpy(others + at + 1, ids + at, (n - at) * 2)
    set.hash = hash
    list_set(h, handle)
    return handle


cdef inline uint32_t without_id(Holders *h, uint32_t source, uint16_t id) noexcept nogil:
    """The set of the ids of `source`, which lists `id` and another one, but for `id`. 0: no room for one more set."""
    cdef HolderSet *old = &h.sets[source]
    cdef HolderSet *set
    cdef uint16_t *ids = ids_of(old)
    cdef uint16_t *others
    cdef uint32_t n = old.n, at = place_of(ids, n, id), handle
    cdef uint64_t hash = old.hash - id_hash(id)
    cdef uint32_t slot = slot_home(h, hash)
    while h.slots[slot]:
        set = &h.sets[h.slots[slot]]
        if set.hash == hash and set.n == n - 1:
            others = ids_of(set)
            if memcmp(others, ids, at * 2) == 0 and memcmp(others + at, ids + at + 1, (n - 1 - at) * 2) == 0:
                return h.slots[slot]
        slot = (slot + 1) & (h.n_slots - 1)
    handle = new_set(h, n - 1, source)
    if handle == 0:
        return 0
    set = &h.sets[handle]
    others = ids_of(set)
    memcpy(others, ids, at * 2)
    memcpy(others + at, ids + at + 1, (n - 1 - at) * 2)
    set.hash = hash
    list_set(h, handle)
    return handle


# ---- replicas -----------------------------------------------------------------------------------------------------


cdef inline void scrub(Holders *h, uint32_t n_sets) noexcept nogil:
    """Take retired ids out of the next sets."""
    cdef HolderSet *set
    cdef uint16_t *ids
    cdef uint16_t id
    cdef uint32_t step, i, kept
    for step in range(n_sets):
        if h.n_retired == 0 or h.n_sets == 0:
            return
        h.scrub_hand = h.scrub_hand % h.n_sets + 1
        set = &h.sets[h.scrub_hand]
        if set.is_free or set.refs == 0:
            continue
        ids = ids_of(set)
        for i in range(set.n):
            if h.owner[ids[i]] == NO_ID:
                break
        else:
            continue
        unlist_set(h, h.scrub_hand)
        if h.scrub_hand == h.last_from or h.scrub_hand == h.last_to:
            h.last_id = NO_ID
        kept = 0
        for i in range(set.n):
            id = ids[i]
            if h.owner[id] == NO_ID:
                set.hash -= id_hash(id)
                lose(h, id, set.refs)
            else:
                ids[kept] = id
                kept += 1
        set.n = <uint16_t>kept
        if kept:
            list_set(h, h.scrub_hand)  # perhaps a second one of the same ids, which does no harm
        else:
            clear_ids(h, set)


cdef inline uint16_t claim_id(Holders *h, uint32_t replica) noexcept nogil:
    """The id of a replica, a new one if need be."""
    cdef uint16_t id = h.id_of[replica]
    if id != NO_ID:
        return id
    if h.n_free_ids == 0:
        scrub(h, h.n_sets)  # there are twice as many ids as replicas: this frees some
    h.n_free_ids -= 1
    id = h.free_ids[h.n_free_ids]
    h.id_of[replica] = id
    h.owner[id] = <uint16_t>replica
    h.held[id] = 0
    return id


cdef inline void retire(Holders *h, uint32_t replica) noexcept nogil:
    """Let a replica hold nothing any more."""
    cdef uint16_t id = h.id_of[replica]
    if id == NO_ID:
        return
    h.id_of[replica] = NO_ID
    h.owner[id] = NO_ID
    if h.held[id] == 0:
        h.free_ids[h.n_free_ids] = id
        h.n_free_ids += 1
        return
    h.n_held -= h.held[id]
    h.n_active -= 1
    h.n_retired += 1

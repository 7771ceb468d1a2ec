# Records in pages: found by a 64-bit hash, queued in lists, named by handles that stay.
#
#     heads (uint32, pages of 1024)        records (pages of 1024, one size per slab)
#     ┌───┬───┬───┬───┐                    ┌──────────────────────────────────────────┬───────────┐
#     │ 0 │ 7 │ 0 │ 3 │ ──▶ record 3:      │ hash 8 B │ next │ to │ before │ after     │ the rest  │
#     └───┴───┴───┴───┘                    └─────────────┬─────────────┬──────────────┴───────────┘
#      a bucket: 0 is empty                              │             └─ neighbours in a Queue
#                                                        └─ of its bucket; of a free record: the next free one
#
# Linear hashing (Litwin 1980): whenever there are more records than buckets, the next bucket in line splits in two. So
# growing moves about one record per record that comes, never all of them at once, and no record ever changes its
# address or handle. What is hashed is mixed with a secret first: the hashes come from clients, who could fill one bucket.
# Pages are not given back before `close_slab`.
#
# Invariants: a live record is in the bucket of its hash exactly once; `before` of a record in no queue is OFF, of a free
# record GONE; handle 0 is nobody.
#
#     find, make, erase  O(1) expected     append, unlink  O(1)     reserve  O(new pages)     empty_slab  O(buckets)

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from xinf._fast.alloc cimport xinf_calloc, xinf_malloc
from xinf._fast.chunkhash cimport fold

cdef enum:
    NONE = 0
    OFF = 0xFFFFFFFF
    GONE = 0xFFFFFFFE
    PAGE_SHIFT = 10
    PAGE = 1 << PAGE_SHIFT  # records, or heads
    MAX_PAGES = 1 << 21  # handles stay far from OFF and GONE
    MALLOC_BYTES = 16  # what an allocation costs besides

# The first member of every record.
cdef struct Record:
    uint64_t hash
    uint32_t next
    uint32_t to  # the record of another slab that this one leads to, or NONE
    uint32_t before
    uint32_t after

cdef struct Queue:
    uint32_t first
    uint32_t last

cdef struct Slab:
    uint8_t **pages
    uint32_t **heads
    size_t record_bytes
    uint64_t secret
    uint32_t max_pages
    uint32_t n_pages
    uint32_t n_head_pages
    uint32_t n_made  # handles below it were given out some time
    uint32_t n_used
    uint32_t free
    uint32_t n_buckets
    uint32_t mask  # the least power of two that is not below n_buckets, less 1


cdef inline size_t page_bytes(size_t record_bytes) noexcept nogil:
    """What a page of records costs, with the heads for it and the places in the two directories."""
    return PAGE * (record_bytes + sizeof(uint32_t)) + 2 * (sizeof(void *) + MALLOC_BYTES)


cdef inline bint open_slab(Slab *slab, size_t record_bytes, uint32_t max_pages, uint64_t secret) noexcept nogil:
    """Make an empty slab. 0: out of memory; what was had is freed by close_slab."""
    memset(slab, 0, sizeof(Slab))
    slab.record_bytes = record_bytes
    slab.max_pages = max_pages
    slab.secret = secret
    slab.n_made = 1
    slab.n_buckets = PAGE
    slab.mask = PAGE - 1
    slab.pages = <uint8_t **>xinf_calloc(max_pages, sizeof(uint8_t *))
    slab.heads = <uint32_t **>xinf_calloc(max_pages, sizeof(uint32_t *))
    return slab.pages != NULL and slab.heads != NULL and add_heads(slab)


cdef inline void close_slab(Slab *slab) noexcept nogil:
    cdef uint32_t i
    if slab.pages != NULL:
        for i in range(slab.n_pages):
            free(slab.pages[i])
    if slab.heads != NULL:
        for i in range(slab.n_head_pages):
            free(slab.heads[i])
    free(slab.pages)
    free(slab.heads)
    memset(slab, 0, sizeof(Slab))


cdef inline size_t slab_bytes(const Slab *slab) noexcept nogil:
    return (
        slab.n_pages * (PAGE * slab.record_bytes + MALLOC_BYTES)
        + slab.n_head_pages * (PAGE * sizeof(uint32_t) + MALLOC_BYTES) + 2 * slab.max_pages * sizeof(void *)
    )


cdef inline bint add_heads(Slab *slab) noexcept nogil:
    slab.heads[slab.n_head_pages] = <uint32_t *>xinf_calloc(PAGE, sizeof(uint32_t))
    if slab.heads[slab.n_head_pages] == NULL:
        return 0
    slab.n_head_pages += 1
    return 1


# ---- records and buckets ----------------------------------------------------------------------------------------------

cdef inline Record *record_at(const Slab *slab, uint32_t at) noexcept nogil:
    return <Record *>(slab.pages[at >> PAGE_SHIFT] + (at & (PAGE - 1)) * slab.record_bytes)


cdef inline uint64_t mixed(const Slab *slab, uint64_t hash) noexcept nogil:
    return fold(hash ^ slab.secret, <uint64_t>0x9E3779B97F4A7C15)


cdef inline uint32_t *head_of(const Slab *slab, uint64_t x) noexcept nogil:
    """The bucket of a mixed hash; those in line to be split still hold what the new one will."""
    cdef uint32_t bucket = <uint32_t>x & slab.mask
    if bucket >= slab.n_buckets:
        bucket &= slab.mask >> 1
    return &slab.heads[bucket >> PAGE_SHIFT][bucket & (PAGE - 1)]


cdef inline uint32_t find(const Slab *slab, uint64_t hash) noexcept nogil:
    """The record of a hash, or NONE."""
    cdef uint32_t at = head_of(slab, mixed(slab, hash))[0]
    while at != NONE and record_at(slab, at).hash != hash:
        at = record_at(slab, at).next
    return at


cdef inline bint split(Slab *slab) noexcept nogil:
    """Add a bucket, filled from the one in line. 0: no room, which only makes buckets fuller."""
    cdef uint32_t added = slab.n_buckets, at, following
    cdef uint32_t *link
    cdef uint32_t *new_link
    if added == slab.n_head_pages << PAGE_SHIFT:
        if slab.n_head_pages == slab.max_pages or not add_heads(slab):
            return 0
    if added > slab.mask:
        slab.mask = 2 * slab.mask + 1
    link = head_of(slab, added & (slab.mask >> 1))
    slab.n_buckets += 1
    new_link = head_of(slab, added)
    at = link[0]
    while at != NONE:
        following = record_at(slab, at).next
        if <uint32_t>mixed(slab, record_at(slab, at).hash) & slab.mask == added:
            new_link[0] = at
            new_link = &record_at(slab, at).next
        else:
            link[0] = at
            link = &record_at(slab, at).next
        at = following
    link[0] = NONE
    new_link[0] = NONE
    return 1


cdef inline size_t room_in(const Slab *slab) noexcept nogil:
    """Records that `make` can make without another page."""
    return (<size_t>slab.n_pages << PAGE_SHIFT) - slab.n_used - 1 if slab.n_pages else 0


cdef inline bint reserve(Slab *slab, size_t n) noexcept nogil:
    """See to pages for n more records, as far as max_pages allows. 0: out of memory; the pages had until then stay."""
    while room_in(slab) < n and slab.n_pages < slab.max_pages:
        slab.pages[slab.n_pages] = <uint8_t *>xinf_malloc(PAGE * slab.record_bytes)
        if slab.pages[slab.n_pages] == NULL:
            return 0
        slab.n_pages += 1
    return 1


cdef inline uint32_t make(Slab *slab, uint64_t hash) noexcept nogil:
    """Make the record of a hash that has none, in no queue, the rest of it zeros. NONE: no room."""
    cdef uint32_t at = slab.free
    cdef uint32_t *head
    cdef Record *record
    if at != NONE:
        slab.free = record_at(slab, at).next
    elif slab.n_made < slab.n_pages << PAGE_SHIFT:
        at = slab.n_made
        slab.n_made += 1
    else:
        return NONE
    slab.n_used += 1
    if slab.n_used > slab.n_buckets:
        split(slab)
    record = record_at(slab, at)
    memset(record, 0, slab.record_bytes)
    head = head_of(slab, mixed(slab, hash))
    record.hash = hash
    record.before = OFF
    record.next = head[0]
    head[0] = at
    return at


cdef inline void erase(Slab *slab, uint32_t at) noexcept nogil:
    """Free a record that is in no queue."""
    cdef Record *record = record_at(slab, at)
    cdef uint32_t *link = head_of(slab, mixed(slab, record.hash))
    while link[0] != at:
        link = &record_at(slab, link[0]).next
    link[0] = record.next
    record.before = GONE
    record.next = slab.free
    slab.free = at
    slab.n_used -= 1


cdef inline void empty_slab(Slab *slab) noexcept nogil:
    """Free all records, none of which is in a queue. Pages and buckets stay."""
    cdef uint32_t i
    for i in range(slab.n_head_pages):
        memset(slab.heads[i], 0, PAGE * sizeof(uint32_t))
    slab.n_made = 1
    slab.n_used = 0
    slab.free = NONE


# ---- queues -----------------------------------------------------------------------------------------------------------

cdef inline bint is_queued(const Record *record) noexcept nogil:
    return record.before != OFF


cdef inline void append(Slab *slab, Queue *queue, uint32_t at) noexcept nogil:
    """Put a record that is in no queue at the end of one."""
    cdef Record *record = record_at(slab, at)
    record.before = queue.last
    record.after = NONE
    if queue.last != NONE:
        record_at(slab, queue.last).after = at
    else:
        queue.first = at
    queue.last = at


cdef inline void unlink(Slab *slab, Queue *queue, uint32_t at) noexcept nogil:
    """Take a record out of the queue that it is in."""
    cdef Record *record = record_at(slab, at)
    if record.before != NONE:
        record_at(slab, record.before).after = record.after
    else:
        queue.first = record.after
    if record.after != NONE:
        record_at(slab, record.after).before = record.before
    else:
        queue.last = record.before
    record.before = OFF

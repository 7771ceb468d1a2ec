# cython: autotestdict=False
"""The prefix index: which replica holds which chunk of prompt text, bounded in bytes.

    directory (uint32)          segments of 256 buckets; a bucket is one cache line of 4 entries of 16 bytes
    ┌───┬───┬───┬───┐           ┌───────────────────────────────────────────────────┬─────┐
    │ 0 │ 0 │ 2 │ 1 │ ──▶  2:   │ hash 8 B │ position 4 B │ young passed, set 30 bit │ ... │
    └───┴───┴───┴───┘           └────────────────────────────────────────┬──────────┴─────┘
     leading bits of a hash                                              └─▶ holders.pxd: the replicas that hold it

An entry is one chunk hash with the set of replicas that hold it and the position (tokens, blocks or chunks: the caller's
unit) it stands for. The leading bits of the (mixed) hash name the segment, the last ones its bucket; a full bucket
overflows into the next one of its segment, and says so ("passed"). A segment that is full splits in two by the next bit
(extendible hashing), so growing never moves more than 1024 entries at once; when the bytes are used up it evicts
instead, by a clock: an entry is young until the hand has gone round once, and the hand takes the next that is not. What
"young" looks like flips with each round, so the hand clears no marks and an eviction is a step or two, always. Segments
lie in one reservation of address space, in huge pages where the kernel has them, and cost memory once they are used.

Invariants: an entry is in the first bucket from its home on that had room, all between are full and passed; an entry has
a set; a segment has a free bucket; the bytes in use never pass `max_bytes`. Chains may have holes for any reason, so only
the furthest chunk held counts and a match does not end at a miss.

    insert   O(chunks), and O(holders) for each new set of holders met; eviction amortized in it
    match    O(chunks + holders of the distinct sets met); ends early once every replica that holds anything was met
             reach_far: O(lengths held x log chunks + holders) where replicas hold beginnings
    remove   like insert      drop, nbytes, len  O(1)
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport SIZE_MAX, UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_calloc, xinf_realloc, xinf_reserve
from xinf._fast.buffer cimport Buffer
from xinf._fast.chunkhash cimport chunk_hash, fold
from xinf._fast.holders cimport (
    MALLOC_BYTES, NO_ID, HolderSet, claim_id, close_holders, empty_next, gain, holder_table_bytes, ids_of, is_pressed,
    lists, lose, lose_all, open_holders, plan_holders, retire, scrub, unref, with_id, without_id,
)
from xinf._fast.positions cimport place_chunks

cdef extern from *:
    """
    #define xinf_prefetch(p) __builtin_prefetch((p), 1, 3)
    """
    void prefetch "xinf_prefetch"(const void *p) noexcept nogil
    int lowest_bit "__builtin_ctz"(unsigned int mask) noexcept nogil

# The least `max_bytes`: fixed tables and a few segments.
MIN_BYTES = MIN_INDEX_BYTES

cdef enum:
    BUCKET = 4  # entries in a cache line
    N_BUCKETS = 256
    SEGMENT = BUCKET * N_BUCKETS
    FULL_BUCKET = 15  # a bit for each entry
    FULL = 832  # entries at which a segment splits: 13/16, where a miss still reads 1.4 lines on average
    CROWDED = 512  # entries at which a segment evicts once there is no other to split into
    AHEAD = 32  # chunks whose buckets are fetched before they are needed; a power of two
    LEAF = 32  # chunks of which `reach_far` looks at each
    MIN_WINDOW = 4  # chunks; what `reach_far` looks at to know who holds the text there
    MAX_WINDOW = 128
    MAX_SETS = 16  # distinct ones in a window; more are not told apart from others
    SCRUB_SETS = 4  # sets looked at per inserted chunk while retired ids are about
    YOUNG_BIT = 0x80000000  # equal to its segment's phase: inserted since the hand went through 0
    # In the first entry of a full bucket: entries of it, or of one before it, may stand behind it. Without it a miss ends
    # at a full bucket, of which there are many, instead of waiting for the next cache line.
    PASSED_BIT = 0x40000000
    SET_BITS = 0x3FFFFFFF
    KIND_PLAIN = 6  # of chunks of plain bytes; the same as text in the canonical chain


cdef inline uint64_t mixed(uint64_t hash) noexcept nogil:
    """Spread once more: callers may number their chunks 1, 2, 3."""
    return fold(hash ^ <uint64_t>0xA0761D6478BD642F, <uint64_t>0x9E3779B97F4A7C15)


cdef inline uint32_t home_of(uint64_t hash) noexcept nogil:
    return <uint32_t>(mixed(hash) & (N_BUCKETS - 1))


cdef inline uint32_t taken_mask(const Entry *bucket) noexcept nogil:
    return (
        <uint32_t>(bucket[0].holders != 0) | <uint32_t>(bucket[1].holders != 0) << 1
        | <uint32_t>(bucket[2].holders != 0) << 2 | <uint32_t>(bucket[3].holders != 0) << 3
    )


cdef inline uint32_t same_mask(const Entry *bucket, uint64_t hash) noexcept nogil:
    return (
        <uint32_t>(bucket[0].hash == hash) | <uint32_t>(bucket[1].hash == hash) << 1
        | <uint32_t>(bucket[2].hash == hash) << 2 | <uint32_t>(bucket[3].hash == hash) << 3
    )


cdef inline Entry *probe(Entry *bucket, uint64_t hash) noexcept nogil:
    """Look for a hash from its home on: up to the first bucket with room. NULL: it is not there.

    Which of the four it is cannot be predicted, so they are compared without branches.
    """
    cdef uint32_t same = same_mask(bucket, hash), taken
    if same and bucket[lowest_bit(same)].holders:
        return bucket + lowest_bit(same)
    taken = taken_mask(bucket)
    if same & taken:  # behind one that is free and was the same
        return bucket + lowest_bit(same & taken)
    return probe_on(bucket, hash) if taken == FULL_BUCKET and bucket[0].holders & PASSED_BIT else NULL


cdef Entry *probe_on(Entry *bucket, uint64_t hash) noexcept nogil:
    """Look into the buckets behind a full home."""
    # Segments are aligned to their size.
    cdef Entry *base = <Entry *>(<size_t>bucket & ~<size_t>(SEGMENT * sizeof(Entry) - 1))
    cdef uint32_t at = <uint32_t>(bucket - base), taken = FULL_BUCKET, same
    while taken == FULL_BUCKET and base[at].holders & PASSED_BIT:
        at = (at + BUCKET) & (SEGMENT - 1)
        taken = taken_mask(base + at)
        same = same_mask(base + at, hash) & taken
        if same:
            return base + at + lowest_bit(same)
    return NULL


cdef inline uint32_t phase_of(const Segment *segments, const Entry *entries, const Entry *entry) noexcept nogil:
    """What a young entry of its segment looks like."""
    return segments[<size_t>(entry - entries) // SEGMENT].phase


cdef inline void rejuvenate(const Segment *segments, const Entry *entries, Entry *entry) noexcept nogil:
    entry.holders = (entry.holders & ~<uint32_t>YOUNG_BIT) | phase_of(segments, entries, entry)


cdef inline Entry *home_bucket(Entry *entries, const uint32_t *directory, int depth, uint64_t hash) noexcept nogil:
    """The home of a hash."""
    cdef uint64_t x = mixed(hash)
    return entries + <size_t>directory[x >> (64 - depth)] * SEGMENT + (x & (N_BUCKETS - 1)) * BUCKET


cdef inline size_t window_begin(const Search *search, size_t low, size_t end) noexcept nogil:
    """Where the window begins that ends with chunk `end`."""
    cdef size_t least = max(low, end - MAX_WINDOW if end > MAX_WINDOW else 0), begin = end
    while begin > least and (
        end - begin < MIN_WINDOW or search.ends[end - 1] - search.ends[begin - 1] < search.window_bytes
    ):
        begin -= 1
    return begin


@cython.final
@cython.auto_pickle(False)
cdef class PrefixIndex:
    """Chunk hash -> replicas that hold it. Replicas are small integers below `max_replicas`."""

    def __cinit__(self, max_bytes: int):
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes is {max_bytes}, must be at least {MIN_BYTES}")
        self.max_bytes = max_bytes
        plan_holders(&self.holders, self.max_bytes)
        self.plan_sizes()
        self.entries = <Entry *>xinf_reserve(<size_t>self.max_segments * SEGMENT * sizeof(Entry))
        self.segments = <Segment *>xinf_calloc(self.max_segments, sizeof(Segment))
        self.directory = <uint32_t *>xinf_calloc(<size_t>1 << self.max_depth, sizeof(uint32_t))
        if not (self.entries and self.segments and self.directory and open_holders(&self.holders)):
            raise MemoryError("out of memory for a prefix index")
        self.depth = 1
        self.n_segments = 1
        memset(self.entries, 0, SEGMENT * sizeof(Entry))

    def __dealloc__(self):
        free(self.entries)
        free(self.segments)
        free(self.directory)
        free(self.trail)
        close_holders(&self.holders)

    cdef void plan_sizes(self):
        """Give the segments what tables and sets leave."""
        cdef size_t tables = holder_table_bytes(&self.holders), per_segment = SEGMENT * sizeof(Entry) + sizeof(Segment)
        cdef size_t rest
        self.max_depth = 1
        while True:
            # Two places in the directory for each segment, so that segments can be of unlike depth.
            self.fixed_bytes = tables + (<size_t>sizeof(uint32_t) << self.max_depth)
            rest = self.max_bytes - self.fixed_bytes - self.holders.max_set_bytes
            if rest // per_segment * 2 <= <size_t>1 << self.max_depth or self.max_depth == 30:
                break
            self.max_depth += 1
        self.max_segments = <uint32_t>min(rest // per_segment, <size_t>1 << 30)
        self.fixed_bytes += self.max_segments * sizeof(Segment)

    # ---- entries --------------------------------------------------------------------------------------------------

    cdef Entry *bucket_of(self, uint64_t hash) noexcept nogil:
        return home_bucket(self.entries, self.directory, self.depth, hash)

    cdef Entry *find(self, uint64_t hash) noexcept nogil:
        return probe(self.bucket_of(hash), hash)

    cdef void put(self, uint32_t segment, uint64_t hash, uint32_t position, uint32_t holders) noexcept nogil:
        """Enter what is not there into a segment that has room."""
        cdef Entry *base = self.entries + <size_t>segment * SEGMENT
        cdef uint32_t at = home_of(hash) * BUCKET, taken = taken_mask(base + at)
        while taken == FULL_BUCKET:
            base[at].holders |= PASSED_BIT
            at = (at + BUCKET) & (SEGMENT - 1)
            taken = taken_mask(base + at)
        at += lowest_bit(~taken)
        base[at].hash = hash
        base[at].position = position
        base[at].holders = holders
        self.segments[segment].n += 1

    cdef void erase(self, Entry *entry) noexcept nogil:
        """Take an entry out and close the gap that a full bucket leaves, so that there are no tombstones."""
        cdef size_t number = entry - self.entries
        cdef uint32_t segment = <uint32_t>(number // SEGMENT)
        cdef Entry *base = self.entries + <size_t>segment * SEGMENT
        cdef Entry *moved
        cdef uint32_t gap = <uint32_t>(number % SEGMENT) // BUCKET, at, i
        cdef bint is_full = taken_mask(base + gap * BUCKET) == FULL_BUCKET
        entry.holders = 0
        self.segments[segment].n -= 1
        at = gap
        while is_full:
            at = (at + 1) & (N_BUCKETS - 1)
            moved = NULL
            for i in range(at * BUCKET, at * BUCKET + BUCKET):
                if base[i].holders == 0:
                    is_full = 0
                elif ((at - home_of(base[i].hash)) & (N_BUCKETS - 1)) >= ((at - gap) & (N_BUCKETS - 1)):
                    moved = &base[i]  # its home is not between the gap and where it is, cyclically
            if moved != NULL:
                entry[0] = moved[0]
                entry.holders &= ~<uint32_t>PASSED_BIT
                base[gap * BUCKET].holders |= PASSED_BIT  # perhaps no longer: that costs a look, no more
                moved.holders = 0
                entry = moved
                gap = at
        # The bucket that has room now was not passed by anything that is left. Kept, the mark would make every miss walk on
        # once the bucket is full again, and after enough evictions every bucket would bear it.
        base[gap * BUCKET].holders &= ~<uint32_t>PASSED_BIT

    cdef void free_entry(self, Entry *entry) noexcept nogil:
        """Let nobody hold a chunk."""
        cdef uint32_t set = entry.holders & SET_BITS
        lose_all(&self.holders, set, 1)
        unref(&self.holders, set)
        self.erase(entry)
        self.n_nodes -= 1

    # ---- segments -------------------------------------------------------------------------------------------------

    cdef bint split(self, uint32_t segment, uint64_t x) noexcept nogil:
        """Split the segment that the mixed hash `x` leads to by one more bit. 0: there is no room for another."""
        cdef Entry[SEGMENT] old
        cdef Entry *base = self.entries + <size_t>segment * SEGMENT
        cdef int depth = self.segments[segment].depth
        cdef uint32_t twin = self.n_segments
        cdef size_t i, first, half
        cdef uint32_t bit
        if twin == self.max_segments or depth == self.max_depth:
            return 0
        if depth == self.depth:
            for i in range(<size_t>1 << self.depth, 0, -1):
                self.directory[2 * i - 1] = self.directory[2 * i - 2] = self.directory[i - 1]
            self.depth += 1
        self.n_segments += 1
        half = <size_t>1 << (self.depth - depth - 1)
        first = <size_t>(x >> (64 - self.depth)) & ~(2 * half - 1)
        for i in range(first + half, first + 2 * half):
            self.directory[i] = twin
        memcpy(old, base, sizeof(old))
        memset(base, 0, sizeof(old))
        memset(self.entries + <size_t>twin * SEGMENT, 0, sizeof(old))
        memset(&self.segments[segment], 0, sizeof(Segment))
        self.segments[segment].depth = self.segments[twin].depth = <uint8_t>(depth + 1)
        for i in range(SEGMENT):
            if old[i].holders:
                bit = <uint32_t>(mixed(old[i].hash) >> (63 - depth)) & 1
                self.put(twin if bit else segment, old[i].hash, old[i].position, old[i].holders & ~<uint32_t>PASSED_BIT)
        return 1

    cdef void evict(self, uint32_t segment) noexcept nogil:
        """Free the next entry of a segment that was not inserted since the hand's round began."""
        cdef Entry *base = self.entries + <size_t>segment * SEGMENT
        cdef Segment *state = &self.segments[segment]
        cdef Entry *entry
        cdef uint32_t step
        for step in range(2 * SEGMENT + 1):
            if state.hand == 0:
                state.phase ^= YOUNG_BIT
            entry = &base[state.hand]
            state.hand = (state.hand + 1) & (SEGMENT - 1)
            if not entry.holders:
                continue
            if (entry.holders & YOUNG_BIT) == state.phase and self.holders.sets[entry.holders & SET_BITS].n:
                continue
            self.n_evicted += self.holders.sets[entry.holders & SET_BITS].n != 0
            self.free_entry(entry)
            return

    cdef void sweep(self, uint32_t segment) noexcept nogil:
        """Free the entries of a segment that nobody holds."""
        cdef Entry *base = self.entries + <size_t>segment * SEGMENT
        cdef uint32_t i = 0
        while i < SEGMENT:
            # What erasing moves here is looked at as well.
            if base[i].holders and self.holders.sets[base[i].holders & SET_BITS].n == 0:
                self.free_entry(&base[i])
            else:
                i += 1

    cdef void relieve(self) noexcept nogil:
        """Sets are getting scarce: empty the next two, and sweep the next segment of what was emptied before."""
        empty_next(&self.holders, 0)
        empty_next(&self.holders, 0)
        self.trail_begin = SIZE_MAX
        self.sweep_hand = (self.sweep_hand + 1) % self.n_segments
        self.sweep(self.sweep_hand)

    # ---- operations -----------------------------------------------------------------------------------------------

    cdef int check_replica(self, replica) except -1:
        cdef uint32_t n = self.holders.n_replicas
        if not 0 <= replica < n:
            raise ValueError(f"replica is {replica}, must be 0 to {n - 1} with {self.max_bytes} bytes")
        return replica

    def insert(self, replica: int, chain, positions=None) -> None:
        """Let `replica` hold the chunks of `chain`; the least recently inserted chunks of anyone make room.

        `chain`: (n,) uint64 buffer or bytes. `positions`: (n,) uint32, what each chunk stands for; 1, 2, 3... when None.
        The last position given for a chunk counts, for all replicas. Raises: ValueError, MemoryError.
        """
        cdef uint32_t row = self.check_replica(replica)
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer places = None if positions is None else Buffer(positions, 4, False, "positions")
        cdef const uint32_t *where = NULL
        if places is not None:
            if places.n != hashes.n:
                raise ValueError(f"{places.n} positions for {hashes.n} chunks")
            where = <const uint32_t *>places.items
        if hashes.n and not self.hold(row, <const uint64_t *>hashes.items, hashes.n, where, 0) and self.n_nodes == 0:
            raise MemoryError("out of memory for the first holder in a prefix index")

    cdef void join(self, Entry *entry, uint16_t id, uint32_t alone) noexcept nogil:
        """Let `id` hold a chunk too; `alone`, if there is no room for one more set of holders. `entry` may move."""
        cdef Holders *h = &self.holders
        cdef uint32_t source = entry.holders & SET_BITS, to, n_made = h.n_made
        cdef bint is_alone = 0
        if h.last_id == id and h.last_from == source:
            to = h.last_to
        else:
            to = with_id(h, source, id)
            if to == 0:
                to = alone
                is_alone = 1
            else:
                h.last_from = source
                h.last_to = to
                h.last_id = id
                h.sets[to].is_used = 1
        if to != source:
            if is_alone:
                lose_all(h, source, 1)
            gain(h, id)
            h.sets[to].refs += 1
            unref(h, source)
        entry.holders = to | phase_of(self.segments, self.entries, entry) | (entry.holders & PASSED_BIT)
        if n_made != h.n_made and is_pressed(h):
            self.relieve()  # moves entries

    cdef void enter(self, uint64_t hash, uint32_t position, uint32_t set) noexcept nogil:
        """Make an entry for a chunk that has none, at the price of others if need be."""
        cdef uint64_t x = mixed(hash)
        cdef uint32_t segment = self.directory[x >> (64 - self.depth)]
        while self.segments[segment].n >= FULL and self.split(segment, x):
            segment = self.directory[x >> (64 - self.depth)]
        # Without room to split, a segment is kept emptier than one that may: where every insert evicts, what counts is that
        # full buckets are few. Two at most for one insert, so that none pays for a whole segment.
        if self.segments[segment].n >= (CROWDED if self.n_segments == self.max_segments else FULL):
            self.evict(segment)
            if self.segments[segment].n >= CROWDED:
                self.evict(segment)
        self.put(segment, hash, position, set | self.segments[segment].phase)
        self.n_nodes += 1

    cdef bint hold(
        self, uint32_t replica, const uint64_t *hashes, size_t n, const uint32_t *positions, size_t n_kept
    ) noexcept nogil:
        """See insert. 0: no memory for a holder. Of the first `n_kept`, those that `replica` holds keep their positions."""
        cdef Holders *h = &self.holders
        cdef const uint32_t *directory = self.directory
        cdef Entry *entries = self.entries
        cdef Entry *entry
        cdef uint16_t id = claim_id(h, replica)
        cdef uint32_t alone = with_id(h, 0, id)
        cdef uint32_t position
        cdef int depth = self.depth
        cdef size_t i
        if alone == 0:
            return 0
        h.sets[alone].refs += 1  # keeps it while we are here
        self.forget_trail()
        for i in range(min(n, <size_t>AHEAD)):
            prefetch(home_bucket(entries, directory, depth, hashes[i]))
        for i in range(n):
            if i + AHEAD < n:
                prefetch(home_bucket(entries, directory, depth, hashes[i + AHEAD]))
            if h.n_retired:
                scrub(h, SCRUB_SETS)
            position = positions[i] if positions != NULL else <uint32_t>min(i + 1, <size_t>UINT32_MAX)
            entry = probe(home_bucket(entries, directory, depth, hashes[i]), hashes[i])
            if entry == NULL:
                self.enter(hashes[i], position, alone)
                depth = self.depth
                h.sets[alone].refs += 1
                gain(h, id)
                continue
            if i >= n_kept or entry.position == 0 or not lists(h, entry.holders & SET_BITS, id):
                entry.position = position
            if h.last_id == id and h.last_to == entry.holders & SET_BITS:
                rejuvenate(self.segments, entries, entry)  # it holds this one already
            else:
                self.join(entry, id, alone)
        unref(h, alone)
        return 1

    cdef size_t touch(self, uint32_t replica, const uint64_t *hashes, size_t n) noexcept nogil:
        """Make the first chunks of a chain young, as far as `replica` holds them. Gives how many. Their positions stay.

        Right after `reach` for the same chain, what that found is not looked up again; else forget_trail() goes first.
        """
        cdef Holders *h = &self.holders
        cdef Entry *entry
        cdef uint16_t id = h.id_of[replica]
        cdef uint32_t set, last_set = 0
        cdef size_t i, trail_begin = self.trail_begin
        self.trail_begin = SIZE_MAX
        if id == NO_ID:
            return 0
        for i in range(n):
            if i >= trail_begin:
                entry = self.trail[i]
            else:
                if i + AHEAD < n:
                    prefetch(self.bucket_of(hashes[i + AHEAD]))
                entry = self.find(hashes[i])
            if entry == NULL or entry.position == 0:
                return i
            set = entry.holders & SET_BITS
            if set != last_set:
                if not lists(h, set, id):
                    return i
                h.sets[set].is_used = 1
                last_set = set
            rejuvenate(self.segments, self.entries, entry)
        return n

    def remove(self, replica: int, chain) -> None:
        """Let `replica` no longer hold the chunks of `chain`; those it does not hold are ignored."""
        cdef uint32_t row = self.check_replica(replica)
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        self.let_go(row, <const uint64_t *>hashes.items, hashes.n)

    cdef void let_go(self, uint32_t replica, const uint64_t *hashes, size_t n) noexcept nogil:
        cdef Holders *h = &self.holders
        cdef uint16_t id = h.id_of[replica]
        cdef uint32_t source, to
        cdef Entry *entry
        cdef size_t i
        if id == NO_ID:
            return
        for i in range(n):
            if i + AHEAD < n:
                prefetch(self.bucket_of(hashes[i + AHEAD]))
            entry = self.find(hashes[i])
            if entry == NULL or not lists(h, entry.holders & SET_BITS, id):
                continue
            source = entry.holders & SET_BITS
            to = without_id(h, source, id) if h.sets[source].n > 1 else 0
            if to == 0:  # the last holder, or no room for one more set of them
                self.free_entry(entry)
                continue
            h.sets[to].refs += 1
            entry.holders = to | (entry.holders & ~<uint32_t>SET_BITS)
            unref(h, source)
            lose(h, id, 1)

    def drop(self, replica: int) -> None:
        """Let `replica` hold nothing any more. O(1): its entries are scrubbed by later inserts."""
        retire(&self.holders, self.check_replica(replica))

    def match(self, chain, lengths, hits=None) -> int:
        """Find how far each replica holds `chain`: the position of the furthest chunk held. Gives the largest.

        `lengths`: writable (replicas,) uint32, filled; replicas beyond its end are left out. `hits`: the same size,
        filled with the number of chunks up to and with that furthest one. Changes nothing in the index.
        """
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer out = Buffer(lengths, 4, True, "lengths")
        cdef Buffer places = None if hits is None else Buffer(hits, 4, True, "hits")
        cdef uint32_t *out_hits = NULL
        cdef uint32_t furthest
        if places is not None:
            if places.n != out.n:
                raise ValueError(f"hits has {places.n} items, lengths {out.n}")
            out_hits = <uint32_t *>places.items
        return self.reach(<const uint64_t *>hashes.items, hashes.n, <uint32_t *>out.items, out_hits, out.n, &furthest, 0)

    def match_far(self, chain, ends, window_bytes: int, lengths, hits=None) -> int:
        """The same for chains of which each replica holds a beginning; see reach_far. `ends`: (n,) uint32."""
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer places = Buffer(ends, 4, False, "ends")
        cdef Buffer out = Buffer(lengths, 4, True, "lengths")
        cdef Buffer hit = None if hits is None else Buffer(hits, 4, True, "hits")
        cdef uint32_t furthest
        if places.n != hashes.n or (hit is not None and hit.n != out.n):
            raise ValueError(f"{hashes.n} chunks have {places.n} ends")
        return self.reach_far(
            <const uint64_t *>hashes.items, <const uint32_t *>places.items, hashes.n, window_bytes, <uint32_t *>out.items,
            NULL if hit is None else <uint32_t *>hit.items, out.n, &furthest,
        )

    cdef uint32_t reach(
        self, const uint64_t *hashes, size_t n, uint32_t *lengths, uint32_t *hits, size_t n_lengths, uint32_t *furthest,
        bint keeps_trail,
    ) noexcept nogil:
        """See match. From the end: the first chunk met that a replica holds is its furthest.

        `furthest`: set to the number of chunks up to the last one that anybody holds. `keeps_trail`: for `touch`.
        """
        cdef Search search
        search.trail = self.trail_for(n) if keeps_trail else NULL
        if self.begin_search(&search, hashes, lengths, hits, n_lengths):
            self.walk(&search, 0, n)
        furthest[0] = search.furthest
        return search.best

    cdef uint32_t reach_far(
        self, const uint64_t *hashes, const uint32_t *ends, size_t n, uint32_t window_bytes, uint32_t *lengths,
        uint32_t *hits, size_t n_lengths, uint32_t *furthest,
    ) noexcept nogil:
        """The same for a long chain, of which each replica holds a beginning, by looking at some hundred chunks at most.

        `ends`: (n,) bytes of text up to each chunk's end. `window_bytes`: in a piece of so many bytes, a replica that
        holds text behind it holds a chunk. Where that is not so, what it holds may be found too short, never too long.
        """
        cdef Search search
        cdef size_t low = 0, high
        cdef uint64_t at_low, at_high
        search.trail = NULL
        if self.begin_search(&search, hashes, lengths, hits, n_lengths) and n:
            search.ends = ends
            search.window_bytes = window_bytes
            high = window_begin(&search, 0, n)
            while low < high and (low < MIN_WINDOW or ends[low] <= window_bytes):
                low += 1
            if high - low <= LEAF:
                self.walk(&search, 0, n)
            else:
                at_low = self.peek(&search, 0, low)
                at_high = self.peek(&search, high, n)
                # From the end, as `walk` does.
                if not (at_high and self.walk(&search, high, n)) and not self.halve(&search, low, at_low, high, at_high):
                    if at_low:
                        self.walk(&search, 0, low)
        furthest[0] = search.furthest
        return search.best

    cdef bint begin_search(
        self, Search *search, const uint64_t *hashes, uint32_t *lengths, uint32_t *hits, size_t n_lengths
    ) noexcept nogil:
        """0: nobody holds anything."""
        cdef Holders *h = &self.holders
        cdef uint32_t i
        self.trail_begin = SIZE_MAX
        search.hashes = hashes
        search.lengths = lengths
        search.hits = hits
        search.n_lengths = n_lengths
        search.best = search.furthest = search.n_found = 0
        if n_lengths:
            memset(lengths, 0, n_lengths * sizeof(uint32_t))
            if hits != NULL:
                memset(hits, 0, n_lengths * sizeof(uint32_t))
        if h.n_active == 0:
            return 0
        self.n_matches += 1
        if self.n_matches == 0:
            self.n_matches = 1
            for i in range(h.n_sets + 1):
                h.sets[i].seen = 0
        return 1

    cdef bint walk(self, Search *search, size_t begin, size_t end) noexcept nogil:
        """Look at the chunks from `end` down to `begin`. 1: every replica that holds anything was met."""
        cdef Holders *h = &self.holders
        cdef const uint32_t *directory = self.directory
        cdef const uint64_t *hashes = search.hashes
        cdef Entry *entries = self.entries
        cdef Home[AHEAD] homes
        cdef Home *trail = search.trail
        cdef Entry *entry
        cdef int depth = self.depth
        cdef uint32_t n_new, set, last_set = 0
        cdef size_t left
        for left in range(end, end - min(end - begin, <size_t>AHEAD), -1):
            homes[left & (AHEAD - 1)] = home_bucket(entries, directory, depth, hashes[left - 1])
            prefetch(homes[left & (AHEAD - 1)])
        left = end
        while left > begin:
            entry = probe(homes[left & (AHEAD - 1)], hashes[left - 1])
            if left > begin + AHEAD:
                homes[left & (AHEAD - 1)] = home_bucket(entries, directory, depth, hashes[left - 1 - AHEAD])
                prefetch(homes[left & (AHEAD - 1)])
            left -= 1
            if trail != NULL:
                trail[left] = entry
            if entry == NULL or entry.position == 0:
                continue
            set = entry.holders & SET_BITS
            if set == last_set or h.sets[set].seen == self.n_matches:
                continue
            last_set = set
            n_new = self.note(set, entry.position, search.lengths, search.hits, search.n_lengths, <uint32_t>left + 1)
            if n_new:
                search.best = max(search.best, entry.position)
                if search.n_found == 0:
                    search.furthest = <uint32_t>left + 1
                search.n_found += n_new
                if search.n_found == h.n_active:
                    break
        if trail != NULL:
            self.trail_begin = left
        return search.n_found == h.n_active

    cdef uint64_t peek(self, Search *search, size_t begin, size_t end) noexcept nogil:
        """Which sets hold the chunks of a window, as one number, equal for equal ones; 0: nobody holds any.

        All of them, because replicas with blocks of different sizes hold different chunks of the same text.
        """
        cdef Home[MAX_WINDOW] homes
        cdef uint32_t[MAX_SETS] sets
        cdef Entry *entry
        cdef uint32_t set, n_sets = 0, k
        cdef uint64_t number = 0
        cdef size_t i
        for i in range(begin, end):
            homes[i - begin] = self.bucket_of(search.hashes[i])
            prefetch(homes[i - begin])
        for i in range(begin, end):
            entry = probe(homes[i - begin], search.hashes[i])
            if entry == NULL or entry.position == 0:
                continue
            set = entry.holders & SET_BITS
            k = 0
            while k < n_sets and sets[k] != set:
                k += 1
            if k < n_sets or self.holders.sets[set].n == 0:
                continue
            if n_sets == MAX_SETS:
                return ~<uint64_t>begin  # as no other window: it is looked at closely
            sets[n_sets] = set
            n_sets += 1
            number += mixed(set)
        return number

    cdef bint halve(self, Search *search, size_t low, uint64_t at_low, size_t high, uint64_t at_high) noexcept nogil:
        """Find what ends between two windows, of which one ends at `low` and the other begins at `high`. 1: see walk.

        Whoever holds a chunk holds those before it, so between two windows with the same holders nothing ends.
        """
        cdef size_t middle, begin
        cdef uint64_t at_middle
        if at_low == at_high or low >= high:
            return 0
        if high - low <= LEAF:
            return self.walk(search, low, high)
        middle = low + (high - low) // 2
        begin = window_begin(search, low, middle)
        at_middle = self.peek(search, begin, middle)
        return (
            self.halve(search, middle, at_middle, high, at_high)
            or (at_middle and self.walk(search, begin, middle))
            or self.halve(search, low, at_low, begin, at_middle)
        )

    cdef void forget_trail(self) noexcept nogil:
        self.trail_begin = SIZE_MAX

    cdef Home *trail_for(self, size_t n) noexcept nogil:
        """Room for the entries of n chunks. NULL: out of memory, which only makes `touch` look them up again."""
        cdef Home *grown
        if n > self.trail_room:
            grown = <Home *>xinf_realloc(self.trail, 2 * n * sizeof(Home))
            if grown == NULL:
                return NULL
            self.trail = grown
            self.trail_room = 2 * n
        return self.trail

    cdef uint32_t note(
        self, uint32_t set, uint32_t position, uint32_t *lengths, uint32_t *hits, size_t n_lengths, uint32_t hit
    ) noexcept nogil:
        """Note how far the replicas of a set hold the chain, unless that is known. Gives how many it was news of."""
        cdef Holders *h = &self.holders
        cdef const uint16_t *ids = ids_of(&h.sets[set])
        cdef uint32_t i, n_new = 0
        cdef uint16_t replica
        h.sets[set].seen = self.n_matches
        for i in range(h.sets[set].n):
            replica = h.owner[ids[i]]
            if replica < n_lengths and replica != NO_ID and lengths[replica] == 0:
                lengths[replica] = position
                if hits != NULL:
                    hits[replica] = hit
                n_new += 1
        return n_new

    cdef uint32_t position_of(self, uint64_t hash) noexcept nogil:
        """The position of a chunk that is there."""
        return self.find(hash).position

    cdef uint32_t position_held(self, uint32_t replica, uint64_t hash) noexcept nogil:
        """The position of a chunk that `replica` holds; 0 if it does not."""
        cdef uint16_t id = self.holders.id_of[replica]
        cdef Entry *entry = self.find(hash)
        if id == NO_ID or entry == NULL or not lists(&self.holders, entry.holders & SET_BITS, id):
            return 0
        return entry.position

    # ---- what it holds --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Entries: pairs of a replica and a chunk it holds."""
        return self.holders.n_held

    @property
    def nbytes(self) -> int:
        """Bytes in use; never above max_bytes. Of the address space that is reserved, the rest costs nothing."""
        return self.fixed_bytes + self.n_segments * SEGMENT * sizeof(Entry) + self.holders.set_bytes

    @property
    def n_chunks(self) -> int:
        """Distinct chunks held by anyone, those that nobody holds any more and that are not swept yet included."""
        return self.n_nodes

    @property
    def evictions(self) -> int:
        """Chunks evicted since the beginning."""
        return self.n_evicted

    @property
    def max_replicas(self) -> int:
        """Replicas are numbered below this; depends on max_bytes (16,384 from 32 MiB on)."""
        return self.holders.n_replicas

    def held_by(self, replica: int) -> int:
        """Count the chunks that `replica` holds."""
        cdef uint16_t id = self.holders.id_of[self.check_replica(replica)]
        return 0 if id == NO_ID else self.holders.held[id]

    def _check(self) -> None:
        """Walk every invariant. For tests. Raises: AssertionError."""
        cdef Holders *h = &self.holders
        cdef Entry *entry
        cdef HolderSet *set
        cdef size_t at
        cdef uint32_t handle, segment, i
        refs, counts, n_nodes, n, set_bytes, n_spare = {}, {}, 0, 0, 4 * h.n_slots, 0
        for segment in range(self.n_segments):
            n = 0
            for at in range(SEGMENT):
                entry = &self.entries[segment * SEGMENT + at]
                if entry.holders:
                    n += 1
                    refs[entry.holders & SET_BITS] = refs.get(entry.holders & SET_BITS, 0) + 1
                    assert self.find(entry.hash) == entry, "an entry is found by its hash"
            assert n == self.segments[segment].n <= FULL, "entries of a segment"
            n_nodes += n
        assert n_nodes == self.n_nodes, "entries in all"
        for handle in range(1, h.n_sets + 1):
            set = &h.sets[handle]
            set_bytes += sizeof(HolderSet)
            if set.is_free:
                n_spare += 1
                continue
            assert set.refs == refs.pop(handle, 0) > 0, "refs count entries"
            ids = [ids_of(set)[i] for i in range(set.n)]
            assert ids == sorted(frozenset(ids)), "ids are sorted and distinct"
            for id in ids:
                counts[id] = counts.get(id, 0) + set.refs
            set_bytes += 2 * set.capacity + MALLOC_BYTES if set.capacity else 0
        assert not refs, "entries lead to sets"
        assert n_spare == h.n_spare, "spare sets"
        assert set_bytes == h.set_bytes <= h.max_set_bytes, "bytes of sets"
        assert {i: h.held[i] for i in range(h.n_ids) if h.held[i]} == counts, "held counts entries"
        live = {id: n for id, n in counts.items() if h.owner[<uint32_t>id] != NO_ID}
        assert sum(live.values()) == h.n_held, "pairs in all"
        assert len(live) == h.n_active, "replicas that hold anything"
        assert len(counts) - len(live) == h.n_retired, "retired ids"
        assert self.nbytes <= self.max_bytes, "within bounds"


def chain_bytes(data: bytes, seed: int, chunk_bytes: int = 64) -> bytes:
    """Chain plain bytes in chunks: little-endian uint64 each. Equal to the text chunks of a canonical chain."""
    if not 16 <= chunk_bytes <= 4096:
        raise ValueError(f"chunk_bytes is {chunk_bytes}, must be 16 to 4096")
    cdef Py_ssize_t size = chunk_bytes, at = 0, total = PyBytes_GET_SIZE(data)
    cdef uint64_t state = <uint64_t>(seed & 0xFFFFFFFFFFFFFFFF)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, (total + size - 1) // size * 8)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
    while at < total:
        state = chunk_hash(state, <const uint8_t *>PyBytes_AS_STRING(data) + at, min(size, total - at), KIND_PLAIN)
        memcpy(to, &state, 8)
        to += 8
        at += size
    return out


def hash_bytes(data: bytes, seed: int = 0) -> int:
    """Hash bytes to 64 bits, for seeds: hash_bytes(b"model", hash_bytes(b"tenant"))."""
    return chunk_hash(<uint64_t>(seed & 0xFFFFFFFFFFFFFFFF), <const uint8_t *>PyBytes_AS_STRING(data),
                      PyBytes_GET_SIZE(data), 0)


def token_positions(ends: bytes, n_tokens: int, n_known: int = 0, known_tokens: int = 0) -> bytes:
    """Give each chunk a token position: straight lines through (0, 0), a known chunk and the end.

    `ends`: (n,) uint32, bytes of text up to each chunk's end. `n_known`: chunks up to and with the one known to stand
    at `known_tokens`; 0 for none. Gives (n,) uint32, at least 1 and not decreasing.
    """
    cdef Buffer source = Buffer(ends, 4, False, "ends")
    if not 0 <= n_known <= source.n:
        raise ValueError(f"{len(ends)} bytes of ends, {n_known} chunks known")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, source.n * 4)
    place_chunks(
        <const uint32_t *>source.items, source.n, n_tokens, n_known, known_tokens, <uint32_t *>PyBytes_AS_STRING(out)
    )
    return out


def _entry_bytes() -> int:
    """For the layout test."""
    return sizeof(Entry)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

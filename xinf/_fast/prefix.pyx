# cython: autotestdict=False
"""The prefix index: which replica holds which chunk of prompt text, bounded in bytes.

    slots (uint32, open addressing, linear probing)        cells (32 bytes each, in pages of 1024)
    ┌───┬───┬───┬───┬───┬───┐      ┌──────────────┬──────────┬──────┬─────────────────────┬───┬───────┐
    │ 0 │ 7 │ 0 │ 3 │ 4 │ 0 │ ──▶  │ hash      8 B │ position │ more │ 6 holders (uint16)  │ n │ state │  node
    └───┴───┴───┴───┴───┴───┘      └──────────────┴──────────┴──┬───┴─────────────────────┴───┴───────┘
      handle = cell number + 1                                  └─▶ cell of 12 more holders ─▶ ...

A node is one chunk hash with the replicas that hold it and the position (tokens, blocks or chunks: the caller's unit) it
stands for. Holders are internal ids: dropping a replica only retires its id, in O(1); retired holders are scrubbed while
inserting goes on, and an id is used again when the last of them is gone.

Invariants: slots are at most 3/4 full; every node is in the slots exactly once and has a holder; holders of a node are
distinct; of a chain of cells only the one right behind the node is not full; `held[id]` counts the nodes that list
`id`; the bytes in use never pass `max_bytes`, not even while the slots grow.

Eviction is by CLOCK over the cells: insert marks a node as used, the hand clears the mark and takes the next unmarked
node. Chains may have holes for any reason, so only the furthest chunk held counts and a match does not end at a miss.

    insert   O(chunks x holders of a chunk), eviction amortized in it      remove  O(chunks x holders)
    match    O(chunks + holders met), ends early once every replica that holds anything was met
    drop     O(1)      nbytes, len  O(1)
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_calloc, xinf_malloc
from xinf._fast.chunkhash cimport chunk_hash, load64

cdef extern from *:
    """
    #define xinf_prefetch(p) __builtin_prefetch((p), 0, 1)
    """
    void prefetch "xinf_prefetch"(const void *p) noexcept nogil

# The least `max_bytes`: fixed tables, one page of cells and the first slots.
MIN_BYTES = 1 << 17

cdef enum:
    PAGE_CELLS = 1024
    N_INLINE = 6
    N_MORE = 12
    MIN_SLOTS = 1024
    PREFETCH_AHEAD = 8
    SCRUB_CELLS = 4  # cells looked at per inserted chunk while retired ids are about
    NO_ID = 0xFFFF  # of a replica: holds nothing; of an id: retired
    STATE_FREE = 0
    STATE_NODE = 1
    STATE_MORE = 2
    USED_BIT = 0x80
    KIND_PLAIN = 6  # of chunks of plain bytes; the same as text in the canonical chain

cdef struct Cell:
    uint64_t hash
    uint32_t position
    uint32_t more  # handle of the first cell with more holders; of a free cell: the next free one
    uint16_t[N_INLINE] holders
    uint16_t n  # of a node: holders, here and behind `more`
    uint8_t state
    uint8_t unused


cdef inline uint16_t *more_slot(Cell *cell, uint32_t i) noexcept nogil:
    """Holder i of a cell of more holders: the 12 bytes before `more`, then the 12 behind it."""
    return <uint16_t *>cell + i if i < N_INLINE else &cell.holders[i - N_INLINE]


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Buffer:
    """A held buffer of fixed-size items, or bytes."""

    cdef Py_buffer view
    cdef Py_ssize_t n

    def __cinit__(self, source, int item_bytes, bint is_writable, str name):
        PyObject_GetBuffer(source, &self.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if is_writable else 0))
        if self.view.itemsize not in (1, item_bytes) or self.view.len % item_bytes:
            size, length = self.view.itemsize, self.view.len
            raise ValueError(f"{name} must be items of {item_bytes} bytes, got {length} bytes in items of {size}")
        if is_writable and self.view.len and <size_t>self.view.buf % <size_t>item_bytes:
            raise ValueError(f"{name} must be aligned to {item_bytes} bytes")
        self.n = self.view.len // item_bytes

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


@cython.final
@cython.auto_pickle(False)
cdef class PrefixIndex:
    """Chunk hash -> replicas that hold it. Replicas are small integers below `max_replicas`."""

    cdef readonly size_t max_bytes
    cdef size_t fixed_bytes
    cdef Cell **pages
    cdef uint32_t n_pages
    cdef uint32_t max_pages
    cdef uint32_t n_cells  # cells ever handed out
    cdef uint32_t free_cell  # handle, 0: none
    cdef uint32_t *slots
    cdef uint32_t n_slots
    cdef uint32_t max_slots
    cdef int shift  # 64 - log2(n_slots)
    cdef uint32_t n_nodes
    cdef uint64_t n_held
    cdef uint32_t evict_hand
    cdef uint32_t scrub_hand
    cdef uint64_t n_evicted
    # replicas and ids
    cdef uint32_t n_replicas  # replicas allowed
    cdef uint32_t n_ids  # twice as many, so that retired ones can wait for the scrubber
    cdef uint16_t *id_of  # replica -> id or NO_ID
    cdef uint16_t *owner  # id -> replica or NO_ID
    cdef uint32_t *held  # id -> nodes that list it
    cdef uint16_t *free_ids
    cdef uint32_t n_free_ids
    cdef uint32_t n_retired
    cdef uint32_t n_active  # replicas that hold anything

    def __cinit__(self, max_bytes: int):
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes is {max_bytes}, must be at least {MIN_BYTES}")
        self.max_bytes = max_bytes
        self.n_ids = 64
        while self.n_ids < 1 << 15 and self.n_ids * 2048 <= self.max_bytes:
            self.n_ids *= 2
        self.n_replicas = self.n_ids // 2
        self.plan_sizes()
        self.pages = <Cell **>xinf_calloc(self.max_pages, sizeof(Cell *))
        self.slots = <uint32_t *>xinf_calloc(MIN_SLOTS, sizeof(uint32_t))
        self.id_of = <uint16_t *>xinf_malloc(self.n_replicas * sizeof(uint16_t))
        self.owner = <uint16_t *>xinf_malloc(self.n_ids * sizeof(uint16_t))
        self.held = <uint32_t *>xinf_calloc(self.n_ids, sizeof(uint32_t))
        self.free_ids = <uint16_t *>xinf_malloc(self.n_ids * sizeof(uint16_t))
        if not (self.pages and self.slots and self.id_of and self.owner and self.held and self.free_ids):
            raise MemoryError("out of memory for a prefix index")
        self.n_slots = MIN_SLOTS
        self.shift = 64 - 10
        memset(self.id_of, 0xFF, self.n_replicas * sizeof(uint16_t))
        memset(self.owner, 0xFF, self.n_ids * sizeof(uint16_t))
        for i in range(self.n_ids):
            self.free_ids[i] = <uint16_t>(self.n_ids - 1 - i)
        self.n_free_ids = self.n_ids

    def __dealloc__(self):
        cdef uint32_t i
        if self.pages != NULL:
            for i in range(self.n_pages):
                free(self.pages[i])
        free(self.pages)
        free(self.slots)
        free(self.id_of)
        free(self.owner)
        free(self.held)
        free(self.free_ids)

    cdef void plan_sizes(self):
        """Split max_bytes into slots and cells so that most chunks fit. Doubling the slots needs old and new at once."""
        cdef size_t tables, rest, n_slots = MIN_SLOTS, cells, best = 0, usable
        tables = self.n_replicas * sizeof(uint16_t) + self.n_ids * (2 * sizeof(uint16_t) + sizeof(uint32_t))
        while True:
            # 8 bytes of page pointer per page, 6 bytes per slot: 4 in the new table, 2 in the old one.
            if tables + 6 * n_slots >= self.max_bytes or n_slots > 1 << 30:
                break
            rest = self.max_bytes - tables - 6 * n_slots
            cells = rest // (PAGE_CELLS * sizeof(Cell) + sizeof(Cell *)) * PAGE_CELLS
            usable = min(cells, n_slots // 4 * 3)
            if usable > best:
                best = usable
                self.max_slots = <uint32_t>n_slots
                self.max_pages = <uint32_t>(cells // PAGE_CELLS)
            n_slots *= 2
        self.fixed_bytes = tables + self.max_pages * sizeof(Cell *)

    # ---- cells and slots ------------------------------------------------------------------------------------------

    cdef inline Cell *cell(self, uint32_t handle) noexcept nogil:
        return &self.pages[(handle - 1) // PAGE_CELLS][(handle - 1) % PAGE_CELLS]

    cdef inline uint32_t home(self, uint64_t hash) noexcept nogil:
        # Multiplied once more (2^64 / golden ratio): callers may number their chunks 1, 2, 3.
        return <uint32_t>((hash * <uint64_t>0x9E3779B97F4A7C15) >> self.shift)

    cdef inline uint32_t find(self, uint64_t hash) noexcept nogil:
        """Handle of the node, 0 for none."""
        cdef uint32_t at = self.home(hash)
        cdef uint32_t handle = self.slots[at]
        while handle and self.cell(handle).hash != hash:
            at = (at + 1) & (self.n_slots - 1)
            handle = self.slots[at]
        return handle

    cdef void place(self, uint32_t handle) noexcept nogil:
        cdef uint32_t at = self.home(self.cell(handle).hash)
        while self.slots[at]:
            at = (at + 1) & (self.n_slots - 1)
        self.slots[at] = handle

    cdef void unplace(self, uint32_t handle) noexcept nogil:
        """Take a node out of the slots and close the gap, so that there are no tombstones."""
        cdef uint32_t mask = self.n_slots - 1
        cdef uint32_t gap = self.home(self.cell(handle).hash)
        cdef uint32_t at, home
        while self.slots[gap] != handle:
            gap = (gap + 1) & mask
        at = gap
        while True:
            at = (at + 1) & mask
            if not self.slots[at]:
                break
            home = self.home(self.cell(self.slots[at]).hash)
            # Movable if its home is not between the gap and where it is, cyclically.
            if ((at - home) & mask) >= ((at - gap) & mask):
                self.slots[gap] = self.slots[at]
                gap = at
        self.slots[gap] = 0

    cdef bint grow_slots(self) noexcept nogil:
        cdef uint32_t *old = self.slots
        cdef uint32_t n_old = self.n_slots
        cdef uint32_t i
        if n_old >= self.max_slots:
            return 0
        self.slots = <uint32_t *>xinf_calloc(<size_t>n_old * 2, sizeof(uint32_t))
        if self.slots == NULL:
            self.slots = old
            return 0
        self.n_slots = n_old * 2
        self.shift -= 1
        for i in range(n_old):
            if old[i]:
                self.place(old[i])
        free(old)
        return 1

    cdef uint32_t take_cell(self, uint32_t keep) noexcept nogil:
        """A cell, at the price of another node if need be (never `keep`). 0: there is none."""
        cdef uint32_t handle = self.free_cell
        if handle == 0 and self.n_cells == self.n_pages * <uint32_t>PAGE_CELLS:
            if self.n_pages < self.max_pages:
                self.pages[self.n_pages] = <Cell *>xinf_calloc(PAGE_CELLS, sizeof(Cell))
                if self.pages[self.n_pages] != NULL:
                    self.n_pages += 1
            if self.n_cells == self.n_pages * <uint32_t>PAGE_CELLS:
                self.evict(keep)
                handle = self.free_cell
                if handle == 0:
                    return 0
        if handle:
            self.free_cell = self.cell(handle).more
        else:
            self.n_cells += 1
            handle = self.n_cells
        memset(self.cell(handle), 0, sizeof(Cell))
        return handle

    cdef void give_cell(self, uint32_t handle) noexcept nogil:
        cdef Cell *cell = self.cell(handle)
        cell.state = STATE_FREE
        cell.more = self.free_cell
        self.free_cell = handle

    # ---- holders --------------------------------------------------------------------------------------------------

    cdef uint16_t *find_holder(self, Cell *node, uint16_t id) noexcept nogil:
        cdef uint32_t i, n = node.n if node.n < N_INLINE else N_INLINE
        cdef uint32_t left = node.n - n
        cdef uint32_t more = node.more
        cdef uint16_t *slot
        for i in range(n):
            if node.holders[i] == id:
                return &node.holders[i]
        n = (left - 1) % N_MORE + 1 if left else 0
        while left:
            for i in range(n):
                slot = more_slot(self.cell(more), i)
                if slot[0] == id:
                    return slot
            left -= n
            n = N_MORE
            more = self.cell(more).more
        return NULL

    cdef uint16_t *last_holder(self, Cell *node) noexcept nogil:
        if node.n <= N_INLINE:
            return &node.holders[node.n - 1]
        return more_slot(self.cell(node.more), (node.n - N_INLINE - 1) % N_MORE)

    cdef bint add_holder(self, uint32_t handle, uint16_t id) noexcept nogil:
        """Let `id` hold a node; 0 if there is no cell left for it."""
        cdef Cell *node = self.cell(handle)
        cdef uint32_t more
        if self.find_holder(node, id) != NULL:
            return 1
        if node.n >= N_INLINE and (node.n - N_INLINE) % N_MORE == 0:
            more = self.take_cell(handle)
            if more == 0:
                return 0
            self.cell(more).state = STATE_MORE
            self.cell(more).more = node.more
            node.more = more
        node.n += 1
        self.last_holder(node)[0] = id
        if self.held[id] == 0:
            self.n_active += 1
        self.held[id] += 1
        self.n_held += 1
        return 1

    cdef void take_holder(self, Cell *node, uint16_t *slot) noexcept nogil:
        """Remove a holder: the last one takes its place. A node without holders is the caller's to free."""
        cdef uint16_t id = slot[0]
        cdef uint32_t more = node.more
        slot[0] = self.last_holder(node)[0]
        node.n -= 1
        if node.n >= N_INLINE and (node.n - N_INLINE) % N_MORE == 0:
            node.more = self.cell(more).more
            self.give_cell(more)
        self.held[id] -= 1
        if self.owner[id] == NO_ID:
            if self.held[id] == 0:
                self.n_retired -= 1
                self.free_ids[self.n_free_ids] = id
                self.n_free_ids += 1
            return
        self.n_held -= 1
        if self.held[id] == 0:
            self.n_active -= 1

    cdef void free_node(self, uint32_t handle) noexcept nogil:
        cdef Cell *node = self.cell(handle)
        while node.n:
            self.take_holder(node, self.last_holder(node))
        self.unplace(handle)
        self.give_cell(handle)
        self.n_nodes -= 1

    cdef bint evict(self, uint32_t keep) noexcept nogil:
        """Free the next node that was not used since the hand passed it last."""
        cdef uint64_t step
        cdef Cell *cell
        for step in range(2 * <uint64_t>self.n_cells + 1):
            self.evict_hand = self.evict_hand % self.n_cells + 1 if self.n_cells else 0
            if self.evict_hand == 0:
                return 0
            cell = self.cell(self.evict_hand)
            if cell.state & USED_BIT:
                cell.state &= ~USED_BIT & 0xFF
            elif cell.state == STATE_NODE and self.evict_hand != keep:
                self.free_node(self.evict_hand)
                self.n_evicted += 1
                return 1
        return 0

    cdef void scrub(self, uint32_t n_cells) noexcept nogil:
        """Remove retired holders from the next cells."""
        cdef Cell *cell
        cdef uint32_t i, k, n
        cdef uint16_t id
        for i in range(n_cells):
            if self.n_retired == 0 or self.n_cells == 0:
                return
            self.scrub_hand = self.scrub_hand % self.n_cells + 1
            cell = self.cell(self.scrub_hand)
            if cell.state & ~USED_BIT != STATE_NODE:
                continue
            k = cell.n
            while k > 0:  # from the last one, so that what takes a place was looked at
                k -= 1
                id = self.holder_at(cell, k)[0]
                if self.owner[id] == NO_ID:
                    self.take_holder(cell, self.holder_at(cell, k))
            if cell.n == 0:
                self.free_node(self.scrub_hand)

    cdef uint16_t *holder_at(self, Cell *node, uint32_t k) noexcept nogil:
        """Holder k in the order of arrival: inline ones first, then the cells from the last to the first."""
        cdef uint32_t more = node.more
        cdef uint32_t hops
        if k < N_INLINE:
            return &node.holders[k]
        hops = (node.n - N_INLINE - 1) // N_MORE - (k - N_INLINE) // N_MORE
        while hops:
            more = self.cell(more).more
            hops -= 1
        return more_slot(self.cell(more), (k - N_INLINE) % N_MORE)

    # ---- operations -----------------------------------------------------------------------------------------------

    cdef int check_replica(self, replica) except -1:
        if not 0 <= replica < self.n_replicas:
            raise ValueError(f"replica is {replica}, must be 0 to {self.n_replicas - 1} with {self.max_bytes} bytes")
        return replica

    cdef uint16_t claim_id(self, uint32_t replica) noexcept nogil:
        cdef uint16_t id = self.id_of[replica]
        if id != NO_ID:
            return id
        if self.n_free_ids == 0:
            self.scrub(self.n_cells)  # there are twice as many ids as replicas: this frees some
        self.n_free_ids -= 1
        id = self.free_ids[self.n_free_ids]
        self.id_of[replica] = id
        self.owner[id] = <uint16_t>replica
        self.held[id] = 0
        return id

    cdef uint32_t node_for(self, uint64_t hash) noexcept nogil:
        """The node of a hash, made if need be. 0: no memory at all."""
        cdef uint32_t handle = self.find(hash)
        if handle:
            return handle
        if self.n_nodes >= self.n_slots // 4 * 3 and not self.grow_slots():
            self.evict(0)
        handle = self.take_cell(0)
        if handle == 0:
            return 0
        self.cell(handle).hash = hash
        self.cell(handle).state = STATE_NODE
        self.place(handle)
        self.n_nodes += 1
        return handle

    def insert(self, replica: int, chain, positions=None) -> None:
        """Let `replica` hold the chunks of `chain`; the least recently inserted chunks of anyone make room.

        `chain`: (n,) uint64 buffer or bytes. `positions`: (n,) uint32, what each chunk stands for; 1, 2, 3... when None.
        The last position given for a chunk counts, for all replicas. Raises: ValueError, MemoryError.
        """
        cdef uint32_t row = self.check_replica(replica)
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer places = None if positions is None else Buffer(positions, 4, False, "positions")
        cdef const uint8_t *position_bytes = NULL
        cdef const uint8_t *hash_bytes = <const uint8_t *>hashes.view.buf
        cdef uint32_t handle, position
        cdef uint16_t id
        cdef Py_ssize_t i
        cdef bint has_failed = 0
        if places is not None:
            if places.n != hashes.n:
                raise ValueError(f"{places.n} positions for {hashes.n} chunks")
            position_bytes = <const uint8_t *>places.view.buf
        if hashes.n == 0:
            return
        id = self.claim_id(row)
        for i in range(hashes.n):
            if self.n_retired:
                self.scrub(SCRUB_CELLS)
            if i + PREFETCH_AHEAD < hashes.n:
                prefetch(&self.slots[self.home(load64(hash_bytes + 8 * (i + PREFETCH_AHEAD)))])
            handle = self.node_for(load64(hash_bytes + 8 * i))
            if handle == 0:
                has_failed = 1
                break
            if not self.add_holder(handle, id):
                if self.cell(handle).n == 0:
                    self.free_node(handle)
                break
            position = <uint32_t>min(i + 1, <Py_ssize_t>UINT32_MAX)
            if position_bytes != NULL:
                memcpy(&position, position_bytes + 4 * i, 4)
            self.cell(handle).position = position
            self.cell(handle).state = STATE_NODE | USED_BIT
        if has_failed and self.n_nodes == 0:
            raise MemoryError("out of memory for the first page of a prefix index")

    def remove(self, replica: int, chain) -> None:
        """Let `replica` no longer hold the chunks of `chain`; those it does not hold are ignored."""
        cdef uint32_t row = self.check_replica(replica)
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef uint16_t id = self.id_of[row]
        cdef uint16_t *slot
        cdef uint32_t handle
        cdef Py_ssize_t i
        if id == NO_ID:
            return
        for i in range(hashes.n):
            handle = self.find(load64(<const uint8_t *>hashes.view.buf + 8 * i))
            if handle:
                slot = self.find_holder(self.cell(handle), id)
                if slot != NULL:
                    self.take_holder(self.cell(handle), slot)
                    if self.cell(handle).n == 0:
                        self.free_node(handle)

    def drop(self, replica: int) -> None:
        """Let `replica` hold nothing any more. O(1): its entries are scrubbed by later inserts."""
        cdef uint32_t row = self.check_replica(replica)
        cdef uint16_t id = self.id_of[row]
        if id == NO_ID:
            return
        self.id_of[row] = NO_ID
        self.owner[id] = NO_ID
        if self.held[id] == 0:
            self.free_ids[self.n_free_ids] = id
            self.n_free_ids += 1
            return
        self.n_held -= self.held[id]
        self.n_active -= 1
        self.n_retired += 1

    def match(self, chain, lengths, hits=None) -> int:
        """Find how far each replica holds `chain`: the position of the furthest chunk held. Gives the largest.

        `lengths`: writable (replicas,) uint32, filled; replicas beyond its end are left out. `hits`: the same size,
        filled with the number of chunks up to and with that furthest one. Changes nothing in the index.
        """
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer out = Buffer(lengths, 4, True, "lengths")
        cdef Buffer places = None if hits is None else Buffer(hits, 4, True, "hits")
        cdef uint32_t *out_hits = NULL
        if places is not None:
            if places.n != out.n:
                raise ValueError(f"hits has {places.n} items, lengths {out.n}")
            out_hits = <uint32_t *>places.view.buf
            memset(out_hits, 0, places.view.len)
        memset(out.view.buf, 0, out.view.len)
        if hashes.n == 0 or self.n_active == 0:
            return 0
        return self.match_backwards(<const uint8_t *>hashes.view.buf, hashes.n, <uint32_t *>out.view.buf, out.n, out_hits)

    cdef uint32_t match_backwards(
        self, const uint8_t *hashes, Py_ssize_t n, uint32_t *lengths, Py_ssize_t n_lengths, uint32_t *hits
    ) noexcept nogil:
        """From the end: the first chunk met that a replica holds is its furthest."""
        cdef Py_ssize_t i
        cdef uint32_t handle, left, count, k, more, best = 0, n_found = 0, n_before
        cdef Cell *node
        for i in range(n - 1, -1, -1):
            if i >= PREFETCH_AHEAD:
                prefetch(&self.slots[self.home(load64(hashes + 8 * (i - PREFETCH_AHEAD)))])
            handle = self.find(load64(hashes + 8 * i))
            if handle == 0:
                continue
            node = self.cell(handle)
            n_before = n_found
            count = node.n if node.n < N_INLINE else N_INLINE
            left = node.n - count
            for k in range(count):
                n_found += self.note(node.holders[k], node.position, lengths, n_lengths, hits, <uint32_t>(i + 1))
            more = node.more
            count = (left - 1) % N_MORE + 1 if left else 0
            while left:
                for k in range(count):
                    n_found += self.note(
                        more_slot(self.cell(more), k)[0], node.position, lengths, n_lengths, hits, <uint32_t>(i + 1)
                    )
                left -= count
                count = N_MORE
                more = self.cell(more).more
            if n_found > n_before:
                best = max(best, node.position)
            if n_found == self.n_active:
                break
        return best

    cdef inline uint32_t note(
        self, uint16_t id, uint32_t position, uint32_t *lengths, Py_ssize_t n_lengths, uint32_t *hits, uint32_t hit
    ) noexcept nogil:
        """Note how far the owner of `id` holds the chain, unless that is known. 1 if it was news."""
        cdef uint16_t replica = self.owner[id]
        if replica == NO_ID or replica >= n_lengths or lengths[replica] or position == 0:
            return 0
        lengths[replica] = position
        if hits != NULL:
            hits[replica] = hit
        return 1

    # ---- what it holds --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Entries: pairs of a replica and a chunk it holds."""
        return self.n_held

    @property
    def nbytes(self) -> int:
        """Bytes allocated now; never above max_bytes."""
        return self.fixed_bytes + self.n_pages * PAGE_CELLS * sizeof(Cell) + <size_t>self.n_slots * sizeof(uint32_t)

    @property
    def n_chunks(self) -> int:
        """Distinct chunks held by anyone, retired replicas that are not scrubbed yet included."""
        return self.n_nodes

    @property
    def evictions(self) -> int:
        """Chunks evicted since the beginning."""
        return self.n_evicted

    @property
    def max_replicas(self) -> int:
        """Replicas are numbered below this; depends on max_bytes (16,384 from 32 MiB on)."""
        return self.n_replicas

    def held_by(self, replica: int) -> int:
        """Count the chunks that `replica` holds."""
        cdef uint16_t id = self.id_of[self.check_replica(replica)]
        return 0 if id == NO_ID else self.held[id]

    def _check(self) -> None:
        """Walk every invariant. For tests. Raises: AssertionError."""
        placed = [self.slots[i] for i in range(self.n_slots) if self.slots[i]]
        assert len(placed) == len(set(placed)) == self.n_nodes, "every node once in the slots"
        assert self.n_nodes <= self.n_slots // 4 * 3, "slots at most three quarters full"
        counts = {}
        n_more = 0
        for handle in placed:
            node = self.cell(handle)
            assert node.state & ~USED_BIT == STATE_NODE, "slots lead to nodes"
            assert self.find(node.hash) == handle, "a node is found by its hash"
            ids = [self.holder_at(node, k)[0] for k in range(node.n)]
            assert ids, "a node has a holder"
            assert len(ids) == len(set(ids)), "holders are distinct"
            for id in ids:
                counts[id] = counts.get(id, 0) + 1
            n_more += (len(ids) - N_INLINE + N_MORE - 1) // N_MORE if len(ids) > N_INLINE else 0
        assert {id: self.held[id] for id in range(self.n_ids) if self.held[id]} == counts, "held counts nodes"
        n_free = 0
        handle = self.free_cell
        while handle:
            n_free += 1
            handle = self.cell(handle).more
        assert n_free + self.n_nodes + n_more == self.n_cells, "every cell is a node, of a node or free"
        live = {id: n for id, n in counts.items() if self.owner[id] != NO_ID}
        assert sum(live.values()) == self.n_held and len(live) == self.n_active, "totals"
        assert len(counts) - len(live) == self.n_retired, "retired ids"
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
    cdef Py_ssize_t n = PyBytes_GET_SIZE(ends) // 4, i
    if PyBytes_GET_SIZE(ends) % 4 or not 0 <= n_known <= n:
        raise ValueError(f"{len(ends)} bytes of ends, {n_known} chunks known")
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n * 4)
    cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(ends)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(out)
    cdef Py_ssize_t split = n_known
    cdef double total_tokens = max(n_tokens, known_tokens), fixed_tokens = known_tokens, tokens
    cdef double total_bytes = 0, fixed_bytes = 0
    cdef uint32_t end, position, last = 1
    if n:
        memcpy(&end, source + 4 * (n - 1), 4)
        total_bytes = end
    if split:
        memcpy(&end, source + 4 * (split - 1), 4)
        fixed_bytes = end
    for i in range(n):
        memcpy(&end, source + 4 * i, 4)
        if i < split:
            tokens = end * fixed_tokens / fixed_bytes if fixed_bytes else fixed_tokens
        elif total_bytes > fixed_bytes:
            tokens = fixed_tokens + (end - fixed_bytes) * (total_tokens - fixed_tokens) / (total_bytes - fixed_bytes)
        else:
            tokens = total_tokens
        position = <uint32_t>min(tokens, 4294967295.0)
        last = max(last, position)
        memcpy(to + 4 * i, &last, 4)
    return out


def _cell_bytes() -> int:
    """For the layout test."""
    return sizeof(Cell)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

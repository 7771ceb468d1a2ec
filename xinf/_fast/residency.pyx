# cython: autotestdict=False
"""Which token blocks an engine holds, which chunk of prompt text stands for which block, and what of it is news.

    engine's hash ──▶ EngineBlock {refs} ──▶ Slot {refs, overlay} ◀──▶ Chunk {tokens, announced} ◀── chunk hash
                                               ▲
    own key ───────────────────────────────────┘       own key[i] = hash(own key[i-1], token ids of block i), [-1] = salt

    resident         refs (copies that the engine's events tell of) + overlay (open requests that will have computed it) > 0
    wanted           the tokens of a chunk whose slot is resident; 0 of any other
    dirty ▶ ...      chunks that are wanted otherwise than announced: what the next `take` says, and nothing else
    leaving ▶ ...    slots that are not resident but have a chunk, oldest first; `collect` frees them after GRACE_S
    lru ▶ ...        with `capacity_blocks`, which simulates an engine without events: slots that no open request holds

An entry is one per block: the first chunk of a chain whose position is at or behind the block's end. A chunk hash belongs
to one slot and a slot to one chunk; the latest binding wins. A slot that is neither resident nor bound is freed at once.
What finds no room within `max_bytes` is refused and counted: then less is announced than there is, never more.

Invariants: refs of a slot are the sum of its engine blocks' refs (in a simulation: 1 in the lru queue, else 0); overlay
counts the places of open requests that name the slot; a slot is resident or has a chunk; a chunk has a slot or is
announced. Operations that take away allocate nothing, so they cannot fail.

    register, extend   O(blocks + chunks)        stored, removed  O(blocks)       release  O(blocks of the request)
    take  O(changes)   collect  O(what left)     snapshot, clear  O(all)          nbytes, len, resident  O(1)
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport isfinite
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from os import urandom

from xinf._fast cimport alloc
from xinf._fast.alloc cimport xinf_malloc, xinf_realloc
from xinf._fast.buffer cimport Buffer
from xinf._fast.chunkhash cimport chunk_hash
from xinf._fast.slab cimport (
    GONE, MALLOC_BYTES, MAX_PAGES, NONE, PAGE, Queue, Record, Slab, append, close_slab, empty_slab, erase, find, is_queued,
    make, open_slab, page_bytes, record_at, reserve, slab_bytes, unlink,
)

# How long a binding outlives its block: the Stored event of a request can come after its end.
GRACE_S = 2.0
# What `register` gives when there is no room to remember the request. Handles are greater.
UNTRACKED = 0
# The least `max_bytes`: a page of each kind.
MIN_BYTES = 1 << 18
DEFAULT_BYTES = 1 << 28

cdef double GRACE_SECONDS = GRACE_S

cdef enum:
    KIND_BLOCK = 0  # of token blocks, for chunk_hash
    FIRST_REQUESTS = 64
    MAX_BLOCK_TOKENS = 1 << 20

cdef struct Slot:
    Record record  # hash: the own key; to: its chunk
    uint32_t refs
    uint32_t overlay
    double left_s

cdef struct Chunk:
    Record record  # to: its slot
    uint32_t tokens  # of the prompt up to the chunk's end; never 0
    uint32_t announced  # the tokens that `take` said last; 0: not announced

cdef struct EngineBlock:
    Record record  # to: its slot
    uint32_t refs  # copies; never 0

cdef struct Request:
    uint32_t *slots  # of its blocks, in order; NONE for one that was refused
    size_t n
    uint64_t salt
    uint32_t generation  # odd while it is open
    uint32_t next_free  # index + 1

cdef struct Prompt:
    const uint32_t *tokens
    const uint64_t *chain
    const uint32_t *positions
    size_t n_blocks
    size_t n_chunks
    uint64_t salt


cdef int read_word(value, str name, uint64_t *out) except -1:
    """Take a hash or a salt."""
    if not 0 <= value <= UINT64_MAX:
        raise ValueError(f"{name} is {value}, must be 0 to {UINT64_MAX}")
    out[0] = value
    return 0


@cython.final
@cython.auto_pickle(False)
cdef class BlockTable:
    """The blocks of one engine, as its events tell or, with `capacity_blocks`, as a simulated LRU has them."""

    cdef readonly size_t max_bytes
    cdef readonly uint32_t block_tokens
    cdef readonly uint32_t max_blocks  # slots, and as many chunks and engine blocks, that max_bytes has room for
    cdef readonly uint64_t resident  # blocks
    cdef readonly uint64_t orphans  # blocks stored behind a parent that was not known, since the beginning
    cdef readonly uint64_t duplicates  # blocks stored that the engine held already, since the beginning
    cdef readonly uint64_t refused  # blocks and bindings that there was no room for, since the beginning
    cdef readonly uint64_t n_clears
    cdef uint64_t capacity  # 0: events tell
    cdef bint is_clear_news
    cdef Slab slots
    cdef Slab chunks
    cdef Slab engine
    cdef Queue dirty
    cdef Queue leaving
    cdef uint32_t unstamped  # the first of `leaving` whose left_s is not known yet
    cdef Queue lru
    cdef uint32_t n_announced
    cdef Request *requests
    cdef uint32_t n_requests
    cdef uint32_t free_request  # index + 1
    cdef size_t request_bytes
    cdef size_t max_request_bytes

    def __cinit__(self, block_tokens: int, max_bytes: int = DEFAULT_BYTES, *, capacity_blocks=None):
        """`capacity_blocks`: simulate an engine with so many blocks instead of listening to one.

        Raises: ValueError, MemoryError.
        """
        if not 1 <= block_tokens <= MAX_BLOCK_TOKENS:
            raise ValueError(f"block_tokens is {block_tokens}, must be 1 to {MAX_BLOCK_TOKENS}")
        if not MIN_BYTES <= max_bytes < 1 << 62:
            raise ValueError(f"max_bytes is {max_bytes}, must be at least {MIN_BYTES}")
        if capacity_blocks is not None and not 1 <= capacity_blocks < 1 << 62:
            raise ValueError(f"capacity_blocks is {capacity_blocks}, must be at least 1")
        self.block_tokens = block_tokens
        self.max_bytes = max_bytes
        self.capacity = 0 if capacity_blocks is None else capacity_blocks
        self.max_request_bytes = self.max_bytes // 8
        cdef size_t bytes_a_page = page_bytes(sizeof(Slot)) + page_bytes(sizeof(Chunk)) + page_bytes(sizeof(EngineBlock))
        cdef uint32_t n_pages = <uint32_t>min((self.max_bytes - self.max_request_bytes) // bytes_a_page, <size_t>MAX_PAGES)
        self.max_blocks = n_pages * PAGE - 1
        cdef uint64_t secret
        cdef bytes noise = urandom(8)
        memcpy(&secret, PyBytes_AS_STRING(noise), 8)
        if not (
            open_slab(&self.slots, sizeof(Slot), n_pages, secret) and open_slab(&self.chunks, sizeof(Chunk), n_pages, secret)
            and open_slab(&self.engine, sizeof(EngineBlock), n_pages, secret)
        ):
            raise MemoryError("out of memory for a block table")

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n_requests):
            free(self.requests[i].slots)
        free(self.requests)
        close_slab(&self.slots)
        close_slab(&self.chunks)
        close_slab(&self.engine)

    cdef inline Slot *slot(self, uint32_t at) noexcept nogil:
        return <Slot *>record_at(&self.slots, at)

    cdef inline Chunk *chunk(self, uint32_t at) noexcept nogil:
        return <Chunk *>record_at(&self.chunks, at)

    cdef inline EngineBlock *engine_block(self, uint32_t at) noexcept nogil:
        return <EngineBlock *>record_at(&self.engine, at)

    # ---- chunks: wanted and announced -----------------------------------------------------------------------------

    cdef inline uint32_t wanted(self, const Chunk *chunk) noexcept nogil:
        cdef const Slot *slot
        if chunk.record.to == NONE:
            return 0
        slot = self.slot(chunk.record.to)
        return chunk.tokens if slot.refs or slot.overlay else 0

    cdef void settle(self, uint32_t at) noexcept nogil:
        """Let a chunk be dirty or not, after anything that it depends on; free it when it is nothing any more."""
        cdef Chunk *chunk = self.chunk(at)
        if self.wanted(chunk) != chunk.announced:
            if not is_queued(&chunk.record):
                append(&self.chunks, &self.dirty, at)
            return
        if is_queued(&chunk.record):
            unlink(&self.chunks, &self.dirty, at)
        if chunk.record.to == NONE and chunk.announced == 0:
            erase(&self.chunks, at)

    cdef void unbind(self, uint32_t at) noexcept nogil:
        """Take its chunk from a slot that has one."""
        cdef Slot *slot = self.slot(at)
        cdef uint32_t chunk_at = slot.record.to
        slot.record.to = NONE
        self.chunk(chunk_at).record.to = NONE
        self.settle(chunk_at)

    cdef void bind(self, uint32_t at, uint64_t hash, uint32_t tokens) noexcept nogil:
        """Let a chunk stand for a slot that is resident, whatever either had before."""
        cdef Slot *slot = self.slot(at)
        cdef uint32_t chunk_at = find(&self.chunks, hash), rival
        if chunk_at == NONE:
            chunk_at = make(&self.chunks, hash)
            if chunk_at == NONE:
                self.refused += 1
                return
        rival = self.chunk(chunk_at).record.to
        if rival != at:
            if slot.record.to != NONE:
                self.unbind(at)
            if rival != NONE:
                self.slot(rival).record.to = NONE
                self.free_if_nothing(rival)
            self.chunk(chunk_at).record.to = at
            slot.record.to = chunk_at
        self.chunk(chunk_at).tokens = tokens
        self.settle(chunk_at)

    # ---- slots: resident and not ----------------------------------------------------------------------------------

    cdef inline uint32_t slot_for(self, uint64_t key) noexcept nogil:
        """The slot of an own key, made if need be. NONE: refused."""
        cdef uint32_t at = find(&self.slots, key)
        if at == NONE:
            at = make(&self.slots, key)
            self.refused += at == NONE
        return at

    cdef void free_if_nothing(self, uint32_t at) noexcept nogil:
        """Free a slot that is neither resident nor bound."""
        cdef Slot *slot = self.slot(at)
        if slot.refs or slot.overlay or slot.record.to != NONE:
            return
        self.stay(at)
        erase(&self.slots, at)

    cdef void stay(self, uint32_t at) noexcept nogil:
        """Take a slot out of those that are leaving, if it is one."""
        cdef Slot *slot = self.slot(at)
        if is_queued(&slot.record):
            if self.unstamped == at:
                self.unstamped = slot.record.after
            unlink(&self.slots, &self.leaving, at)

    cdef void arrive(self, uint32_t at) noexcept nogil:
        """A slot became resident."""
        cdef Slot *slot = self.slot(at)
        self.resident += 1
        self.stay(at)
        if slot.record.to != NONE:
            self.settle(slot.record.to)

    cdef void leave(self, uint32_t at) noexcept nogil:
        """A slot stopped being resident."""
        cdef Slot *slot = self.slot(at)
        self.resident -= 1
        if slot.record.to == NONE:
            erase(&self.slots, at)
            return
        append(&self.slots, &self.leaving, at)
        if self.unstamped == NONE:
            self.unstamped = at
        self.settle(slot.record.to)

    cdef void hold(self, uint32_t at) noexcept nogil:
        """One more place of a request names a slot."""
        cdef Slot *slot = self.slot(at)
        slot.overlay += 1
        if slot.overlay > 1:
            return
        if slot.refs == 0:
            self.arrive(at)
        elif self.capacity:
            unlink(&self.slots, &self.lru, at)
            slot.refs = 0

    cdef void let_go(self, uint32_t at) noexcept nogil:
        """One place of a request less."""
        cdef Slot *slot = self.slot(at)
        slot.overlay -= 1
        if slot.overlay:
            return
        if self.capacity:
            append(&self.slots, &self.lru, at)
            slot.refs = 1
        elif slot.refs == 0:
            self.leave(at)

    cdef void evict(self) noexcept nogil:
        """In a simulation: let the oldest blocks that no request holds leave while there are more than capacity."""
        cdef uint32_t at
        while self.capacity and self.resident > self.capacity and self.lru.first != NONE:
            at = self.lru.first
            unlink(&self.slots, &self.lru, at)
            self.slot(at).refs = 0
            self.leave(at)

    # ---- requests -------------------------------------------------------------------------------------------------

    def register(self, tokens, chain, positions, *, salt: int = 0) -> int:
        """Bind the chunks of a prompt to its blocks, and count these as resident until `release`. Gives a handle.

        `tokens`: (n_tokens,) uint32, the rendered prompt. `chain`: (n,) uint64, chunk hashes. `positions`: (n,) uint32,
        not decreasing: whole tokens up to each chunk's end. Bytes will do for each. UNTRACKED, which `extend` and
        `release` ignore, if there is no room for the request. Raises: ValueError, MemoryError; then nothing has changed.
        """
        cdef Buffer ids = Buffer(tokens, 4, False, "tokens")
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer places = Buffer(positions, 4, False, "positions")
        cdef Prompt prompt
        cdef Request *request
        cdef uint32_t *slots
        cdef uint32_t at
        read_word(salt, "salt", &prompt.salt)
        self.read_prompt(ids, hashes, places, &prompt)
        if not self.make_room_for_request() or not self.track(&prompt, &slots):
            self.refused += prompt.n_blocks
            return UNTRACKED
        at = self.free_request - 1
        request = &self.requests[at]
        self.free_request = request.next_free
        request.slots = slots
        request.n = prompt.n_blocks
        request.salt = prompt.salt
        request.generation += 1
        self.evict()
        return <int64_t>(<uint64_t>request.generation << 31 | at)

    def extend(self, handle: int, tokens, chain, positions) -> None:
        """Put a longer prompt in the place of a request's: with as much of the answer as the next prompt will repeat.

        The arguments are those of `register`, whole. A dead handle is ignored. Without room the request stays as it is.
        Raises: ValueError, MemoryError; then nothing has changed.
        """
        cdef Buffer ids = Buffer(tokens, 4, False, "tokens")
        cdef Buffer hashes = Buffer(chain, 8, False, "chain")
        cdef Buffer places = Buffer(positions, 4, False, "positions")
        cdef Prompt prompt
        cdef Request *request
        cdef uint32_t *slots
        self.read_prompt(ids, hashes, places, &prompt)
        request = self.find_request(handle)
        if request == NULL:
            return
        prompt.salt = request.salt
        if not self.track(&prompt, &slots):
            self.refused += prompt.n_blocks
            return
        self.drop_blocks(request)  # after the new ones are held, so that none leaves in between
        request.slots = slots
        request.n = prompt.n_blocks
        self.evict()

    def release(self, handle: int) -> None:
        """End a request: its blocks are resident only as far as the engine said so. A dead handle is ignored."""
        cdef Request *request = self.find_request(handle)
        if request == NULL:
            return
        self.drop_blocks(request)
        request.generation += 1
        request.next_free = self.free_request
        self.free_request = <uint32_t>(request - self.requests) + 1
        self.evict()

    cdef Request *find_request(self, handle) except? NULL:
        """The request of a live handle, or NULL."""
        if not 0 <= handle < 1 << 63:
            return NULL
        cdef uint64_t value = handle
        cdef uint32_t at = <uint32_t>(value & 0x7FFFFFFF)
        if at >= self.n_requests:
            return NULL
        if self.requests[at].generation & 1 == 0 or self.requests[at].generation != <uint32_t>(value >> 31):
            return NULL
        return &self.requests[at]

    cdef int read_prompt(self, Buffer ids, Buffer hashes, Buffer places, Prompt *prompt) except -1:
        cdef const uint32_t *positions = <const uint32_t *>places.items
        cdef uint32_t last = 0
        cdef size_t i
        if hashes.n != places.n:
            raise ValueError(f"{places.n} positions for {hashes.n} chunks")
        for i in range(places.n):
            if positions[i] < last:
                raise ValueError(f"position {i} is {positions[i]}, after {last}: they must not decrease")
            last = positions[i]
        if last > ids.n:
            raise ValueError(f"the last position is {last}, of {ids.n} tokens")
        prompt.tokens = <const uint32_t *>ids.items
        prompt.n_blocks = ids.n // self.block_tokens
        prompt.chain = <const uint64_t *>hashes.items
        prompt.positions = positions
        prompt.n_chunks = hashes.n
        return 0

    cdef bint make_room_for_request(self) except -1:
        """See to a free request. 0: max_bytes has no room for more. Raises: MemoryError."""
        cdef uint32_t n = self.n_requests * 2 if self.n_requests else FIRST_REQUESTS, i
        cdef size_t n_bytes = (n - self.n_requests) * sizeof(Request)
        cdef Request *grown
        if self.free_request:
            return 1
        if n > 1 << 30 or n_bytes > self.max_request_bytes - self.request_bytes:
            return 0
        grown = <Request *>xinf_realloc(self.requests, n * sizeof(Request))
        if grown == NULL:
            raise MemoryError(f"out of memory for more than {self.n_requests} requests")
        memset(&grown[self.n_requests], 0, n_bytes)
        for i in range(n, self.n_requests, -1):
            grown[i - 1].next_free = self.free_request
            self.free_request = i
        self.requests = grown
        self.n_requests = n
        self.request_bytes += n_bytes
        return 1

    cdef bint track(self, const Prompt *prompt, uint32_t **slots) except -1:
        """Hold the blocks of a prompt, bind its chunks, and list the slots. 0: no room for the list. Raises: MemoryError."""
        cdef size_t n_bytes = prompt.n_blocks * sizeof(uint32_t)
        slots[0] = NULL
        if n_bytes + MALLOC_BYTES > self.max_request_bytes - self.request_bytes:
            return 0
        if not (
            reserve(&self.slots, prompt.n_blocks)
            and reserve(&self.chunks, min(prompt.n_chunks, prompt.n_blocks))
        ):
            raise MemoryError(f"out of memory for {prompt.n_blocks} blocks")
        if prompt.n_blocks:
            slots[0] = <uint32_t *>xinf_malloc(n_bytes)
            if slots[0] == NULL:
                raise MemoryError(f"out of memory for a request of {prompt.n_blocks} blocks")
            self.request_bytes += n_bytes + MALLOC_BYTES
        self.hold_blocks(prompt, slots[0])
        self.bind_chunks(prompt, slots[0])
        return 1

    cdef void hold_blocks(self, const Prompt *prompt, uint32_t *slots) noexcept nogil:
        cdef size_t i, block_tokens = self.block_tokens
        cdef uint64_t key = prompt.salt
        for i in range(prompt.n_blocks):
            key = chunk_hash(key, <const uint8_t *>(prompt.tokens + i * block_tokens), 4 * block_tokens, KIND_BLOCK)
            slots[i] = self.slot_for(key)
            if slots[i] != NONE:
                self.hold(slots[i])

    cdef void bind_chunks(self, const Prompt *prompt, const uint32_t *slots) noexcept nogil:
        """Bind to each block the first chunk that ends at its end or behind: to the last, if it is that of several."""
        cdef uint64_t next_end = self.block_tokens
        cdef size_t i
        cdef uint32_t n_blocks
        for i in range(prompt.n_chunks):
            if prompt.positions[i] < next_end:
                continue
            n_blocks = prompt.positions[i] // self.block_tokens
            next_end = (<uint64_t>n_blocks + 1) * self.block_tokens
            if slots[n_blocks - 1] != NONE:
                self.bind(slots[n_blocks - 1], prompt.chain[i], prompt.positions[i])

    cdef void drop_blocks(self, Request *request) noexcept nogil:
        """Let go of a request's blocks, the last one first: so does an engine, so that tails are evicted before heads."""
        cdef size_t i
        for i in range(request.n, 0, -1):
            if request.slots[i - 1] != NONE:
                self.let_go(request.slots[i - 1])
        if request.slots != NULL:
            self.request_bytes -= request.n * sizeof(uint32_t) + MALLOC_BYTES
        free(request.slots)
        request.slots = NULL
        request.n = 0

    # ---- events of the engine -------------------------------------------------------------------------------------

    cdef int check_listens(self) except -1:
        if self.capacity:
            raise ValueError(f"this table simulates an engine of {self.capacity} blocks, it takes no events")
        return 0

    def stored(self, hashes, parent, tokens, *, salt: int = 0) -> int:
        """The engine holds blocks now, or one more copy of them. Gives how many of them are orphans.

        `hashes`: (n,) uint64, the engine's own. `parent`: the hash of the block before them, None for the first of a
        prompt: then `salt` counts. `tokens`: (n * block_tokens,) uint32. Bytes will do for each. Behind a parent that is
        not known, a block that is not known either is an orphan, as is one that comes with other tokens than before:
        orphans stand for nothing. Raises: ValueError; MemoryError, then nothing has changed.
        """
        cdef Buffer names = Buffer(hashes, 8, False, "hashes")
        cdef Buffer ids = Buffer(tokens, 4, False, "tokens")
        cdef uint64_t key, parent_hash, n_before = self.orphans
        cdef uint32_t at
        cdef bint is_known = True
        self.check_listens()
        # By division, for the product may not fit.
        if ids.n % self.block_tokens or ids.n // self.block_tokens != names.n:
            raise ValueError(f"{ids.n} tokens for {names.n} blocks of {self.block_tokens}")
        read_word(salt, "salt", &key)
        if parent is not None:
            read_word(parent, "parent", &parent_hash)
            at = find(&self.engine, parent_hash)
            is_known = at != NONE
            if is_known:
                key = self.slot(self.engine_block(at).record.to).record.hash
        if not (reserve(&self.slots, names.n) and reserve(&self.engine, names.n)):
            raise MemoryError(f"out of memory for {names.n} blocks")
        self.store(<const uint64_t *>names.items, names.n, <const uint32_t *>ids.items, key, is_known)
        return self.orphans - n_before

    cdef void store(
        self, const uint64_t *hashes, size_t n, const uint32_t *tokens, uint64_t key, bint is_known
    ) noexcept nogil:
        """See stored. `key`: the own key before the first block, unless it is not known."""
        cdef size_t i, block_tokens = self.block_tokens
        cdef uint32_t at
        for i in range(n):
            at = find(&self.engine, hashes[i])
            if is_known:
                key = chunk_hash(key, <const uint8_t *>(tokens + i * block_tokens), 4 * block_tokens, KIND_BLOCK)
            elif at != NONE:  # an engine's hash covers what is before, too
                key = self.slot(self.engine_block(at).record.to).record.hash
                is_known = True
            else:
                self.orphans += 1
                continue
            if at == NONE:
                self.store_first(hashes[i], key)
            elif self.slot(self.engine_block(at).record.to).record.hash != key:
                self.orphans += 1
            else:
                self.duplicates += 1
                self.engine_block(at).refs += 1
                self.slot(self.engine_block(at).record.to).refs += 1

    cdef void store_first(self, uint64_t hash, uint64_t key) noexcept nogil:
        """Take in a block whose hash is not known."""
        cdef uint32_t slot_at = self.slot_for(key), at
        cdef Slot *slot
        if slot_at == NONE:
            return
        at = make(&self.engine, hash)
        if at == NONE:
            self.refused += 1
            self.free_if_nothing(slot_at)
            return
        self.engine_block(at).record.to = slot_at
        self.engine_block(at).refs = 1
        slot = self.slot(slot_at)
        slot.refs += 1
        if slot.refs == 1 and slot.overlay == 0:
            self.arrive(slot_at)

    def removed(self, hashes) -> int:
        """The engine holds a copy less of each. Gives how many of them were known; others are ignored.

        `hashes`: (n,) uint64, or bytes. Raises: ValueError.
        """
        cdef Buffer names = Buffer(hashes, 8, False, "hashes")
        self.check_listens()
        return self.remove(<const uint64_t *>names.items, names.n)

    cdef size_t remove(self, const uint64_t *hashes, size_t n) noexcept nogil:
        cdef size_t i, n_known = 0
        cdef uint32_t at, slot_at
        cdef Slot *slot
        for i in range(n):
            at = find(&self.engine, hashes[i])
            if at == NONE:
                continue
            n_known += 1
            slot_at = self.engine_block(at).record.to
            slot = self.slot(slot_at)
            self.engine_block(at).refs -= 1
            if self.engine_block(at).refs == 0:
                erase(&self.engine, at)
            slot.refs -= 1
            if slot.refs == 0 and slot.overlay == 0:
                self.leave(slot_at)
        return n_known

    def clear(self) -> None:
        """The engine dropped what no running request holds: only what open requests name stays resident.

        Nothing is announced from here on, `snapshot` is empty and `n_clears` one more: whoever was told anything forgets
        it first when `n_clears` has changed. The next `take`, which is not None, says what is still held.
        """
        cdef uint32_t at
        cdef Slot *slot
        empty_slab(&self.engine)
        for at in range(1, self.slots.n_made):
            slot = self.slot(at)
            if slot.record.before == <uint32_t>GONE or slot.refs == 0:
                continue
            if self.capacity:
                unlink(&self.slots, &self.lru, at)
            slot.refs = 0
            if slot.overlay == 0:
                self.leave(at)
        for at in range(1, self.chunks.n_made):
            if self.chunk(at).record.before != <uint32_t>GONE:
                self.chunk(at).announced = 0
                self.settle(at)
        self.n_announced = 0
        self.n_clears += 1
        self.is_clear_news = True

    # ---- what it says ---------------------------------------------------------------------------------------------

    def take(self):
        """Give what changed since the last call: (added hashes, their tokens, removed hashes), or None.

        (n,) uint64, (n,) uint32 and (m,) uint64, little-endian. A hash comes once at most. One that is held already may
        be added with other tokens. Deltas count from nothing when `n_clears` has changed since the last call.
        """
        cdef size_t n_added = 0, n_removed = 0
        cdef uint32_t at = self.dirty.first, tokens
        cdef Chunk *chunk
        if at == NONE and not self.is_clear_news:
            return None
        while at != NONE:
            chunk = self.chunk(at)
            if self.wanted(chunk):
                n_added += 1
            else:
                n_removed += 1
            at = chunk.record.after
        cdef bytes added = PyBytes_FromStringAndSize(NULL, 8 * n_added)
        cdef bytes lengths = PyBytes_FromStringAndSize(NULL, 4 * n_added)
        cdef bytes removed = PyBytes_FromStringAndSize(NULL, 8 * n_removed)
        cdef uint8_t *to_added = <uint8_t *>PyBytes_AS_STRING(added)
        cdef uint8_t *to_lengths = <uint8_t *>PyBytes_AS_STRING(lengths)
        cdef uint8_t *to_removed = <uint8_t *>PyBytes_AS_STRING(removed)
        while self.dirty.first != NONE:
            at = self.dirty.first
            chunk = self.chunk(at)
            tokens = self.wanted(chunk)
            if tokens:
                self.n_announced += chunk.announced == 0
                memcpy(to_added, &chunk.record.hash, 8)
                memcpy(to_lengths, &tokens, 4)
                to_added += 8
                to_lengths += 4
            else:
                self.n_announced -= 1
                memcpy(to_removed, &chunk.record.hash, 8)
                to_removed += 8
            chunk.announced = tokens
            self.settle(at)
        self.is_clear_news = False
        return added, lengths, removed

    def snapshot(self):
        """Give all that `take` has announced and not taken back: hashes, (n,) uint64, and their tokens, (n,) uint32."""
        cdef bytes hashes = PyBytes_FromStringAndSize(NULL, 8 * <size_t>self.n_announced)
        cdef bytes lengths = PyBytes_FromStringAndSize(NULL, 4 * <size_t>self.n_announced)
        cdef uint8_t *to_hashes = <uint8_t *>PyBytes_AS_STRING(hashes)
        cdef uint8_t *to_lengths = <uint8_t *>PyBytes_AS_STRING(lengths)
        cdef uint32_t at
        cdef Chunk *chunk
        for at in range(1, self.chunks.n_made):
            chunk = self.chunk(at)
            if chunk.record.before != <uint32_t>GONE and chunk.announced:
                memcpy(to_hashes, &chunk.record.hash, 8)
                memcpy(to_lengths, &chunk.announced, 4)
                to_hashes += 8
                to_lengths += 4
        return hashes, lengths

    def collect(self, now_s: float) -> int:
        """Free the bindings whose blocks left more than GRACE_S ago. Gives how many.

        `now_s`: of any clock that does not go back. A block counts as gone from the first call after it left, so bindings
        live GRACE_S and the time between two calls at most. Raises: ValueError.
        """
        if not isfinite(now_s):
            raise ValueError(f"now_s is {now_s}, must be finite")
        cdef double now = now_s
        cdef size_t n_freed = 0
        cdef uint32_t at = self.unstamped
        while at != NONE:
            self.slot(at).left_s = now
            at = self.slot(at).record.after
        self.unstamped = NONE
        at = self.leaving.first
        while at != NONE and now - self.slot(at).left_s > GRACE_SECONDS:
            self.unbind(at)
            self.free_if_nothing(at)
            n_freed += 1
            at = self.leaving.first
        return n_freed

    def __len__(self) -> int:
        """Blocks tracked: resident ones, and bound ones that left."""
        return self.slots.n_used

    @property
    def nbytes(self) -> int:
        """Bytes allocated; never above max_bytes. Tables do not shrink."""
        return slab_bytes(&self.slots) + slab_bytes(&self.chunks) + slab_bytes(&self.engine) + self.request_bytes

    @property
    def capacity_blocks(self):
        """Blocks of the engine that is simulated, None where events tell."""
        return self.capacity or None

    # ---- for tests ------------------------------------------------------------------------------------------------

    def _state(self) -> tuple:
        """Everything, for comparisons: slots, engine blocks, chunks, leaving, lru, dirty; each by its hash.

        slots: own key -> (refs, overlay, chunk or None). engine: hash -> (own key, refs). chunks: hash -> (own key or
        None, tokens, announced). The queues are lists, in order.
        """
        cdef uint32_t at
        slots, engine, chunks = {}, {}, {}
        for at in range(1, self.slots.n_made):
            slot = self.slot(at)
            if slot.record.before != <uint32_t>GONE:
                chunk_hash_of = self.chunk(slot.record.to).record.hash if slot.record.to else None
                slots[slot.record.hash] = (slot.refs, slot.overlay, chunk_hash_of)
        for at in range(1, self.engine.n_made):
            block = self.engine_block(at)
            if block.record.before != <uint32_t>GONE:
                engine[block.record.hash] = (self.slot(block.record.to).record.hash, block.refs)
        for at in range(1, self.chunks.n_made):
            chunk = self.chunk(at)
            if chunk.record.before != <uint32_t>GONE:
                key = self.slot(chunk.record.to).record.hash if chunk.record.to else None
                chunks[chunk.record.hash] = (key, chunk.tokens, chunk.announced)
        queues = [hashes_of(&self.slots, &self.leaving), hashes_of(&self.slots, &self.lru),
                  hashes_of(&self.chunks, &self.dirty)]
        return slots, engine, chunks, *queues

    def _check(self) -> None:
        """Walk every invariant. Raises: AssertionError."""
        cdef uint32_t i
        cdef size_t j
        slots, engine, chunks, leaving, lru, dirty = self._state()
        check_slab(&self.slots, slots)
        check_slab(&self.chunks, chunks)
        check_slab(&self.engine, engine)
        refs, overlays = {}, {}
        for key, n in engine.values():
            assert n > 0, "copies of an engine block"
            refs[key] = refs.get(key, 0) + n
        refs = dict.fromkeys(lru, 1) if self.capacity else refs
        n_bytes = self.n_requests * sizeof(Request)
        for i in range(self.n_requests):
            assert self.requests[i].generation & 1 or self.requests[i].n == 0, "only open requests hold blocks"
            n_bytes += 4 * self.requests[i].n + MALLOC_BYTES if self.requests[i].n else 0
            for j in range(self.requests[i].n):
                if self.requests[i].slots[j] != NONE:
                    key = self.slot(self.requests[i].slots[j]).record.hash
                    overlays[key] = overlays.get(key, 0) + 1
        assert n_bytes == self.request_bytes <= self.max_request_bytes, "bytes of requests"
        assert {key: slot[0] for key, slot in slots.items() if slot[0]} == refs, "refs are copies"
        assert {key: slot[1] for key, slot in slots.items() if slot[1]} == overlays, "overlay counts places in requests"
        assert {key: slot[2] for key, slot in slots.items() if slot[2] is not None} == {
            chunk[0]: hash for hash, chunk in chunks.items() if chunk[0] is not None
        }, "a slot and its chunk name each other"
        gone = [key for key, slot in slots.items() if not slot[0] and not slot[1]]
        assert sorted(gone) == sorted(leaving) and all(slots[key][2] is not None for key in gone), "leaving: bound, not there"
        assert len(slots) - len(gone) == self.resident, "resident blocks"
        assert self.unstamped == NONE or self.slot(self.unstamped).record.hash in leaving, "unstamped ones are leaving"
        wanted = {hash: 0 if key is None or not sum(slots[key][:2]) else tokens for hash, (key, tokens, _) in chunks.items()}
        assert sorted(dirty) == sorted(hash for hash in chunks if wanted[hash] != chunks[hash][2]), "dirty: not as announced"
        assert all(chunk[0] is not None or chunk[2] for chunk in chunks.values()), "a chunk has a slot or is announced"
        assert sum(chunk[2] > 0 for chunk in chunks.values()) == self.n_announced, "announced chunks"
        assert self.nbytes <= self.max_bytes, "within bounds"


cdef list hashes_of(const Slab *slab, const Queue *queue):
    """The hashes of a queue, which is walked both ways."""
    cdef uint32_t at = queue.first, last = NONE
    hashes = []
    while at != NONE:
        assert record_at(slab, at).before == last, "neighbours in a queue"
        hashes.append(record_at(slab, at).hash)
        last = at
        at = record_at(slab, at).after
    assert queue.last == last, "the end of a queue"
    return hashes


cdef int check_slab(const Slab *slab, dict records) except -1:
    cdef uint32_t at = slab.free, n_free = 0
    while at != NONE:
        assert record_at(slab, at).before == <uint32_t>GONE, "free records"
        n_free += 1
        at = record_at(slab, at).next
    assert slab.n_made - 1 == n_free + slab.n_used, "records are free or used"
    assert slab.n_used == len(records), "records have hashes of their own"
    for hash in records:
        assert find(slab, hash) != NONE, "a record is found by its hash"
    return 0


def _record_bytes() -> tuple:
    """For the layout test: bytes of a slot, a chunk and an engine block."""
    return sizeof(Slot), sizeof(Chunk), sizeof(EngineBlock)


def _fail_allocation(k: int) -> None:
    """For tests: let the k-th allocation from now on fail once; 0 for none."""
    alloc.xinf_fail_in = k

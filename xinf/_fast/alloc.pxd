# malloc with a fault to inject. Each extension gets its own counter; `fail_in` 0 means never, k fails the k-th call
# from now on and then never again. The counter costs one predictable branch, so it is always compiled in.

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    static long xinf_fail_in = 0;
    static int xinf_must_fail(void) { return xinf_fail_in > 0 && --xinf_fail_in == 0; }
    static void *xinf_malloc(size_t n) { return xinf_must_fail() ? NULL : malloc(n); }
    static void *xinf_calloc(size_t n, size_t size) { return xinf_must_fail() ? NULL : calloc(n, size); }
    /* Whole cache lines, for structs that are one. */
    static void *xinf_aligned(size_t n) {
        void *p = NULL;
        return xinf_must_fail() || posix_memalign(&p, 64, n) ? NULL : p;
    }
    /* Address space that costs memory as it is written to; in huge pages, if it is worth any, where there are such. */
    static void *xinf_reserve(size_t n) {
        size_t huge = (size_t)1 << 21, aligned = n >= 2 * huge ? huge : (size_t)1 << 14;
        void *p = NULL;
        if (xinf_must_fail() || posix_memalign(&p, aligned, n)) return NULL;
    #if defined(MADV_HUGEPAGE)
        if (aligned == huge) madvise(p, n, MADV_HUGEPAGE);
    #endif
        return p;
    }
    static void *xinf_realloc(void *p, size_t n) { return xinf_must_fail() ? NULL : realloc(p, n); }
    """
    long xinf_fail_in
    void *xinf_malloc(size_t n) noexcept nogil
    void *xinf_calloc(size_t n, size_t size) noexcept nogil
    void *xinf_aligned(size_t n) noexcept nogil
    void *xinf_reserve(size_t n) noexcept nogil
    void *xinf_realloc(void *p, size_t n) noexcept nogil

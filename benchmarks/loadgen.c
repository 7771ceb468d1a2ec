/* A load generator for gateways: one thread, epoll, HTTP/1.1 keep-alive, POST of chat completions.
 *
 * Closed loop: each connection sends its next request when the answer to the last one is complete. Open loop (--rate):
 * requests arrive as a Poisson process, wait for a free connection if they must, and are timed from their arrival.
 * Phases: warm-up (nothing counted), window (everything counted), drain (answers in flight end; they still count as
 * complete or not, and their latencies too if their request was sent in the window).
 *
 * A request costs one sendmsg of parts that exist already (head, JSON, a 16-digit id, a slice of a pool of words) and
 * one recv or a few, so that the generator does not become what is measured. The CPU clocks of the processes under test
 * (--cpu PID) are read at both ends of the window: the CPU counted and the requests counted are of the same time.
 *
 * Prints one JSON object. Exit status: 0 done, 2 bad arguments, 3 given up after too many errors.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    HEAD_MAX = 16384,      /* bytes of an answer's head */
    RECV_BYTES = 1 << 18,
    POOL_BYTES = 1 << 20,  /* of words that prompts are cut from */
    ID_BYTES = 17,         /* 16 hexadecimal digits and a space: makes every prompt distinct from its first chunk on */
    MAX_PIDS = 64,
    MAX_PORTS = 16,
    MAX_ARRIVALS = 1 << 20,
    LINE_BYTES = 24,       /* of an SSE line that are looked at */
    MAX_ERRORS = 10000,
};
static const uint64_t NS_PER_S = 1000000000ull;

/* ---- histogram: 128 linear buckets per power of two, so a value is off by less than 0.8 % ------------------------ */

enum { SUB_BITS = 7, N_SUB = 1 << SUB_BITS, N_BUCKETS = (66 - SUB_BITS) * N_SUB };
struct histogram { uint64_t n, sum_ns, max_ns, buckets[N_BUCKETS]; };

static void histogram_add(struct histogram *h, uint64_t ns) {
    int shift = ns < N_SUB ? 0 : 63 - __builtin_clzll(ns) - SUB_BITS + 1;
    /* shift s > 0 holds values [2^(s+6), 2^(s+7)) in its upper 64 sub-buckets; the lower ones belong to shift 0 only */
    h->buckets[shift * N_SUB + (ns >> shift)]++;
    h->n++;
    h->sum_ns += ns;
    if (ns > h->max_ns) h->max_ns = ns;
}

static double histogram_percentile_ms(const struct histogram *h, double share) {
    uint64_t want = (uint64_t)ceil(share * (double)h->n), seen = 0;
    for (int i = 0; i < N_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= want && seen > 0) {
            int shift = i / N_SUB;
            uint64_t low = (uint64_t)(i % N_SUB) << shift, middle = low + ((1ull << shift) >> 1);
            return (double)(middle < h->max_ns ? middle : h->max_ns) / 1e6;
        }
    }
    return 0;
}

static void histogram_print(const char *name, const struct histogram *h) {
    if (!h->n) { printf(",\"%s\":null", name); return; }
    printf(",\"%s\":{\"n\":%llu,\"mean\":%.6f,\"p50\":%.6f,\"p90\":%.6f,\"p99\":%.6f,\"p999\":%.6f,\"max\":%.6f}", name,
           (unsigned long long)h->n, (double)h->sum_ns / (double)h->n / 1e6, histogram_percentile_ms(h, 0.5),
           histogram_percentile_ms(h, 0.9), histogram_percentile_ms(h, 0.99), histogram_percentile_ms(h, 0.999),
           (double)h->max_ns / 1e6);
}

/* ---- options and state ------------------------------------------------------------------------------------------ */

static struct {
    const char *host, *path, *model, *extra;
    int ports[MAX_PORTS], n_ports;
    int connections, max_tokens;
    uint64_t n_requests;   /* of the window; 0: by time */
    double seconds, warmup_s, drain_s, timeout_s, ramp_s, rate;
    bool stream;
    size_t size, shared_bytes;  /* of a body; of the prefix that shared prompts begin with */
    double share;               /* of prompts that begin with one of n_groups prefixes */
    int n_groups;
    uint64_t seed, expect_chunks;
    int pids[MAX_PIDS], n_pids;
} opt = {.host = "127.0.0.1", .path = "/v1/chat/completions", .model = "sim", .extra = "", .connections = 1,
         .max_tokens = 1, .seconds = 2, .warmup_s = 0.5, .drain_s = 30, .timeout_s = 30, .size = 512, .n_groups = 1,
         .seed = 1};

enum phase { WARM_UP, WINDOW, DRAIN };
enum state { CLOSED, IDLE, IN_HEAD, IN_LENGTH, UNTIL_CLOSE, IN_CHUNK_SIZE, IN_CHUNK_DATA, IN_CHUNK_END, IN_TRAILER };

struct conn {
    int fd, index;
    enum state state;
    bool has_sent_all, in_window, close_after, is_stream, has_first, has_data, has_done, has_last_chunk;
    int status;
    uint64_t started_ns, last_event_ns, n_chunks;
    uint64_t left;          /* bytes of the body or chunk still to come */
    struct iovec parts[5];  /* of the request still to be sent */
    int n_parts;
    char id[ID_BYTES];
    char *head;             /* of the answer, when it came in pieces */
    size_t head_len;
    char line[LINE_BYTES], line_last;
    size_t line_len;
};

static struct {
    enum phase phase;
    uint64_t window_start_ns, window_end_ns;
    uint64_t n_sent, n_done, n_ok, n_transport_errors, n_timeouts, n_refused, n_reconnects, n_backlog_full;
    uint64_t n_streams, n_unfinished, n_without_done, n_without_last_chunk, n_short, n_error_events;
    uint64_t n_chunks, n_event_reads, body_bytes, max_backlog;
    uint64_t statuses[600];
    struct histogram latency, ttft, gap;
    double own_cpu_s, pid_cpu_s[MAX_PIDS];
    char first_error[200];
} tally;

static struct conn *conns;
static int epoll_fd, n_open, n_busy, *idle, n_idle, next_ramp;
static char *pool, *shared_prefixes, request_head[2048], request_tail[4096], recv_buffer[RECV_BYTES];
static size_t head_len, tail_len, slice_bytes;
static uint64_t random_state, prompt_number, loop_start_ns, arrivals[MAX_ARRIVALS], arrival_first, n_arrivals, next_arrival_ns;

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(2);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint64_t random_u64(void) { /* splitmix64 */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static double random_unit(void) { return (double)(random_u64() >> 11) / 9007199254740992.0; }

/* The CPU clock of a whole process, threads that ended included (the kernel's encoding: see clock_getcpuclockid(3)). */
static double process_cpu_s(int pid) {
    struct timespec t;
    clockid_t clock = (clockid_t)((~(unsigned)pid << 3) | 2);
    if (clock_gettime(clock, &t)) return 0;
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double own_cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void count_cpu(double sign) {
    for (int i = 0; i < opt.n_pids; i++) tally.pid_cpu_s[i] += sign * process_cpu_s(opt.pids[i]);
    tally.own_cpu_s += sign * own_cpu_s();
}

static void begin_window(uint64_t now) {
    tally.phase = WINDOW;
    tally.window_start_ns = now;
    count_cpu(-1);
}

static void end_window(void) {
    tally.phase = DRAIN;
    count_cpu(1);
    tally.window_end_ns = now_ns();
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static void fill_words(char *text, size_t size) {
    static const char *const words[] = {"the", "of", "model", "and", "token", "a", "cache", "answer", "in", "prefix", "gives",
                                        "question", "routing", "because", "long", "request", "over", "engine", "time", "with"};
    size_t at = 0;
    while (at < size) {
        const char *word = words[random_u64() % (sizeof words / sizeof *words)];
        size_t length = strlen(word);
        for (size_t i = 0; i < length && at < size; i++) text[at++] = word[i];
        if (at < size) text[at++] = ' ';
    }
}

static void prepare_requests(void) {
    char json[1024];
    int json_len = snprintf(json, sizeof json, "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"", opt.model);
    tail_len = (size_t)snprintf(request_tail, sizeof request_tail, "\"}],\"max_tokens\":%d,\"stream\":%s%s}", opt.max_tokens,
                                opt.stream ? "true" : "false", opt.extra);
    size_t least = (size_t)json_len + ID_BYTES + tail_len + 1;
    if (tail_len >= sizeof request_tail || json_len >= (int)sizeof json) die("--model or --extra is too long");
    if (opt.size < least) die("--size is %zu, the JSON around the prompt needs %zu", opt.size, least);
    slice_bytes = opt.size - least + 1;
    if (opt.share > 0 && opt.shared_bytes >= slice_bytes) die("--shared-bytes must be below %zu", slice_bytes);
    if (slice_bytes > POOL_BYTES / 2) die("--size is %zu, at most %d", opt.size, POOL_BYTES / 2);
    head_len = (size_t)snprintf(request_head, sizeof request_head,
                                "POST %s HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                                opt.path, opt.host, opt.ports[0], opt.size, json);
    if (head_len >= sizeof request_head) die("--path is too long");
    pool = malloc(POOL_BYTES);
    shared_prefixes = malloc((size_t)opt.n_groups * (opt.shared_bytes + 1));
    if (!pool || !shared_prefixes) die("no memory");
    fill_words(pool, POOL_BYTES);
    fill_words(shared_prefixes, (size_t)opt.n_groups * opt.shared_bytes);
}

static void begin_request(struct conn *c, uint64_t since_ns);
static void end_answer(struct conn *c, uint64_t now);
static void fail(struct conn *c, uint64_t now, const char *why);

static void watch(struct conn *c, int op, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static bool open_conn(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.ports[c->index % opt.n_ports])};
    int one = 1;
    inet_pton(AF_INET, opt.host, &address.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        snprintf(tally.first_error, sizeof tally.first_error, "connect: %s", strerror(errno));
        tally.n_refused++;
        close(c->fd);
        return false;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    c->state = IDLE;
    n_open++;
    return true;
}

static void close_conn(struct conn *c) {
    close(c->fd);
    c->state = CLOSED;
    n_open--;
}

static void send_parts(struct conn *c, uint64_t now) {
    while (c->n_parts) {
        struct msghdr message = {.msg_iov = c->parts, .msg_iovlen = (size_t)c->n_parts};
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) { watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT); c->has_sent_all = false; return; }
            fail(c, now, strerror(errno));
            return;
        }
        int skip = 0;
        while (skip < c->n_parts && (size_t)sent >= c->parts[skip].iov_len) sent -= (ssize_t)c->parts[skip++].iov_len;
        memmove(c->parts, c->parts + skip, sizeof *c->parts * (size_t)(c->n_parts -= skip));
        if (c->n_parts) {
            c->parts[0].iov_base = (char *)c->parts[0].iov_base + sent;
            c->parts[0].iov_len -= (size_t)sent;
        }
    }
    if (!c->has_sent_all) { c->has_sent_all = true; watch(c, EPOLL_CTL_MOD, EPOLLIN); }
}

/* since_ns: when the request arrived; it is timed from there, not from when a connection was free. */
static void begin_request(struct conn *c, uint64_t since_ns) {
    if (c->state == CLOSED && !open_conn(c)) return;
    c->state = IN_HEAD;
    c->started_ns = since_ns;
    c->last_event_ns = 0;
    c->in_window = tally.phase == WINDOW;
    c->has_sent_all = true;
    c->is_stream = c->close_after = c->has_first = c->has_data = c->has_done = c->has_last_chunk = false;
    c->n_chunks = 0;
    c->head_len = c->line_len = 0;
    c->status = 0;
    if (c->in_window) tally.n_sent++;
    n_busy++;

    uint64_t number = ++prompt_number * 0x9e3779b97f4a7c15ull + opt.seed; /* odd factor: distinct for 2^64 prompts */
    for (int i = 0; i < 16; i++, number >>= 4) c->id[i] = "0123456789abcdef"[number & 15];
    c->id[16] = ' ';
    size_t slice = slice_bytes;
    c->n_parts = 0;
    c->parts[c->n_parts++] = (struct iovec){request_head, head_len};
    if (opt.share > 0 && random_unit() < opt.share) {
        size_t group = random_u64() % (uint64_t)opt.n_groups;
        c->parts[c->n_parts++] = (struct iovec){shared_prefixes + group * opt.shared_bytes, opt.shared_bytes};
        slice -= opt.shared_bytes;
    }
    c->parts[c->n_parts++] = (struct iovec){c->id, ID_BYTES};
    c->parts[c->n_parts++] = (struct iovec){pool + random_u64() % (POOL_BYTES - slice), slice};
    c->parts[c->n_parts++] = (struct iovec){request_tail, tail_len};
    send_parts(c, since_ns);
}

/* What a connection without a request does: the next one of the closed loop, an arrival that waits, or nothing. */
static void next_request(struct conn *c, uint64_t now) {
    if (tally.phase == DRAIN) return;
    if (opt.rate == 0) {
        begin_request(c, now);
    } else if (n_arrivals) {
        uint64_t arrived = arrivals[arrival_first++ % MAX_ARRIVALS];
        n_arrivals--;
        begin_request(c, arrived);
    } else {
        idle[n_idle++] = c->index;
    }
}

static void note_error(const char *why) {
    if (!tally.first_error[0]) snprintf(tally.first_error, sizeof tally.first_error, "%s", why);
}

/* The connection is of no use any more and its request, if it had one, has no complete answer. */
static void fail(struct conn *c, uint64_t now, const char *why) {
    bool had_request = c->state != IDLE;
    if (had_request) {
        note_error(why);
        tally.n_transport_errors++;
        if (opt.stream) tally.n_unfinished++;
        n_busy--;
    } else {
        tally.n_reconnects++;
    }
    close_conn(c);
    /* A connection that was idle in the open loop stays in the list of idle ones: it is opened again on demand. */
    if (had_request && tally.n_transport_errors <= MAX_ERRORS) next_request(c, now); /* bounds the recursion */
}

static void end_answer(struct conn *c, uint64_t now) {
    n_busy--;
    tally.statuses[c->status]++;
    bool ok = c->status >= 200 && c->status < 300;
    if (opt.stream && ok) {
        tally.n_streams++;
        if (!c->has_done) tally.n_without_done++;
        if (!c->has_last_chunk) tally.n_without_last_chunk++;
        if (!c->has_done || !c->has_last_chunk) tally.n_unfinished++;
        if (opt.expect_chunks && c->n_chunks < opt.expect_chunks) tally.n_short++;
    }
    if (c->in_window && ok) histogram_add(&tally.latency, now - c->started_ns);
    if (tally.phase == WINDOW) {
        tally.n_done++;
        tally.n_ok += ok;
        if (opt.n_requests && tally.n_done == opt.n_requests) end_window();
    }
    c->state = IDLE;
    if (c->close_after) { close_conn(c); tally.n_reconnects++; }
    next_request(c, now);
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

/* Lines of server-sent events. Gives the number of data events that ended here, `[DONE]` apart. */
static uint64_t feed_events(struct conn *c, const char *data, size_t n) {
    uint64_t n_events = 0;
    while (n) {
        const char *newline = memchr(data, '\n', n);
        size_t piece = newline ? (size_t)(newline - data) : n;
        if (piece) {
            if (c->line_len < LINE_BYTES) {
                size_t room = LINE_BYTES - c->line_len;
                memcpy(c->line + c->line_len, data, piece < room ? piece : room);
            }
            c->line_len += piece;
            c->line_last = data[piece - 1];
        }
        if (!newline) break;
        size_t length = c->line_len - (c->line_len && c->line_last == '\r');
        if (length == 0) { /* the end of an event */
            n_events += c->has_data;
            c->has_data = false;
        } else if (length >= 5 && !memcmp(c->line, "data:", 5)) {
            size_t at = 5 + (length > 5 && c->line[5] == ' ');
            bool is_done = length == at + 6 && !memcmp(c->line + at, "[DONE]", 6);
            c->has_done = is_done; /* an event after [DONE] takes it back: it was not the last one */
            c->has_data = !is_done;
            if (length >= at + 8 && !memcmp(c->line + at, "{\"error\"", 8)) tally.n_error_events++;
        }
        c->line_len = 0;
        data += piece + 1;
        n -= piece + 1;
    }
    return n_events;
}

static void feed_body(struct conn *c, const char *data, size_t n, uint64_t now) {
    if (tally.phase == WINDOW) tally.body_bytes += n;
    if (!c->is_stream) return;
    uint64_t n_events = feed_events(c, data, n);
    if (!n_events) return;
    c->n_chunks += n_events;
    if (tally.phase == WINDOW) {
        tally.n_chunks += n_events;
        if (now != c->last_event_ns) tally.n_event_reads++;
    }
    if (c->in_window) {
        if (!c->has_first) histogram_add(&tally.ttft, now - c->started_ns);
        /* Events that came together have no gap between them: the client saw them at once. */
        for (uint64_t i = !c->has_first; i < n_events; i++)
            histogram_add(&tally.gap, i == 0 ? now - c->last_event_ns : 0);
    }
    c->has_first = true;
    c->last_event_ns = now;
}

static bool value_of(const char *line, size_t n, const char *name, const char **value) {
    size_t length = strlen(name);
    if (n <= length || strncasecmp(line, name, length) || line[length] != ':') return false;
    *value = line + length + 1;
    while (**value == ' ') ++*value;
    return true;
}

/* head: ends with an empty line. Sets what the body is; false: not HTTP. */
static bool read_head(struct conn *c, const char *head, size_t n) {
    if (n < 12 || memcmp(head, "HTTP/1.1 ", 9)) return false;
    c->status = atoi(head + 9);
    if (c->status < 100 || c->status > 599) return false;
    bool is_chunked = false, is_events = false;
    const char *length = NULL, *line = memchr(head, '\n', n), *end = head + n, *value;
    while (line && ++line < end) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        if (!newline) break;
        size_t size = (size_t)(newline - line);
        if (value_of(line, size, "content-length", &value)) length = value;
        else if (value_of(line, size, "transfer-encoding", &value)) is_chunked = !strncasecmp(value, "chunked", 7);
        else if (value_of(line, size, "content-type", &value)) is_events = !strncasecmp(value, "text/event-stream", 17);
        else if (value_of(line, size, "connection", &value)) c->close_after = !strncasecmp(value, "close", 5);
        line = newline;
    }
    c->is_stream = opt.stream && is_events;
    if (c->status < 200) return true;
    if (c->status == 204 || c->status == 304) { c->state = IN_LENGTH; c->left = 0; }
    else if (is_chunked) { c->state = IN_CHUNK_SIZE; c->left = 0; c->line_len = 0; }
    else if (length) { c->state = IN_LENGTH; c->left = strtoull(length, NULL, 10); }
    else { c->state = UNTIL_CLOSE; c->close_after = true; }
    return true;
}

/* Gives how many bytes belong to the head, 0 if it is not complete yet (all of them are kept), -1 if it is bad. */
static ssize_t feed_head(struct conn *c, const char *data, size_t n) {
    const char *start = data;
    size_t size = n, before = c->head_len;
    if (before) {
        if (before + n > HEAD_MAX) n = HEAD_MAX - before;
        memcpy(c->head + before, data, n);
        start = c->head;
        size = before + n;
    }
    const char *end = memmem(start, size, "\r\n\r\n", 4);
    if (!end) {
        if (size >= HEAD_MAX) return -1;
        if (!c->head && !(c->head = malloc(HEAD_MAX))) die("no memory");
        if (!before) memcpy(c->head, data, n);
        c->head_len = size;
        return 0;
    }
    size_t head_size = (size_t)(end - start) + 4;
    c->head_len = 0;
    if (!read_head(c, start, head_size)) return -1;
    return (ssize_t)(head_size - before);
}

static int hex_digit(char x) {
    return x >= '0' && x <= '9' ? x - '0' : (x | 32) >= 'a' && (x | 32) <= 'f' ? (x | 32) - 'a' + 10 : -1;
}

/* One step of the answer's framing. Gives how many bytes were used (0 only in a head that is not complete), -1: bad. */
static ssize_t feed(struct conn *c, const char *data, size_t n, uint64_t now) {
    size_t used = 1;
    switch (c->state) {
    case IN_HEAD: {
        ssize_t head = feed_head(c, data, n);
        if (head > 0 && c->state == IN_LENGTH && c->left == 0) end_answer(c, now);
        return head;
    }
    case IN_LENGTH:
        used = n < c->left ? n : c->left;
        feed_body(c, data, used, now);
        if (!(c->left -= used)) end_answer(c, now);
        return (ssize_t)used;
    case UNTIL_CLOSE:
        feed_body(c, data, n, now);
        return (ssize_t)n;
    case IN_CHUNK_SIZE: /* head_len: digits of the size seen, 32 and more in an extension, which is skipped */
        if (*data == '\n') {
            if (!c->head_len) return -1;
            c->head_len = 0;
            c->state = c->left ? IN_CHUNK_DATA : IN_TRAILER;
        } else if (hex_digit(*data) >= 0 && c->head_len < 16) {
            c->left = c->left << 4 | (uint64_t)hex_digit(*data);
            c->head_len++;
        } else if (c->head_len && (*data == ';' || *data == '\r')) {
            c->head_len |= 32;
        } else if (c->head_len < 32) {
            return -1;
        }
        return 1;
    case IN_CHUNK_DATA:
        used = n < c->left ? n : c->left;
        feed_body(c, data, used, now);
        if (!(c->left -= used)) { c->state = IN_CHUNK_END; c->left = 0; }
        return (ssize_t)used;
    case IN_CHUNK_END:
        if (*data == '\n') c->state = IN_CHUNK_SIZE;
        else if (*data != '\r') return -1;
        return 1;
    case IN_TRAILER: /* left: characters of this line; the empty line ends the answer */
        if (*data == '\n') {
            if (!c->left) { c->has_last_chunk = true; end_answer(c, now); }
            c->left = 0;
        } else if (*data != '\r') {
            c->left++;
        }
        return 1;
    default:
        return -1;
    }
}

static void on_readable(struct conn *c) {
    ssize_t n = recv(c->fd, recv_buffer, RECV_BYTES, 0);
    uint64_t now = now_ns();
    if (n < 0) {
        if (errno != EAGAIN) fail(c, now, strerror(errno));
        return;
    }
    if (n == 0) {
        if (c->state == UNTIL_CLOSE) end_answer(c, now);
        else fail(c, now, "the connection was closed before the answer was complete");
        return;
    }
    const char *data = recv_buffer, *end = recv_buffer + n;
    uint64_t request = c->started_ns;
    while (data < end) {
        enum state before = c->state;
        if (before == IDLE || before == CLOSED || (before == IN_HEAD && c->started_ns != request)) {
            fail(c, now, "bytes after the end of the answer");
            return;
        }
        ssize_t used = feed(c, data, (size_t)(end - data), now);
        if (used < 0) { fail(c, now, "not an HTTP/1.1 answer"); return; }
        if (used == 0) return;
        data += used;
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void on_arrivals(uint64_t now) {
    while (next_arrival_ns <= now) {
        if (n_idle) {
            begin_request(&conns[idle[--n_idle]], next_arrival_ns);
        } else if (n_arrivals < MAX_ARRIVALS) {
            arrivals[(arrival_first + n_arrivals++) % MAX_ARRIVALS] = next_arrival_ns;
            if (n_arrivals > tally.max_backlog) tally.max_backlog = n_arrivals;
        } else {
            tally.n_backlog_full++;
        }
        next_arrival_ns += (uint64_t)(-log(1 - random_unit()) / opt.rate * 1e9);
    }
}

/* Do what the clock says; give when to look again. */
static uint64_t on_time(uint64_t now, uint64_t *next_check_ns) {
    if (tally.phase == WARM_UP && now >= loop_start_ns + (uint64_t)(opt.warmup_s * 1e9)) begin_window(now);
    if (tally.phase == WINDOW && !opt.n_requests && now >= tally.window_start_ns + (uint64_t)(opt.seconds * 1e9)) end_window();
    uint64_t wake = *next_check_ns;
    while (next_ramp < opt.connections && tally.phase != DRAIN) {
        uint64_t due = loop_start_ns + (uint64_t)(opt.ramp_s * 1e9 * next_ramp / opt.connections);
        if (due > now) { wake = due < wake ? due : wake; break; }
        next_request(&conns[next_ramp++], now);
    }
    if (opt.rate > 0 && tally.phase != DRAIN) {
        on_arrivals(now);
        wake = next_arrival_ns < wake ? next_arrival_ns : wake;
    }
    if (now >= *next_check_ns) {
        uint64_t limit_ns = (uint64_t)(opt.timeout_s * 1e9);
        for (int i = 0; i < opt.connections; i++) {
            struct conn *c = &conns[i];
            if (c->state <= IDLE || c->started_ns + limit_ns > now) continue;
            tally.n_timeouts++;
            fail(c, now, "no complete answer in time");
        }
        *next_check_ns = now + NS_PER_S / 100;
        wake = *next_check_ns;
    }
    return wake;
}

static bool run_loop(void) {
    struct epoll_event events[256];
    uint64_t now = loop_start_ns = now_ns(), next_check_ns = now, drain_end_ns = 0;
    next_arrival_ns = now;
    for (;;) {
        uint64_t wake = on_time(now, &next_check_ns);
        if (tally.phase == DRAIN) {
            if (!drain_end_ns) drain_end_ns = now + (uint64_t)(opt.drain_s * 1e9);
            if (!n_busy || now >= drain_end_ns) return true;
        }
        if (tally.n_transport_errors + tally.n_refused > MAX_ERRORS || (next_ramp == opt.connections && tally.n_refused && !n_open)) {
            if (tally.phase == WINDOW) end_window();
            return false;
        }
        struct timespec timeout = {(time_t)((wake - now) / NS_PER_S), (long)((wake - now) % NS_PER_S)};
        if (wake <= now) timeout = (struct timespec){0, 0};
        int n = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, 256, &timeout, NULL, 0);
        if (n < 0 && errno != EINTR) die("epoll_pwait2: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c->state == CLOSED) continue;
            if (events[i].events & EPOLLOUT) send_parts(c, now_ns());
            if (c->state != CLOSED && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
        }
        now = now_ns();
    }
}

static void print_result(bool is_complete) {
    double duration_s = (double)(tally.window_end_ns - tally.window_start_ns) / 1e9;
    uint64_t n_hung = 0, n_status_errors = 0;
    for (int i = 0; i < opt.connections; i++) n_hung += conns[i].state > IDLE;
    for (int i = 0; i < 600; i++) if (i < 200 || i > 299) n_status_errors += tally.statuses[i];
    if (opt.stream) tally.n_unfinished += n_hung;
    printf("{\"is_complete\":%s,\"seed\":%llu,\"duration_s\":%.6f,\"requests\":%llu,\"ok\":%llu,\"sent\":%llu,\"requests_per_s\":%.3f",
           is_complete ? "true" : "false", (unsigned long long)opt.seed, duration_s, (unsigned long long)tally.n_done,
           (unsigned long long)tally.n_ok, (unsigned long long)tally.n_sent, duration_s > 0 ? (double)tally.n_ok / duration_s : 0);
    printf(",\"errors\":%llu,\"transport_errors\":%llu,\"status_errors\":%llu,\"timeouts\":%llu,\"refused\":%llu,\"reconnects\":%llu,\"hung\":%llu",
           (unsigned long long)(tally.n_transport_errors + n_status_errors + n_hung), (unsigned long long)tally.n_transport_errors,
           (unsigned long long)n_status_errors, (unsigned long long)tally.n_timeouts, (unsigned long long)tally.n_refused,
           (unsigned long long)tally.n_reconnects, (unsigned long long)n_hung);
    printf(",\"max_backlog\":%llu,\"dropped_arrivals\":%llu", (unsigned long long)tally.max_backlog, (unsigned long long)tally.n_backlog_full);
    printf(",\"first_error\":\"%s\",\"statuses\":{", tally.first_error);
    for (int i = 0, first = 1; i < 600; i++)
        if (tally.statuses[i]) { printf("%s\"%d\":%llu", first ? "" : ",", i, (unsigned long long)tally.statuses[i]); first = 0; }
    printf("},\"streams\":%llu,\"unfinished\":%llu,\"without_done\":%llu,\"without_last_chunk\":%llu,\"short\":%llu,\"error_events\":%llu",
           (unsigned long long)tally.n_streams, (unsigned long long)tally.n_unfinished, (unsigned long long)tally.n_without_done,
           (unsigned long long)tally.n_without_last_chunk, (unsigned long long)tally.n_short, (unsigned long long)tally.n_error_events);
    printf(",\"chunks\":%llu,\"chunks_per_s\":%.3f,\"event_reads\":%llu,\"body_bytes\":%llu", (unsigned long long)tally.n_chunks,
           duration_s > 0 ? (double)tally.n_chunks / duration_s : 0, (unsigned long long)tally.n_event_reads, (unsigned long long)tally.body_bytes);
    histogram_print("latency_ms", &tally.latency);
    histogram_print("ttft_ms", &tally.ttft);
    histogram_print("gap_ms", &tally.gap);
    printf(",\"own_cpu_s\":%.6f,\"cpu_s\":{", tally.own_cpu_s);
    for (int i = 0; i < opt.n_pids; i++) printf("%s\"%d\":%.6f", i ? "," : "", opt.pids[i], tally.pid_cpu_s[i]);
    printf("}}\n");
}

static void read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--stream")) { opt.stream = true; continue; }
        if (++i == argc) die("%s needs a value", name);
        const char *value = argv[i];
        double number = atof(value);
        if (!strcmp(name, "--host")) opt.host = value;
        else if (!strcmp(name, "--port")) { if (opt.n_ports == MAX_PORTS) die("too many --port"); opt.ports[opt.n_ports++] = (int)number; }
        else if (!strcmp(name, "--path")) opt.path = value;
        else if (!strcmp(name, "--model")) opt.model = value;
        else if (!strcmp(name, "--extra")) opt.extra = value;
        else if (!strcmp(name, "--connections")) opt.connections = (int)number;
        else if (!strcmp(name, "--max-tokens")) opt.max_tokens = (int)number;
        else if (!strcmp(name, "--requests")) opt.n_requests = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--seconds")) opt.seconds = number;
        else if (!strcmp(name, "--warmup")) opt.warmup_s = number;
        else if (!strcmp(name, "--drain")) opt.drain_s = number;
        else if (!strcmp(name, "--timeout")) opt.timeout_s = number;
        else if (!strcmp(name, "--ramp")) opt.ramp_s = number;
        else if (!strcmp(name, "--rate")) opt.rate = number;
        else if (!strcmp(name, "--size")) opt.size = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--share")) opt.share = number;
        else if (!strcmp(name, "--shared-bytes")) opt.shared_bytes = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--groups")) opt.n_groups = (int)number;
        else if (!strcmp(name, "--seed")) opt.seed = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--expect-chunks")) opt.expect_chunks = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--cpu")) { if (opt.n_pids == MAX_PIDS) die("too many --cpu"); opt.pids[opt.n_pids++] = (int)number; }
        else die("unknown option %s", name);
    }
    struct in_addr address;
    if (!opt.n_ports) die("--port is needed");
    if (inet_pton(AF_INET, opt.host, &address) != 1) die("--host must be an IPv4 address, not %s", opt.host);
    if (opt.connections < 1 || opt.connections > 60000) die("--connections is %d, must be between 1 and 60000", opt.connections);
    if (opt.n_groups < 1) die("--groups is %d, must be at least 1", opt.n_groups);
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    random_state = opt.seed;
    prepare_requests();
    struct rlimit files = {0, 0};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc((size_t)opt.connections, sizeof *conns);
    idle = calloc((size_t)opt.connections, sizeof *idle);
    if (epoll_fd < 0 || !conns || !idle) die("no memory or no epoll");
    for (int i = 0; i < opt.connections; i++) conns[i].index = i;
    for (int i = 0; i < opt.connections; i++)
        if (!open_conn(&conns[i])) { fprintf(stderr, "loadgen: %s:%d: %s\n", opt.host, opt.ports[0], tally.first_error); return 3; }
    bool is_complete = run_loop();
    print_result(is_complete);
    return is_complete ? 0 : 3;
}

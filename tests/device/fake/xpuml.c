/* A libxpuml.so.1 that answers from a scenario named by FAKE_XPUML, with the structs of Kunlunxin's xpuml.h.
 *
 * Proves: our order of calls (one start in a process, no shutdown), our mapping of its errors, and that ctypes reads the
 * structs as a C compiler lays them out. Does not prove: that a real library answers so. The structs are declared here by
 * hand from the public header; fake_layout() tells their sizes and offsets.
 *
 * Scenarios: p800 (two, listed against the bus, the first in use), k200 (two chips at one address), k200_half (of which the
 * first gives no handle), sick (the second is in
 * an exception), lost (every metric of the first says that it is gone), half (the second gives no handle), renumbered (the
 * nodes are not numbered as the library counts), starting (no memory yet), drift (a struct that begins otherwise),
 * countless (as many cards as 32 bits hold), version9, not_loaded, mute (only identity is answered), shy (p800 that does not know what the second process holds).
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    unsigned int domain, bus, device, function, pciDeviceId, pciSubSystemId;
    char busId[32];
    unsigned long long reserved[9];
} xpumlPciInfo_t;
typedef struct {
    unsigned long long pageSizeGlobalMemory, totalGlobalMemory, freeGlobalMemory, usedGlobalMemory;
    unsigned long long pageSizeL3Memory, totalL3Memory, freeL3Memory, usedL3Memory, reserved[8];
} xpumlMemory_t;
typedef struct { unsigned int xpu, memory; unsigned long long reserved[15]; } xpumlUtilization_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGlobalMemory, usedL3Memory;
    unsigned int root_ns_pid, reserved_u32;
    unsigned long long reserved[12];
} xpumlProcessInfo_t;

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9, LOST = 15 };

/* Handles are the addresses of these, so that an index taken for a handle shows. */
static char cards[2];
static int inits;

#define SIZE(type) if (!strcmp(what, #type)) return (int)sizeof(type)
#define OFFSET(type, field) if (!strcmp(what, #type "." #field)) return (int)offsetof(type, field)
int fake_layout(const char *what) {
    SIZE(xpumlPciInfo_t);
    SIZE(xpumlMemory_t);
    SIZE(xpumlUtilization_t);
    SIZE(xpumlProcessInfo_t);
    OFFSET(xpumlPciInfo_t, pciDeviceId);
    OFFSET(xpumlPciInfo_t, busId);
    OFFSET(xpumlPciInfo_t, reserved);
    OFFSET(xpumlMemory_t, totalGlobalMemory);
    OFFSET(xpumlMemory_t, usedGlobalMemory);
    OFFSET(xpumlMemory_t, reserved);
    OFFSET(xpumlUtilization_t, reserved);
    OFFSET(xpumlProcessInfo_t, usedGlobalMemory);
    OFFSET(xpumlProcessInfo_t, root_ns_pid);
    OFFSET(xpumlProcessInfo_t, reserved);
    return -1;
}
int fake_inits(void) { return inits; }

static int is(const char *name) {
    const char *scenario = getenv("FAKE_XPUML");
    return scenario && !strcmp(scenario, name);
}
static int k200(void) { return is("k200") || is("k200_half"); }
static int put(char *to, unsigned int length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}
static int of(const char *handle) {
    for (int at = 0; at < 2; at++) if (handle == &cards[at]) return at;
    return -1;
}
/* What a question about a metric comes back with. */
static int metric(const char *handle) {
    int at = of(handle);
    return at < 0 ? INVALID : is("mute") ? NOT_SUPPORTED : is("lost") && at == 0 ? LOST : SUCCESS;
}

int xpumlInit(void) {
    inits++;
    return is("not_loaded") ? NOT_LOADED : SUCCESS;
}
int xpumlSystemGetXPUMLVersion(char *text, unsigned int length) {
    return put(text, length, is("version9") ? "9.0.1.1" : k200() ? "4.0.7.1" : "5.0.21.26");
}
int xpumlSystemGetDriverVersion(char *text, unsigned int length) { return put(text, length, "5.0.21.26 commit: abc"); }
int xpumlDeviceGetCount(unsigned int *count) {
    *count = is("countless") ? 0xffffffffu : 2;
    return SUCCESS;
}
int xpumlDeviceGetHandleByIndex(unsigned int index, char **handle) {
    if (index > 1) return INVALID;
    if ((is("half") && index == 1) || (is("k200_half") && index == 0)) return LOST;
    *handle = &cards[index];
    return SUCCESS;
}
int xpumlDeviceGetName(const char *handle, char *text, unsigned int length) {
    return of(handle) < 0 ? INVALID : put(text, length, k200() ? "K200" : "P800 OAM");
}
int xpumlDeviceGetSerial(const char *handle, char *text, unsigned int length) {
    int at = of(handle);
    if (at < 0) return INVALID;
    return put(text, length, at == 0 || k200() ? "02K15K624CV99901" : "02K15K624CV99902");
}
int xpumlDeviceGetId(const char *handle, int *number) {
    int at = of(handle);
    *number = is("renumbered") ? 7 - at : at;
    return at < 0 ? INVALID : SUCCESS;
}
int xpumlDeviceGetPciInfo(const char *handle, xpumlPciInfo_t *place) {
    int at = of(handle);
    if (at < 0) return INVALID;
    memset(place, 0, sizeof *place);
    place->bus = at == 0 || k200() ? 0x52 : 0x03;
    snprintf(place->busId, sizeof place->busId, "%08X:%02X:%02X.%01X", 0, place->bus, 0, 0);
    if (is("drift")) memmove(place, (char *)place + 8, sizeof *place - 8);
    return SUCCESS;
}
int xpumlDeviceGetMemoryInfo(const char *handle, xpumlMemory_t *memory) {
    int at = of(handle);
    memset(memory, 0, sizeof *memory);
    if (is("starting")) return SUCCESS;
    memory->totalGlobalMemory = 98304ull << 20;
    memory->usedGlobalMemory = at == 0 ? 1024ull << 20 : 0;
    memory->freeGlobalMemory = memory->totalGlobalMemory - memory->usedGlobalMemory;
    memory->totalL3Memory = 96ull << 20;
    return metric(handle);
}
int xpumlDeviceGetUtilizationRates(const char *handle, xpumlUtilization_t *load) {
    memset(load, 0, sizeof *load);
    load->xpu = of(handle) == 0 ? 12 : 0;
    load->memory = 99;
    return metric(handle);
}
int xpumlDeviceGetTemperature(const char *handle, int sensor, unsigned int *celsius) {
    *celsius = 38;
    return sensor ? INVALID : metric(handle);
}
int xpumlDeviceGetPowerUsage(const char *handle, unsigned int *milliwatts) {
    *milliwatts = 85500;
    return metric(handle);
}
int xpumlDeviceGetState(const char *handle, int *state) {
    *state = is("sick") && of(handle) == 1 ? 208 : 201;
    return metric(handle);
}
int xpumlDeviceGetComputeRunningProcesses(const char *handle, unsigned int *count, xpumlProcessInfo_t *infos) {
    int at = of(handle);
    if (at < 0 || *count != 100) return INVALID;
    memset(infos, 0, 100 * sizeof *infos);
    *count = at == 0 ? 2 : 0;
    for (int which = 0; which < 2; which++) {
        infos[which].pid = 4242 + which;
        infos[which].usedGlobalMemory = is("shy") && which == 1 ? ~0ull : 512ull << 20;
    }
    return metric(handle);
}

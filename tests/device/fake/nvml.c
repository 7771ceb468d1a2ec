/* A libnvidia-ml.so.1 that answers from a scenario named by FAKE_NVML, for the real pynvml and cuda.core to drive.
 *
 * Proves: our order of calls, our mapping of its errors, and that the binding's structs are read as laid out here.
 * Does not prove: how a real driver behaves, when it sends an event, or which calls a real card supports. Struct layouts
 * are those of nvml.h (CUDA 12 and 13), declared here by hand and pinned by the sizes below and by test_nvml_layout.py.
 *
 * Scenarios: 5090, 2xb200 (NVLink), 2x5090 (no NVLink: a P2P status that says so), mig, lost (the second of two cards
 * fell off the bus), gb10 (unified memory: not supported), wsl (0 bytes), orin (on no bus, knows little of itself),
 * unread (its memory is an unknown error), vgpu (a guest's), vgpu_host (its card is for guests), sick (ECC, hot, a row to be remapped, two processes), reset (the
 * driver asks for a reset), not_loaded, mismatch, hang, hang_once (in the first process, the next makes a 5090),
 * remap_failed, hang_sample (in every metric), crash, chatty (a 5090 whose library prints to standard output),
 * crash_at_exit (a 5090 whose library crashes as its process ends), mig_race (one instance is just taken apart).
 *
 * FAKE_NVML=crash_marked: a 5090 that crashes whoever asks it while FAKE_NVML_MARK is there.
 * FAKE_NVML=upgrade: a 5090 whose kernel driver is older than the library while FAKE_NVML_MARK is there. Of any scenario:
 * FAKE_NVML_ECC (volatile uncorrectable errors), FAKE_NVML_PAGES (pages wait to be retired), FAKE_NVML_TEMP, and
 * FAKE_NVML_LIMITS "shutdown,slowdown" in C, 0 or absent: not supported; FAKE_NVML_OLD (a driver before 510: no second
 * version of the memory, whose first has no reserve in its total; no P2P status), FAKE_NVML_USED=all (the second version's
 * `used` has the reserve in it, as NVML's manual of R525 says and that of R590 does not), FAKE_NVML_MUTE (MIG instances do
 * not tell of their memory).
 *
 * FAKE_NVML_EVENTS: "type:data type:data ...", delivered one per wait, of the first card. FAKE_NVML_SYSTEM_EVENTS=unbind:
 * a system event, once. FAKE_NVML_MARK: a file; hang_once makes it, and while FAKE_NVML=2xlost the second card is lost as
 * long as it is there; 2xlate: it can still be opened. 2xstuck: the second
 * of two cards does not answer in time. FAKE_NVML_LOG: a file to which the name of every metric call is appended.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct card { int minor; int slot; } card;   /* slot -1: the whole card */
typedef card *nvmlDevice_t;
enum {
    OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10, FUNCTION_NOT_FOUND = 13, LOST = 15, MISMATCH = 18, VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct {
    unsigned int version, domain, bus, device, pciDeviceId, pciSubSystemId, baseClass, subClass;
    char busId[32];
} nvmlPciInfoExt_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;
typedef union { double d; int si; unsigned int ui; unsigned long ul; unsigned long long ull; } nvmlValue_t;
typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned int valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;
typedef struct { unsigned int version; void *set; } nvmlSystemEventSetCreateRequest_t;
typedef struct { unsigned int version; unsigned long long eventTypes; void *set; } nvmlSystemRegisterEventRequest_t;
typedef struct { unsigned long long eventType; unsigned int gpuId; } nvmlSystemEventData_t;
typedef struct {
    unsigned int version, timeoutms;
    void *set;
    nvmlSystemEventData_t *data;
    unsigned int dataSize, numEvent;
} nvmlSystemEventSetWaitRequest_t;
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(nvmlPciInfoExt_t) == 64, "nvmlPciInfoExt_v1_t");
_Static_assert(sizeof(nvmlMemory_t) == 24, "nvmlMemory_t");
_Static_assert(sizeof(nvmlMemory_v2_t) == 40, "nvmlMemory_v2_t");
_Static_assert(sizeof(nvmlEventData_t) == 32, "nvmlEventData_t");
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "nvmlFieldValue_t");
_Static_assert(sizeof(nvmlProcessInfo_t) == 24, "nvmlProcessInfo_v2_t");
_Static_assert(sizeof(nvmlSystemEventSetWaitRequest_t) == 0x20, "nvmlSystemEventSetWaitRequest_v1_t");

/* What the layout test asks for: sizes and offsets as this compiler makes them. */
const unsigned long fake_layout[] = {
    sizeof(nvmlPciInfo_t), __builtin_offsetof(nvmlPciInfo_t, busId),
    sizeof(nvmlMemory_t), __builtin_offsetof(nvmlMemory_t, used),
    sizeof(nvmlMemory_v2_t), __builtin_offsetof(nvmlMemory_v2_t, reserved),
    sizeof(nvmlEventData_t), __builtin_offsetof(nvmlEventData_t, eventData),
    sizeof(nvmlFieldValue_t), __builtin_offsetof(nvmlFieldValue_t, value),
    sizeof(nvmlProcessInfo_t), __builtin_offsetof(nvmlProcessInfo_t, usedGpuMemory),
    sizeof(nvmlSystemEventSetWaitRequest_t), __builtin_offsetof(nvmlSystemEventSetWaitRequest_t, data),
};

static card cards[2] = {{0, -1}, {1, -1}};
static card instances[2] = {{0, 0}, {0, 2}};

static int is(const char *name) {
    const char *scenario = getenv("FAKE_NVML");
    return scenario && !strcmp(scenario, name);
}
static int is_mig(void) { return is("mig") || is("mig_race"); }
static int is_b200(void) { return is("2xb200") || is_mig() || is("2xlost") || is("2xlate") || is("2xstuck"); }
static int is_marked(void) { return getenv("FAKE_NVML_MARK") && !access(getenv("FAKE_NVML_MARK"), F_OK); }
static int is_lost(nvmlDevice_t device) { return (is("2xlost") || is("2xlate")) && device->minor == 1 && is_marked(); }

/* Opens and closes a file; says whether that worked. */
static int fclose_of(const char *path, const char *mode) {
    FILE *file = path ? fopen(path, mode) : NULL;
    return file && !fclose(file);
}
/* A metric was asked for: notes it, and hangs where the scenario says so. */
static void metric(const char *name) {
    FILE *file = getenv("FAKE_NVML_LOG") ? fopen(getenv("FAKE_NVML_LOG"), "a") : NULL;
    if (file) { fprintf(file, "%s\n", name); fclose(file); }
    if (is("hang_sample")) for (;;) pause();
    if (is("crash_marked") && is_marked()) raise(SIGSEGV);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (is("not_loaded")) return DRIVER_NOT_LOADED;
    static int has_begun; /* with one library a process goes on, whatever lies in its place now */
    if (is("mismatch") || (is("upgrade") && is_marked() && !has_begun)) return MISMATCH;
    has_begun = 1;
    if (is("crash") || (is("crash_marked") && is_marked())) { raise(SIGSEGV); }
    if (is("chatty")) { puts("NVML: hello"); fflush(stdout); }
    if (is("hang")) for (;;) pause();
    if (is("hang_once") && !is_marked()) {
        fclose_of(getenv("FAKE_NVML_MARK"), "w");
        for (;;) pause();
    }
    return OK;
}
__attribute__((destructor)) static void leave(void) { if (is("crash_at_exit")) raise(SIGSEGV); }
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(nvmlReturn_t result) {
    return result == DRIVER_NOT_LOADED ? "Driver Not Loaded" : result == LOST ? "GPU is lost" : "error of the fake";
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = is("2xb200") || is("2x5090") || is("2xlost") || is("2xlate") || is("2xstuck") || is("lost") ? 2 : 1;
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (is("lost") && index == 1) return LOST;
    /* Two cards are listed against the order of the bus: the inventory must sort. */
    *device = &cards[is("2xb200") ? 1 - index : index];
    return is_lost(*device) && !is("2xlate") ? LOST : OK; /* 2xlate: lost after it was opened */
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int length) {
    if (is("mig_race") && device->slot == 2) return NOT_FOUND;
    if (is("orin")) snprintf(text, length, "a9485f58-0000-5a97-b73d-000000000000");
    else if (device->slot >= 0) snprintf(text, length, "MIG-00000000-0000-0000-0000-00000000000%d", device->slot);
    else snprintf(text, length, "GPU-00000000-0000-0000-0000-00000000000%d", device->minor);
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    *device = &cards[uuid[strlen(uuid) - 1] - '0'];
    return OK;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
    snprintf(text, length, "%s", is_b200() ? (device->slot >= 0 ? "NVIDIA B200 MIG 1g.23gb" : "NVIDIA B200")
                                 : is("gb10") ? "NVIDIA GB10" : is("orin") ? "Orin (nvgpu)" : "NVIDIA GeForce RTX 5090");
    return OK;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    (void)device;
    *major = is_b200() ? 10 : is("orin") ? 8 : 12;
    *minor = is("gb10") ? 1 : is("orin") ? 7 : 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture) {
    (void)device;
    *architecture = 10; /* NVML_DEVICE_ARCH_BLACKWELL, whatever the capability */
    return OK;
}
/* Total, the driver's reserve of it, and what programs have, in MiB. The reserves are what real cards' CUDA totals say:
 * 31.36 GiB of an RTX 5090, 178.35 of a B200; a MIG instance has none. */
static nvmlReturn_t memory_of(nvmlDevice_t device, unsigned long long mib[3]) {
    if (is("gb10") || is("orin")) return NOT_SUPPORTED;
    if (is("unread")) return UNKNOWN;
    if (device->slot >= 0 && getenv("FAKE_NVML_MUTE")) return NOT_SUPPORTED;
    mib[0] = is("wsl") ? 0 : device->slot >= 0 ? 23552 : is_b200() ? 183359 : 32607;
    mib[1] = is("wsl") || device->slot >= 0 ? 0 : is_b200() ? 729 : 495;
    mib[2] = is("wsl") ? 0 : is("sick") ? 20512 : 512;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    unsigned long long mib[3];
    nvmlReturn_t result = memory_of(device, mib);
    if (result != OK) return result;
    if (getenv("FAKE_NVML_OLD")) { mib[0] -= mib[1]; mib[1] = 0; }
    memory->total = mib[0] << 20;
    memory->used = (mib[1] + mib[2]) << 20;
    memory->free = memory->total - memory->used;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    unsigned long long mib[3];
    nvmlReturn_t result = memory_of(device, mib);
    if (getenv("FAKE_NVML_OLD")) return FUNCTION_NOT_FOUND;
    if (memory->version != (sizeof *memory | 2u << 24)) return VERSION_MISMATCH;
    if (result != OK) return result;
    memory->total = mib[0] << 20;
    memory->reserved = mib[1] << 20;
    memory->used = (mib[2] + (getenv("FAKE_NVML_USED") ? mib[1] : 0)) << 20;
    memory->free = (mib[0] - mib[1] - mib[2]) << 20;
    return OK;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    if (is("orin")) return NOT_SUPPORTED;
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x1b + 0x20 * device->minor;
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    return OK;
}
nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci) {
    nvmlPciInfo_t plain;
    nvmlDeviceGetPciInfo_v3(device, &plain);
    pci->domain = pci->device = pci->pciDeviceId = pci->pciSubSystemId = pci->subClass = 0;
    pci->bus = plain.bus;
    pci->baseClass = 3;
    memcpy(pci->busId, plain.busId, sizeof pci->busId);
    return OK;
}
nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, int *mode) {
    (void)device;
    if (is("orin")) return NOT_SUPPORTED;
    *mode = is("vgpu") ? 2 : is("vgpu_host") ? 3 : 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    if (is("orin")) return NOT_SUPPORTED;
    *minor = device->minor;
    return OK;
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int length) {
    if (is("orin")) return NOT_SUPPORTED;
    snprintf(text, length, "595.84");
    return OK;
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned int length) {
    snprintf(text, length, "13.595.84");
    return OK;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13020;
    return OK;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    if (is_lost(device)) return LOST;
    if (!is_b200()) return NOT_SUPPORTED;
    *current = *pending = is_mig();
    return OK;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) {
    (void)device;
    *count = 7;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *instance) {
    (void)device;
    if (index != 0 && index != 2) return NOT_FOUND;
    *instance = &instances[index / 2];
    return OK;
}
nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *answer) {
    *answer = device->slot >= 0;
    return OK;
}

/* Metrics: an inventory must call none of these. */
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    metric("utilization");
    if (is_lost(device)) return LOST;
    if (is("2xstuck") && device->minor == 1) return TIMEOUT;
    if (is("gb10") || is("orin")) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 12;
    return OK;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    (void)device;
    metric("power");
    if (is("gb10") || is("orin")) return NOT_SUPPORTED;
    *milliwatts = 91300;
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius) {
    metric("temperature");
    if (is_lost(device)) return LOST;
    if (sensor != 0) return INVALID_ARGUMENT;
    *celsius = getenv("FAKE_NVML_TEMP") ? atoi(getenv("FAKE_NVML_TEMP")) : 53;
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, int kind, unsigned int *celsius) {
    unsigned int limits[2] = {0, 0}; /* NVML_TEMPERATURE_THRESHOLD_SHUTDOWN is 0, ..._SLOWDOWN is 1 */
    (void)device;
    metric("threshold");
    if (getenv("FAKE_NVML_LIMITS")) sscanf(getenv("FAKE_NVML_LIMITS"), "%u,%u", &limits[0], &limits[1]);
    if (kind > 1 || !limits[kind]) return NOT_SUPPORTED;
    *celsius = limits[kind];
    return OK;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    (void)device;
    metric("clocks");
    if (is("gb10") || is("orin")) return NOT_SUPPORTED;
    *reasons = is("sick") ? 0x40 : 0x1; /* hardware thermal slowdown; idle */
    return OK;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons);
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int kind, int counter, unsigned long long *count) {
    (void)device;
    metric("ecc");
    if ((!is("sick") && !getenv("FAKE_NVML_ECC")) || kind != 1 || counter != 0) return NOT_SUPPORTED;
    *count = getenv("FAKE_NVML_ECC") ? strtoull(getenv("FAKE_NVML_ECC"), NULL, 10) : 3;
    return OK;
}
nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, int *is_pending) {
    (void)device;
    metric("pages");
    if (!getenv("FAKE_NVML_PAGES")) return NOT_SUPPORTED;
    *is_pending = atoi(getenv("FAKE_NVML_PAGES"));
    return OK;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(
    nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed
) {
    (void)device;
    metric("rows");
    if (!is_b200() && !is("sick") && !is("remap_failed")) return NOT_SUPPORTED;
    *corrected = *uncorrected = 0;
    *pending = is("sick");
    *failed = is("remap_failed");
    return OK;
}
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    if (is_lost(device)) return LOST;
    for (int i = 0; i < count; i++) {
        values[i].nvmlReturn = values[i].fieldId == 230 && (is("reset") || is_b200()) ? OK : NOT_SUPPORTED;
        values[i].valueType = 1;
        values[i].value.ui = is("reset") && !is_marked() ? 1 : 0; /* GPU_RESET, until the mark says it was done */
    }
    return OK;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *found) {
    (void)device;
    if (!is("sick")) { *count = 0; return OK; }
    if (!found || *count < 2) { *count = 2; return INSUFFICIENT_SIZE; }
    *count = 2;
    memset(found, 0, 2 * sizeof *found);
    found[0].pid = 4242;
    found[0].usedGpuMemory = 20000ull << 20;
    found[1].pid = 4343;
    found[1].usedGpuMemory = ~0ull; /* not available: another container's */
    return OK;
}

/* Links. */
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned int *level) {
    (void)one; (void)other;
    *level = is("2x5090") ? 30 : 50; /* a host bridge; between NUMA nodes */
    return OK;
}
nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, unsigned int index, unsigned int *status) {
    (void)one; (void)other;
    if (index != 2) return INVALID_ARGUMENT; /* NVML_P2P_CAPS_INDEX_NVLINK is all that is asked for */
    if (getenv("FAKE_NVML_OLD")) return NOT_SUPPORTED;
    *status = is("2x5090") ? 5 : 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, unsigned int *state) {
    (void)device;
    if (!is_b200() || link > 17) return INVALID_ARGUMENT;
    *state = link == 3;
    return OK;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    if (link != 3) return INVALID_ARGUMENT;
    return nvmlDeviceGetPciInfo_v3(&cards[1 - device->minor], pci);
}

/* Events. */
nvmlReturn_t nvmlEventSetCreate(void **set) { *set = cards; return OK; }
nvmlReturn_t nvmlEventSetFree(void *set) { (void)set; return OK; }
nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    (void)device;
    if (is("gb10") || is("orin")) return NOT_SUPPORTED;
    *types = 0x8 | 0x2 | 0x1 | 0x8000;
    return OK;
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, void *set) {
    (void)device; (void)set;
    return types & ~(0x8ull | 0x2 | 0x1 | 0x8000) ? NOT_SUPPORTED : OK;
}
nvmlReturn_t nvmlEventSetWait_v2(void *set, nvmlEventData_t *data, unsigned int timeout_ms) {
    static const char *next;
    static int has_begun;
    (void)set;
    if (!has_begun) { next = getenv("FAKE_NVML_EVENTS"); has_begun = 1; }
    memset(data, 0, sizeof *data);
    if (next && sscanf(next, "%llu:%llu", &data->eventType, &data->eventData) == 2) {
        next = strchr(next, ' ');
        next = next ? next + 1 : NULL;
        data->device = &cards[0];
        data->gpuInstanceId = data->computeInstanceId = 0xffffffff;
        return OK;
    }
    usleep(timeout_ms * 1000);
    return TIMEOUT;
}
nvmlReturn_t nvmlSystemEventSetCreate(nvmlSystemEventSetCreateRequest_t *request) {
    if (!getenv("FAKE_NVML_SYSTEM_EVENTS")) return NOT_SUPPORTED;
    request->set = cards;
    return OK;
}
nvmlReturn_t nvmlSystemEventSetFree(nvmlSystemEventSetCreateRequest_t *request) { (void)request; return OK; }
nvmlReturn_t nvmlSystemRegisterEvents(nvmlSystemRegisterEventRequest_t *request) {
    return request->set == cards && request->eventTypes == 3 ? OK : INVALID_ARGUMENT;
}
nvmlReturn_t nvmlSystemEventSetWait(nvmlSystemEventSetWaitRequest_t *request) {
    static int is_told;
    if (is_told || request->dataSize < 1) return TIMEOUT;
    is_told = 1;
    request->numEvent = 1;
    request->data[0].eventType = 1; /* unbind */
    request->data[0].gpuId = 0;
    return OK;
}

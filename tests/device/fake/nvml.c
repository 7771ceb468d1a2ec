/* A libnvidia-ml.so.1 that answers from a scenario named by FAKE_NVML, for the real pynvml to drive.
 *
 * Proves: our order of calls, our mapping of its errors, and that the binding's structs are read as laid out here.
 * Does not prove: how a real driver behaves. Struct layouts are those of nvml.h (CUDA 12), declared here by hand; the
 * memory and PCI structs are pinned by the sizes below.
 *
 * Scenarios: 5090, 2xb200, mig, lost (the second of two cards fell off the bus), gb10 (unified memory: 0 bytes),
 * not_loaded, mismatch, hang, hang_once (in the first process, the next makes a 5090),
 * crash.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef struct card { int minor; int slot; } card;   /* slot -1: the whole card */
typedef card *nvmlDevice_t;
enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, LOST = 15, MISMATCH = 18 };

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(nvmlMemory_t) == 24, "nvmlMemory_t");

static card cards[2] = {{0, -1}, {1, -1}};
static card instances[2] = {{0, 0}, {0, 2}};

static int is(const char *name) {
    const char *scenario = getenv("FAKE_NVML");
    return scenario && !strcmp(scenario, name);
}
static int is_b200(void) { return is("2xb200") || is("mig"); }

/* Opens and closes a file; says whether that worked. */
static int fclose_of(const char *path, const char *mode) {
    FILE *file = path ? fopen(path, mode) : NULL;
    return file && !fclose(file);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (is("not_loaded")) return DRIVER_NOT_LOADED;
    if (is("mismatch")) return MISMATCH;
    if (is("crash")) { raise(SIGSEGV); }
    if (is("hang")) for (;;) pause();
    if (is("hang_once") && !fclose_of(getenv("FAKE_NVML_MARK"), "r")) {
        fclose_of(getenv("FAKE_NVML_MARK"), "w");
        for (;;) pause();
    }
    return OK;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(nvmlReturn_t result) {
    return result == DRIVER_NOT_LOADED ? "Driver Not Loaded" : result == LOST ? "GPU is lost" : "error of the fake";
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = is("2xb200") || is("lost") ? 2 : 1;
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (is("lost") && index == 1) return LOST;
    /* Two cards are listed against the order of the bus: the inventory must sort. */
    *device = &cards[is("2xb200") ? 1 - index : index];
    return OK;
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned int length) {
    if (device->slot >= 0) snprintf(text, length, "MIG-00000000-0000-0000-0000-00000000000%d", device->slot);
    else snprintf(text, length, "GPU-00000000-0000-0000-0000-00000000000%d", device->minor);
    return OK;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    *device = &cards[uuid[strlen(uuid) - 1] - '0'];
    return OK;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned int length) {
    snprintf(text, length, "%s", is_b200() ? (device->slot >= 0 ? "NVIDIA B200 MIG 1g.23gb" : "NVIDIA B200")
                                 : is("gb10") ? "NVIDIA GB10" : "NVIDIA GeForce RTX 5090");
    return OK;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    (void)device;
    *major = is_b200() ? 10 : 12;
    *minor = is("gb10") ? 1 : 0;
    return OK;
}
nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture) {
    (void)device;
    *architecture = 10; /* NVML_DEVICE_ARCH_BLACKWELL, whatever the capability */
    return OK;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    unsigned long long mib = is("gb10") ? 0 : device->slot >= 0 ? 23552 : is_b200() ? 183359 : 32607;
    memory->total = mib << 20;
    memory->used = is("gb10") ? 0 : 512ull << 20;
    memory->free = memory->total - memory->used;
    return OK;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x1b + 0x20 * device->minor;
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    return OK;
}
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor) {
    *minor = device->minor;
    return OK;
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int length) {
    snprintf(text, length, "595.84");
    return OK;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13020;
    return OK;
}
nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    (void)device;
    if (!is_b200()) return NOT_SUPPORTED;
    *current = *pending = is("mig");
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
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    (void)device;
    if (is("gb10")) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 12;
    return OK;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    (void)device;
    if (is("gb10")) return NOT_SUPPORTED;
    *milliwatts = 91300;
    return OK;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *celsius) {
    (void)device;
    if (sensor != 0) return INVALID_ARGUMENT;
    *celsius = 53;
    return OK;
}
/* nvmlDeviceGetTotalEccErrors is left out on purpose: an older driver without the symbol is an unknown, not an error. */

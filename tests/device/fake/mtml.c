/* A libmtml.so.2 that answers from a scenario named by FAKE_MTML, with the structs of mtml_2.2.0.h.
 *
 * Proves: our order of calls (one start in a process, no shutdown, every handle asked for once), our mapping of its
 * errors, and that ctypes reads the structs as a C compiler lays them out. Does not prove: that a real library answers
 * so. The structs are declared here by hand from the public header; fake_layout() tells their sizes and offsets.
 *
 * Scenarios: s5000 (two, listed against the bus, joined by MtLink), unrelated (the same of a library that relates no two
 * cards: each link tells its other end), wired (their links are down: the level of the bus
 * counts), linkless (S80, which have no MtLink), mpc (a divided card: its parent and two instances), vgpu (a card and a slice of a virtual machine), half (the
 * second cannot be opened), lost (every call about a card fails), version9, not_loaded, garbled (no PCI address).
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char sbdf[32];
    unsigned int segment, bus, device, pciDeviceId, pciSubsystemId, busWidth;
    float pciMaxSpeed, pciCurSpeed;
    unsigned int pciMaxWidth, pciCurWidth, pciMaxGen, pciCurGen;
    int rsvd[6];
} MtmlPciInfo;
typedef struct {
    unsigned int virtCap : 1, virtRole : 3, mpcCap : 1, mpcType : 3, mtLinkCap : 1, rsvd : 23;
    unsigned int rsvd2 : 32;
} MtmlDeviceProperty;
typedef struct { unsigned int version, bandWidth, linkNum, rsvd[4]; } MtmlMtLinkSpec;
typedef struct { unsigned int localLinkId, remoteLinkId, rsvd[4]; } MtmlMtLinkLayout;

enum { SUCCESS = 0, NOT_LOADED = 1, DRIVER_FAILURE = 2, INVALID = 3, NOT_SUPPORTED = 4, INSUFFICIENT_SIZE = 6 };

/* A handle is a card; those of its GPU and memory are told apart by their offsets, so that a mix-up shows. */
typedef struct { char device, gpu, memory; } card;
static card cards[3];
static char library, sys;
static struct { const char *name; int times; } called[32];

static int note(const char *name) {
    for (int at = 0; at < 32; at++) {
        if (!called[at].name) called[at].name = name;
        if (!strcmp(called[at].name, name)) return ++called[at].times;
    }
    return 0;
}
int fake_calls(const char *name) {
    for (int at = 0; at < 32 && called[at].name; at++)
        if (!strcmp(called[at].name, name)) return called[at].times;
    return 0;
}

#define SIZE(type) if (!strcmp(what, #type)) return (int)sizeof(type)
#define OFFSET(type, field) if (!strcmp(what, #type "." #field)) return (int)offsetof(type, field)
int fake_layout(const char *what) {
    SIZE(MtmlPciInfo);
    SIZE(MtmlDeviceProperty);
    SIZE(MtmlMtLinkLayout);
    SIZE(MtmlMtLinkSpec);
    OFFSET(MtmlMtLinkSpec, linkNum);
    OFFSET(MtmlPciInfo, segment);
    OFFSET(MtmlPciInfo, pciSubsystemId);
    OFFSET(MtmlPciInfo, busWidth);
    OFFSET(MtmlPciInfo, pciMaxSpeed);
    OFFSET(MtmlPciInfo, rsvd);
    OFFSET(MtmlMtLinkLayout, remoteLinkId);
    OFFSET(MtmlMtLinkLayout, rsvd);
    return -1;
}
/* Fills a property as the compiler packs its bits; the test reads the same bytes through ctypes. */
void fake_property(MtmlDeviceProperty *property, unsigned role, unsigned type, unsigned link) {
    memset(property, 0, sizeof *property);
    property->virtRole = role;
    property->mpcType = type;
    property->mtLinkCap = link;
}

static int is(const char *name) {
    const char *scenario = getenv("FAKE_MTML");
    return scenario && !strcmp(scenario, name);
}
static int count_cards(void) { return is("mpc") ? 3 : 2; }
static int put(char *to, unsigned int length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}
/* Which card a handle means; -1: it is of another kind. */
static int of_device(const char *handle) {
    for (int at = 0; at < 3; at++) if (handle == &cards[at].device) return at;
    return -1;
}
static int of_gpu(const char *handle) {
    for (int at = 0; at < 3; at++) if (handle == &cards[at].gpu) return at;
    return -1;
}
static int of_memory(const char *handle) {
    for (int at = 0; at < 3; at++) if (handle == &cards[at].memory) return at;
    return -1;
}

int mtmlLibraryInit(char **handle) {
    note("mtmlLibraryInit");
    if (is("not_loaded")) return NOT_LOADED;
    *handle = &library;
    return SUCCESS;
}
int mtmlLibraryShutDown(char *handle) {
    note("mtmlLibraryShutDown");
    return handle == &library ? SUCCESS : INVALID;
}
int mtmlLibraryGetVersion(const char *handle, char *text, unsigned int length) {
    return handle == &library ? put(text, length, is("version9") ? "9.0.0" : "2.2.0") : INVALID;
}
int mtmlLibraryInitSystem(const char *handle, char **system) {
    *system = &sys;
    return handle == &library ? SUCCESS : INVALID;
}
int mtmlSystemGetDriverVersion(const char *system, char *text, unsigned int length) {
    return system == &sys ? put(text, length, "3.3.5-server") : INVALID;
}
int mtmlLibraryCountDevice(const char *handle, unsigned int *count) {
    *count = count_cards();
    return handle == &library ? SUCCESS : INVALID;
}
int mtmlLibraryInitDeviceByIndex(const char *handle, unsigned int index, char **device) {
    note("mtmlLibraryInitDeviceByIndex");
    if (handle != &library || index >= (unsigned)count_cards()) return INVALID;
    if (is("half") && index == 1) return DRIVER_FAILURE;
    *device = &cards[index].device;
    return SUCCESS;
}
int mtmlDeviceInitGpu(const char *device, char **gpu) {
    note("mtmlDeviceInitGpu");
    int at = of_device(device);
    if (at < 0) return INVALID;
    *gpu = &cards[at].gpu;
    return SUCCESS;
}
int mtmlDeviceInitMemory(const char *device, char **memory) {
    int at = of_device(device);
    if (at < 0) return INVALID;
    *memory = &cards[at].memory;
    return SUCCESS;
}
int mtmlDeviceGetIndex(const char *device, unsigned int *index) {
    int at = of_device(device);
    *index = (unsigned)at;
    return at < 0 ? INVALID : SUCCESS;
}
int mtmlDeviceGetName(const char *device, char *text, unsigned int length) {
    return of_device(device) < 0 ? INVALID : put(text, length, "MTT S5000");
}
int mtmlDeviceGetUUID(const char *device, char *text, unsigned int length) {
    char uuid[48];
    int at = of_device(device);
    snprintf(uuid, sizeof uuid, "7de4d75b-0000-0000-0000-00000000000%d", at);
    return at < 0 ? INVALID : put(text, length, uuid);
}
int mtmlDeviceGetPciInfo(const char *device, MtmlPciInfo *pci) {
    int at = of_device(device);
    if (at < 0) return INVALID;
    memset(pci, 0, sizeof *pci);
    pci->bus = is("mpc") ? 0x18 : at == 0 ? 0x2a : 0x18;
    if (!is("garbled")) snprintf(pci->sbdf, sizeof pci->sbdf, "00000000:%02X:00.0", pci->bus);
    return SUCCESS;
}
int mtmlDeviceGetProperty(const char *device, MtmlDeviceProperty *property) {
    int at = of_device(device);
    fake_property(property, is("vgpu") && at == 1 ? 1 : 0, is("mpc") ? (at == 0 ? 1 : 2) : 0, 1);
    return at < 0 ? INVALID : SUCCESS;
}
int mtmlDeviceGetMpcParentDevice(const char *device, char **parent) {
    *parent = &cards[0].device;
    return of_device(device) < 0 ? INVALID : SUCCESS;
}
int mtmlDeviceGetMpcInstanceIndex(const char *device, unsigned int *index) {
    int at = of_device(device);
    if (at < 1) return INVALID;
    *index = at - 1;
    return SUCCESS;
}
int mtmlDeviceGetGpuPath(const char *device, char *text, unsigned int length) {
    char path[64];
    int at = of_device(device);
    snprintf(path, sizeof path, "/dev/mtgpu.%d", at);
    return at < 0 ? INVALID : put(text, length, path);
}
int mtmlDeviceGetPrimaryPath(const char *device, char *text, unsigned int length) {
    (void)text, (void)length;
    return of_device(device) < 0 ? INVALID : NOT_SUPPORTED;
}
int mtmlDeviceGetRenderPath(const char *device, char *text, unsigned int length) {
    char path[64];
    int at = of_device(device);
    snprintf(path, sizeof path, "/dev/dri/renderD%d", 128 + at);
    return at < 0 ? INVALID : put(text, length, path);
}
int mtmlMemoryGetTotal(const char *memory, unsigned long long *total) {
    *total = 81920ull << 20;
    return of_memory(memory) < 0 ? INVALID : SUCCESS;
}
int mtmlMemoryGetUsed(const char *memory, unsigned long long *used) {
    note("mtmlMemoryGetUsed");
    if (is("lost")) return DRIVER_FAILURE;
    *used = 1428ull << 20;
    return of_memory(memory) < 0 ? INVALID : SUCCESS;
}
int mtmlMemoryGetEccErrorCounter(const char *memory, unsigned type, unsigned counter, unsigned place,
                                 unsigned long long *errors) {
    note("mtmlMemoryGetEccErrorCounter");
    if (is("lost")) return DRIVER_FAILURE;
    *errors = 3;
    return of_memory(memory) < 0 || type != 1 || counter != 0 || place != 1 ? INVALID : SUCCESS;
}
int mtmlGpuGetUtilization(const char *gpu, unsigned int *percent) {
    note("mtmlGpuGetUtilization");
    if (is("lost")) return DRIVER_FAILURE;
    *percent = 75;
    return of_gpu(gpu) < 0 ? INVALID : SUCCESS;
}
int mtmlGpuGetTemperature(const char *gpu, unsigned int *celsius) {
    note("mtmlGpuGetTemperature");
    if (is("lost")) return DRIVER_FAILURE;
    *celsius = 48;
    return of_gpu(gpu) < 0 ? INVALID : SUCCESS;
}
int mtmlDeviceGetPowerUsage(const char *device, unsigned int *milliwatts) {
    note("mtmlDeviceGetPowerUsage");
    int at = of_device(device);
    if (is("lost")) return DRIVER_FAILURE;
    if (at == 1) return NOT_SUPPORTED;
    *milliwatts = 96660;
    return at < 0 ? INVALID : SUCCESS;
}
int mtmlDeviceCountMtLinkLayouts(const char *one, const char *other, unsigned int *count) {
    *count = 2;
    return of_device(one) < 0 || of_device(other) < 0 ? INVALID : is("linkless") || is("unrelated") ? NOT_SUPPORTED : SUCCESS;
}
int mtmlDeviceGetMtLinkSpec(const char *device, MtmlMtLinkSpec *spec) {
    *spec = (MtmlMtLinkSpec){20000, 53, 7, {0}};
    return of_device(device) < 0 ? INVALID : is("unrelated") ? SUCCESS : NOT_SUPPORTED;
}
int mtmlDeviceGetMtLinkRemoteDevice(const char *device, unsigned int link, const char **remote) {
    int at = of_device(device);
    if (at < 0) return INVALID;
    if (link < 5) return 7; /* not found: it leads out of the host */
    *remote = &cards[1 - at].device;
    return SUCCESS;
}
int mtmlDeviceGetMtLinkLayouts(const char *one, const char *other, unsigned int count, MtmlMtLinkLayout *layouts) {
    for (unsigned int at = 0; at < count; at++) layouts[at] = (MtmlMtLinkLayout){5 + at, 9 + at, {0}};
    return of_device(one) < 0 || of_device(other) < 0 || count != 2 ? INVALID : SUCCESS;
}
int mtmlDeviceGetMtLinkState(const char *device, unsigned int link, unsigned int *state) {
    *state = is("wired") ? 0 : link == 6; /* of the two, the second is up */
    return of_device(device) < 0 || link < 5 || link > 6 ? INVALID : SUCCESS;
}
int mtmlDeviceGetTopologyLevel(const char *one, const char *other, unsigned int *level) {
    *level = 4; /* MTML_TOPOLOGY_NODE */
    return of_device(one) < 0 || of_device(other) < 0 ? INVALID : SUCCESS;
}

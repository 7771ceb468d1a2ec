/* A libcndev.so that answers from a scenario named by FAKE_CNDEV and writes each question to the file FAKE_CNDEV_LOG.
 *
 * Proves: our order of calls, that each versioned struct is stamped and offered in an older version when refused, our
 * reading of the structs as laid out here. Does not prove: how a real driver behaves. Signatures and structs are those of
 * cndev.h (driver 6), declared here by hand; `fake_layout` tells their sizes and offsets to the test that pins them.
 * Handles are 100 and up, so that one taken for a card number is refused.
 *
 * Scenarios: mlu590 (two cards, numbered against the order of the bus, linked), mlu370 (four cards without links: two on
 * a board, the third behind the same host bridge, the fourth across), old (driver 5: no handles, no V2 structs, version
 * 5), lost (mlu590 whose second card gives no handle), nameless (no uuid), unplugged (mlu590, the link is down but
 * remembers its peer), sick (mlu590, the first card has a problem), modern (the same, told with incidents), placeless (mlu590, the second card does not tell its
 * address), mute (no metric), no_driver, empty (no card), hang, crash.
 */
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int cndevRet_t;
typedef int32_t cndevDevice_t;
enum { OK = 0, NO_DRIVER = 1, UNSUPPORTED_VERSION = 3, INVALID_DEVICE = 6, NOT_SUPPORTED = 10 };

typedef struct { int32_t version; uint32_t number; } cndevCardInfo_t;
typedef struct { int32_t version; uint8_t uuid[37]; uint64_t ncsUUID64; } cndevUUID_t;
typedef struct {
    int32_t version;
    uint32_t subsystemId, deviceId;
    uint16_t vendor, subsystemVendor;
    uint32_t domain, bus, device, function;
    const char *physicalSlot;
    int32_t slotID;
} cndevPCIeInfo_t;
typedef struct {
    uint32_t subsystemId, deviceId;
    uint16_t vendor, subsystemVendor;
    uint32_t domain, bus, device, function;
    uint16_t moduleId, slotId;
    uint32_t reserved[8];
} cndevPCIeInfoV2_t;
typedef struct {
    int32_t version;
    int64_t physicalMemoryTotal, physicalMemoryUsed, virtualMemoryTotal, virtualMemoryUsed, channelNumber,
        channelMemoryUsed[20];
    uint64_t globalMemory;
} cndevMemoryInfo_t;
typedef struct {
    int64_t physicalMemoryTotal, physicalMemoryUsed, reservedMemory, virtualMemoryTotal, virtualMemoryUsed;
    uint64_t globalMemory, reserved[16];
} cndevMemoryInfoV2_t;
typedef struct {
    int32_t version;
    uint32_t mcuMajorVersion, mcuMinorVersion, mcuBuildVersion, driverMajorVersion, driverMinorVersion,
        driverBuildVersion;
} cndevVersionInfo_t;
typedef struct {
    int32_t version;
    uint64_t oneBitError, multipleOneError, multipleError, multipleMultipleError, correctedError, uncorrectedError,
        totalError, addressForbiddenError;
} cndevECCInfo_t;
typedef struct { int32_t usage, cap, machine, tdp, maxPower, reserved[16]; } cndevDevicePowerInfo_t;
typedef struct {
    int32_t version, board, cluster[20], memoryDie[8], chip, airInlet, airOutlet, memory, videoInput, cpu, isp;
} cndevTemperatureInfo_t;
typedef struct { int32_t version, averageCoreUtilization, coreUtilization[80]; } cndevUtilizationInfo_t;
typedef struct { int32_t version, health, deviceState, driverState; } cndevCardHealthState_t;
typedef struct { char msg[512]; uint32_t device_id, bdf, code, category, severity; } cndevDiagErrorDetail_t;
typedef struct { int32_t system, health; cndevDiagErrorDetail_t error; } cndevIncidentInfo_t;
typedef struct {
    int32_t health, deviceState, driverState, overallHealth;
    uint32_t incident_count;
    cndevIncidentInfo_t incidents[64];
    uint32_t reserved[8];
} cndevCardHealthStateV2_t;
typedef struct { int32_t version, isActive, serdesState, cableState; } cndevMLULinkStatus_t;
typedef struct { int32_t macState, serdesState, presenceState; uint32_t serdesProgress, reserved[7]; }
    cndevMLULinkStatusV2_t;
typedef struct {
    int32_t version;
    uint64_t mcSn, baSn;
    uint32_t slotId, portId;
    uint8_t devIp[16], uuid[37];
    uint32_t devIpVersion, isIpValid;
    int32_t connectType;
    uint64_t ncsUUID64;
    uint8_t mac_addr[6];
    char port_name[256];
} cndevMLULinkRemoteInfo_t;
typedef struct { int32_t version, relation; } cndevTopologyRelationship_t;

#define SIZE(s) {#s, sizeof(s)}
#define AT(s, f) {#s "." #f, offsetof(s, f)}
static const struct { const char *what; size_t n; } layouts[] = {
    SIZE(cndevCardInfo_t), AT(cndevCardInfo_t, number),
    SIZE(cndevUUID_t), AT(cndevUUID_t, uuid), AT(cndevUUID_t, ncsUUID64),
    SIZE(cndevPCIeInfo_t), AT(cndevPCIeInfo_t, vendor), AT(cndevPCIeInfo_t, domain), AT(cndevPCIeInfo_t, function),
    AT(cndevPCIeInfo_t, physicalSlot), AT(cndevPCIeInfo_t, slotID),
    SIZE(cndevPCIeInfoV2_t), AT(cndevPCIeInfoV2_t, domain), AT(cndevPCIeInfoV2_t, function),
    AT(cndevPCIeInfoV2_t, reserved),
    SIZE(cndevMemoryInfo_t), AT(cndevMemoryInfo_t, physicalMemoryTotal), AT(cndevMemoryInfo_t, physicalMemoryUsed),
    AT(cndevMemoryInfo_t, globalMemory),
    SIZE(cndevMemoryInfoV2_t), AT(cndevMemoryInfoV2_t, physicalMemoryUsed), AT(cndevMemoryInfoV2_t, reserved),
    SIZE(cndevVersionInfo_t), AT(cndevVersionInfo_t, driverMajorVersion), AT(cndevVersionInfo_t, driverBuildVersion),
    SIZE(cndevECCInfo_t), AT(cndevECCInfo_t, oneBitError), AT(cndevECCInfo_t, uncorrectedError),
    SIZE(cndevDevicePowerInfo_t), AT(cndevDevicePowerInfo_t, cap), AT(cndevDevicePowerInfo_t, reserved),
    SIZE(cndevTemperatureInfo_t), AT(cndevTemperatureInfo_t, board), AT(cndevTemperatureInfo_t, chip),
    AT(cndevTemperatureInfo_t, isp),
    SIZE(cndevUtilizationInfo_t), AT(cndevUtilizationInfo_t, averageCoreUtilization),
    SIZE(cndevCardHealthState_t), AT(cndevCardHealthState_t, health), AT(cndevCardHealthState_t, driverState),
    SIZE(cndevCardHealthStateV2_t), AT(cndevCardHealthStateV2_t, driverState),
    AT(cndevCardHealthStateV2_t, incident_count), AT(cndevCardHealthStateV2_t, incidents),
    AT(cndevCardHealthStateV2_t, reserved), SIZE(cndevIncidentInfo_t), {"cndevIncidentInfo_t.msg",
    offsetof(cndevIncidentInfo_t, error)}, {"cndevIncidentInfo_t.code", offsetof(cndevIncidentInfo_t, error.code)},
    SIZE(cndevMLULinkStatus_t), AT(cndevMLULinkStatus_t, isActive),
    SIZE(cndevMLULinkStatusV2_t), AT(cndevMLULinkStatusV2_t, macState),
    SIZE(cndevMLULinkRemoteInfo_t), AT(cndevMLULinkRemoteInfo_t, mcSn), AT(cndevMLULinkRemoteInfo_t, uuid),
    AT(cndevMLULinkRemoteInfo_t, ncsUUID64), AT(cndevMLULinkRemoteInfo_t, port_name),
    SIZE(cndevTopologyRelationship_t), AT(cndevTopologyRelationship_t, relation),
    {0, 0},
};
const char *fake_layout(unsigned int index, size_t *n) { *n = layouts[index].n; return layouts[index].what; }

static int is(const char *name) {
    const char *scenario = getenv("FAKE_CNDEV");
    return scenario && !strcmp(scenario, name);
}
static void note(const char *function) {
    const char *path = getenv("FAKE_CNDEV_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%s\n", function); fclose(file); }
}
static int count(void) { return is("empty") ? 0 : is("mlu370") ? 4 : 2; }
static int number_of(cndevDevice_t device) { return is("old") ? device : device - 100; }

/* What every question begins with. A driver 5 knows version 5 alone; nobody knows a struct that was not stamped. */
#define BEGIN(device)                                                                                                  \
    note(__func__);                                                                                                    \
    if (number_of(device) < 0 || number_of(device) >= count()) return INVALID_DEVICE
#define CHECK_VERSION(s)                                                                                               \
    if ((s)->version != (is("old") ? 5 : 6)) return UNSUPPORTED_VERSION
#define METRIC if (is("mute")) return NOT_SUPPORTED
#define V2 if (is("old")) return NOT_SUPPORTED

cndevRet_t cndevInit(int reserved) {
    note(__func__);
    if (reserved != 0) return 5;
    if (is("no_driver")) return NO_DRIVER;
    if (is("crash")) raise(SIGSEGV);
    if (is("hang")) for (;;) pause();
    return OK;
}
const char *cndevGetErrorString(cndevRet_t code) { return code == 8 ? "malloc failed" : "error of the fake"; }
cndevRet_t cndevGetDeviceCount(cndevCardInfo_t *info) {
    note(__func__);
    CHECK_VERSION(info);
    info->number = count();
    return OK;
}
#ifndef FAKE_WITHOUT_HANDLES
cndevRet_t cndevGetDeviceHandleByIndex(int index, cndevDevice_t *device) {
    note(__func__);
    if (is("lost") && index == 1) return 18;
    *device = index + (is("old") ? 0 : 100);
    return OK;
}
#endif
static void uuid_of(int number, uint8_t *text) {
    memcpy(text, "d4e5f607-1829-3a4b-0000-00000000000x", 37);
    text[35] = '0' + number;
}
cndevRet_t cndevGetUUID(cndevUUID_t *info, cndevDevice_t device) {
    BEGIN(device);
    CHECK_VERSION(info);
    memset(info->uuid, 0, sizeof info->uuid);
    if (!is("nameless")) uuid_of(number_of(device), info->uuid);
    return OK;
}
static unsigned bus_of(cndevDevice_t device) { return 0x39 + (is("mlu370") ? 4 * number_of(device) : 4 * (1 - number_of(device))); }
cndevRet_t cndevGetPCIeInfoV2(cndevPCIeInfoV2_t *info, cndevDevice_t device) {
    BEGIN(device);
    V2;
    if (is("placeless") && number_of(device) == 1) return 18;
    memset(info, 0, sizeof *info);
    info->bus = bus_of(device);
    return OK;
}
cndevRet_t cndevGetPCIeInfo(cndevPCIeInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    CHECK_VERSION(info);
    if (is("placeless") && number_of(device) == 1) return 18;
    info->domain = info->device = info->function = 0;
    info->bus = bus_of(device);
    return OK;
}
const char *cndevGetCardNameStringByDevId(cndevDevice_t device) {
    note(__func__);
    (void)device;
    return is("mlu370") || is("old") ? "MLU370-X8" : "MLU590-M9";
}
cndevRet_t cndevGetMemoryUsageV2(cndevMemoryInfoV2_t *info, cndevDevice_t device) {
    BEGIN(device);
    V2;
    memset(info, 0, sizeof *info);
    info->physicalMemoryTotal = 98304;
    info->physicalMemoryUsed = 33654;
    return OK;
}
cndevRet_t cndevGetMemoryUsage(cndevMemoryInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    CHECK_VERSION(info);
    info->physicalMemoryTotal = 23374;
    info->physicalMemoryUsed = 374;
    return OK;
}
cndevRet_t cndevGetVersionInfo(cndevVersionInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    CHECK_VERSION(info);
    info->mcuMajorVersion = 1;
    info->driverMajorVersion = is("old") ? 5 : 6;
    info->driverMinorVersion = is("old") ? 10 : 2;
    info->driverBuildVersion = is("old") ? 22 : 29;
    return OK;
}
cndevRet_t cndevGetDeviceUtilizationInfo(cndevUtilizationInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    METRIC;
    CHECK_VERSION(info);
    info->averageCoreUtilization = 37;
    return OK;
}
cndevRet_t cndevGetTemperatureInfo(cndevTemperatureInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    METRIC;
    CHECK_VERSION(info);
    info->board = 45;
    info->chip = is("old") ? 0 : 52; /* a sensor that is not there */
    return OK;
}
cndevRet_t cndevGetDevicePowerInfo(cndevDevicePowerInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    METRIC;
    memset(info, 0, sizeof *info);
    info->usage = 110;
    info->cap = 550;
    return OK;
}
cndevRet_t cndevGetECCInfo(cndevECCInfo_t *info, cndevDevice_t device) {
    BEGIN(device);
    METRIC;
    CHECK_VERSION(info);
    info->correctedError = 9;
    info->uncorrectedError = 1;
    return OK;
}
cndevRet_t cndevGetCardHealthStateV2(cndevCardHealthStateV2_t *info, cndevDevice_t device) {
    BEGIN(device);
    if (!is("modern")) return NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    info->health = info->deviceState = number_of(device) != 0;
    info->driverState = 4;
    info->overallHealth = info->health ? 0 : 20;
    info->incident_count = info->health ? 0 : 2;
    for (int at = 0; at < 2 && !info->health; at++) {
        info->incidents[at].system = at ? 0x1 : 0x80;
        info->incidents[at].health = 20;
        strcpy(info->incidents[at].error.msg, at ? "PCIe width is too low" : "An Xid error detected");
    }
    return OK;
}
cndevRet_t cndevGetCardHealthState(cndevCardHealthState_t *info, cndevDevice_t device) {
    BEGIN(device);
    METRIC;
    if (is("modern")) return NOT_SUPPORTED;
    CHECK_VERSION(info);
    info->health = info->deviceState = !(is("sick") && number_of(device) == 0);
    info->driverState = info->health ? 4 : 7;
    return OK;
}
int cndevGetMLULinkPortNumber(cndevDevice_t device) { note(__func__); (void)device; return is("mlu370") ? 0 : 2; }
cndevRet_t cndevGetMLULinkStatusV2(cndevMLULinkStatusV2_t *info, cndevDevice_t device, int port) {
    BEGIN(device);
    V2;
    memset(info, 0, sizeof *info);
    info->macState = port == 1 && !is("unplugged") ? 3 : 0; /* the first port is down */
    return OK;
}
cndevRet_t cndevGetMLULinkStatus(cndevMLULinkStatus_t *info, cndevDevice_t device, int port) {
    BEGIN(device);
    CHECK_VERSION(info);
    info->isActive = port == 1;
    return OK;
}
cndevRet_t cndevGetMLULinkRemoteInfo(cndevMLULinkRemoteInfo_t *info, cndevDevice_t device, int port) {
    BEGIN(device);
    CHECK_VERSION(info);
    if (port != 1) return 11;
    uuid_of(1 - number_of(device), info->uuid);
    return OK;
}
cndevRet_t cndevTopologyGetRelationship(cndevTopologyRelationship_t *info, cndevDevice_t one, cndevDevice_t other) {
    BEGIN(one);
    CHECK_VERSION(info);
    int far = number_of(one) > number_of(other) ? number_of(one) : number_of(other);
    info->relation = far == 1 ? 1 : far == 2 ? 4 : 6;
    return OK;
}

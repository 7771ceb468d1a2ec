/* A libefml.so that answers from a scenario named by FAKE_EFML, with the structs of efml.h (2019 and 2024-2025).
 *
 * Proves: our order of calls, our mapping of its errors, that ctypes reads the structs as a C compiler lays them out, and
 * that a library of another version or layout is refused. Does not prove: that a real library answers so. The structs are
 * declared here by hand from the public header; fake_layout() tells their sizes and offsets to the test that pins them.
 *
 * Scenarios: s60 (two S60, listed against the bus), linked (two T20 with a link), unplugged (two T20 whose ports remember it), sick (a card that is not healthy),
 * drift (a struct that begins otherwise), half (the second of two cards cannot be read), version3, not_loaded, dual
 * (two dies that share a UUID).
 * The calls of the newer header that 1.x lacks (EfmlGetDevTempV2, EfmlGetGcuLare...) are left out on purpose.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char name[128];
    uint32_t vendor_id, device_id, domain_id, bus_id, dev_id, func_id, logic_id;
} efmlDeviceInfo_t;
typedef struct { float pwr_capability, cur_pwr_consumption; } efmlDevPowerInfo_t;
typedef struct { uint64_t mem_total_size; uint32_t mem_used; } efmlDevMemInfo_t;
typedef struct { float cur_dev_temp, cur_hbm0_temp, cur_hbm1_temp; } efmlDevThermalInfo_t;
typedef struct { bool enabled, pending, pdblack; uint32_t ecnt_sb, ecnt_db; } efmlEccStatus_t;
typedef enum { EFML_ESL_PORT_RC = 0, EFML_ESL_PORT_EP = 1 } efmlEslPortType_t;
typedef struct {
    uint32_t connected;
    char uuid[16];
    uint32_t vendor_id, device_id, domain_id, bus_id, dev_id, func_id, port_id;
    efmlEslPortType_t port_type;
    uint32_t remote_card_id;
    char remote_uuid[16];
    uint32_t remote_vendor_id, remote_device_id, remote_domain_id, remote_bus_id, remote_dev_id, remote_func_id;
    uint32_t remote_port_id;
    efmlEslPortType_t remote_port_type;
} efmlEslPortInfo_t;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 6, FAIL = 254 };

static struct { const char *name; int times; } called[32];

/* Counts a call, so that a test can ask which were made. */
static void note(const char *name) {
    for (int at = 0; at < 32; at++) {
        if (!called[at].name) called[at].name = name;
        if (!strcmp(called[at].name, name)) {
            called[at].times++;
            return;
        }
    }
}
int fake_calls(const char *name) {
    for (int at = 0; at < 32 && called[at].name; at++)
        if (!strcmp(called[at].name, name)) return called[at].times;
    return 0;
}

#define SIZE(type) if (!strcmp(what, #type)) return (int)sizeof(type)
#define OFFSET(type, field) if (!strcmp(what, #type "." #field)) return (int)offsetof(type, field)
int fake_layout(const char *what) {
    SIZE(efmlDeviceInfo_t);
    SIZE(efmlDevPowerInfo_t);
    SIZE(efmlDevMemInfo_t);
    SIZE(efmlDevThermalInfo_t);
    SIZE(efmlEccStatus_t);
    SIZE(efmlEslPortInfo_t);
    OFFSET(efmlDeviceInfo_t, vendor_id);
    OFFSET(efmlDeviceInfo_t, domain_id);
    OFFSET(efmlDeviceInfo_t, func_id);
    OFFSET(efmlDevPowerInfo_t, cur_pwr_consumption);
    OFFSET(efmlDevMemInfo_t, mem_used);
    OFFSET(efmlEccStatus_t, ecnt_db);
    OFFSET(efmlEslPortInfo_t, uuid);
    OFFSET(efmlEslPortInfo_t, port_type);
    OFFSET(efmlEslPortInfo_t, remote_uuid);
    OFFSET(efmlEslPortInfo_t, remote_domain_id);
    OFFSET(efmlEslPortInfo_t, remote_func_id);
    OFFSET(efmlEslPortInfo_t, remote_port_type);
    return -1;
}

static int is(const char *name) {
    const char *scenario = getenv("FAKE_EFML");
    return scenario && !strcmp(scenario, name);
}
/* Device 0 is the later one on the bus. */
static uint32_t bus_of(uint32_t index) { return index == 0 ? 0x3d : 0x2d; }

int EfmlInit(bool no_driver) {
    note("EfmlInit");
    return no_driver ? FAIL : is("not_loaded") ? DRIVER_NOT_LOADED : SUCCESS;
}
void EfmlShutdown(void) { note("EfmlShutdown"); }
int EfmlGetLibVer(char *text) {
    strcpy(text, is("version3") ? "3.0.1" : "1.4.4.501");
    return SUCCESS;
}
int EfmlGetDriverVer(char *text) {
    strcpy(text, "1.4.4.501");
    return SUCCESS;
}
int EfmlGetDevCount(uint32_t *count) {
    *count = is("sick") ? 1 : 2;
    return SUCCESS;
}
int EfmlGetDevInfo(uint32_t index, efmlDeviceInfo_t *info) {
    if (is("half") && index == 1) return FAIL;
    memset(info, 0, sizeof *info);
    if (is("drift")) { /* as a later release might begin it */
        info->vendor_id = 0;
        info->device_id = 0x1e36;
        return SUCCESS;
    }
    strcpy(info->name, is("linked") || is("unplugged") ? "Enflame T20" : "Enflame S60");
    info->vendor_id = 0x1e36;
    info->device_id = 0xc035;
    info->bus_id = bus_of(index);
    info->logic_id = index;
    return SUCCESS;
}
int EfmlGetDevUuid(uint32_t index, char *text) {
    sprintf(text, "TR6Y4601030%u", is("dual") ? 7 : index);
    return SUCCESS;
}
int EfmlGetNumaNode(uint32_t index, int *node) {
    *node = index == 0 ? 1 : -1;
    return SUCCESS;
}
int EfmlGetDevHealth(uint32_t index, bool *health) {
    (void)index;
    *health = !is("sick");
    return SUCCESS;
}
int EfmlGetDevMem(uint32_t index, efmlDevMemInfo_t *memory) {
    note("EfmlGetDevMem");
    memory->mem_total_size = 42976ull << 20; /* bytes */
    memory->mem_used = index == 0 ? 1129 : 20000; /* MiB */
    return SUCCESS;
}
int EfmlGetDevPwr(uint32_t index, efmlDevPowerInfo_t *power) {
    note("EfmlGetDevPwr");
    if (index == 1) return NOT_SUPPORTED;
    power->pwr_capability = 300;
    power->cur_pwr_consumption = 104.5f;
    return SUCCESS;
}
int EfmlGetDevDtuUsage(uint32_t index, float *percent) {
    note("EfmlGetDevDtuUsage");
    *percent = index == 0 ? 0 : 37.5f;
    return SUCCESS;
}
int EfmlGetDevTemp(uint32_t index, efmlDevThermalInfo_t *thermal) {
    note("EfmlGetDevTemp");
    thermal->cur_dev_temp = 45.0f + index;
    thermal->cur_hbm0_temp = thermal->cur_hbm1_temp = 99;
    return SUCCESS;
}
int EfmlGetDevEccStatus(uint32_t index, efmlEccStatus_t *status) {
    note("EfmlGetDevEccStatus");
    memset(status, 0, sizeof *status);
    status->enabled = index == 0;
    status->ecnt_sb = 5;
    status->ecnt_db = 2;
    return SUCCESS;
}
int EfmlGetEslPortNum(uint32_t index, uint32_t *count) {
    (void)index;
    if (!is("linked") && !is("unplugged")) return NOT_SUPPORTED;
    *count = 2;
    return SUCCESS;
}
int EfmlGetEslPortInfo(uint32_t index, uint32_t port, efmlEslPortInfo_t *info) {
    memset(info, 0, sizeof *info);
    info->connected = is("linked") && port == 1;
    info->remote_bus_id = bus_of(1 - index);
    return SUCCESS;
}

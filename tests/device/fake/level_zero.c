/* A fake libze_loader.so.1: Level Zero's core API and Sysman, for our ctypes binding.
 *
 * The structs are typed from the public ze_api.h and zes_api.h (Level Zero 1.15, MIT); fake_layout() gives their sizes
 * and offsets, with which a test pins our own. Sysman lists the cards against the core API's order, as it may.
 * Proves: our call order, the `stype` we pass, struct reading, the join by PCI address. Cannot prove: a driver.
 *
 * FAKE_ZE: flex   a Flex 170 and the processor's graphics
 *          max    two Max 1550 with two tiles each; an Xe Link from tile to tile
 *          max_down the same with the links down      max_old  the same without Sysman
 *          max_blind  the same with nothing told by tile      max_wedged  the same, in need of a reset
 *          max_early  the same with a driver that lists cards by default
 *          none   no driver        denied  no permission
 *          old    no Sysman init   two_drivers  the same card under a second driver
 *          lost   the card is lost wedged  it needs a reset      bad_memory  it should be replaced
 *          errors uncorrectable errors
 *
 * ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE lists cards with the memory of all tiles, anything else tiles.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, LOST = 0x70000001, DENIED = 0x70010000, UNINITIALIZED = 0x78000001, UNSUPPORTED = 0x78000003 };

typedef struct { uint32_t domain, bus, device, function; } address_t;
typedef struct { uint8_t id[16]; } uuid_t_;
typedef struct {
  uint32_t stype; void *pNext; uint32_t type, vendorId, deviceId, flags, subdeviceId, coreClockRate;
  uint64_t maxMemAllocSize;
  uint32_t maxHardwareContexts, maxCommandQueuePriority, numThreadsPerEU, physicalEUSimdWidth, numEUsPerSubslice,
      numSubslicesPerSlice, numSlices;
  uint64_t timerResolution; uint32_t timestampValidBits, kernelTimestampValidBits; uuid_t_ uuid; char name[256];
} ze_device_properties_t;
typedef struct {
  uint32_t stype; void *pNext; uint32_t flags, maxClockRate, maxBusWidth; uint64_t totalSize; char name[256];
} ze_device_memory_properties_t;
typedef struct { int32_t genVersion, width; int64_t maxBandwidth; } speed_t_;
typedef struct { uint32_t stype; void *pNext; address_t address; speed_t_ maxSpeed; } ze_pci_ext_properties_t;
typedef struct {
  uint32_t stype; void *pNext; address_t address; speed_t_ maxSpeed;
  uint8_t haveBandwidthCounters, havePacketCounters, haveReplayCounters;
} zes_pci_properties_t;
typedef struct {
  uint32_t stype; void *pNext; ze_device_properties_t core; uint32_t numSubdevices;
  char serialNumber[64], boardNumber[64], brandName[64], modelName[64], vendorName[64], driverVersion[64];
} zes_device_properties_t;
typedef struct { uint32_t stype; const void *pNext; uint32_t reset, repaired; } zes_device_state_t;
typedef struct { uint32_t stype; const void *pNext; uint32_t health; uint64_t free, size; } zes_mem_state_t;
typedef struct { uint32_t stype; void *pNext; uint32_t type; uint8_t onSubdevice; uint32_t subdeviceId; }
    zes_engine_properties_t;
typedef zes_engine_properties_t zes_ras_properties_t;
typedef struct {
  uint32_t stype; void *pNext; uint32_t type; uint8_t onSubdevice; uint32_t subdeviceId; double maxTemperature;
  uint8_t isCriticalTempSupported, isThreshold1Supported, isThreshold2Supported;
} zes_temp_properties_t;
typedef struct {
  uint32_t stype; void *pNext; uint32_t type; uint8_t onSubdevice; uint32_t subdeviceId, location; uint64_t physicalSize;
  int32_t busWidth, numChannels;
} zes_mem_properties_t;
typedef struct { uint64_t activeTime, timestamp; } zes_engine_stats_t;
typedef struct { uint32_t fabricId, attachId; uint8_t portNumber; } zes_fabric_port_id_t;
typedef struct { int64_t bitRate; int32_t width; } zes_fabric_port_speed_t;
typedef struct {
  uint32_t stype; void *pNext; char model[256]; uint8_t onSubdevice; uint32_t subdeviceId;
  zes_fabric_port_id_t portId; zes_fabric_port_speed_t maxRxSpeed, maxTxSpeed;
} zes_fabric_port_properties_t;
typedef struct {
  uint32_t stype; const void *pNext; uint32_t status, qualityIssues, failureReasons;
  zes_fabric_port_id_t remotePortId; zes_fabric_port_speed_t rxSpeed, txSpeed;
} zes_fabric_port_state_t;
typedef struct { uint32_t stype; const void *pNext; uint64_t category[7]; } zes_ras_state_t;

#define SIZE(type) {#type, sizeof(type)}
#define AT(type, field) {#type "." #field, offsetof(type, field)}
static const struct { const char *name; size_t value; } layout[] = {
    SIZE(ze_device_properties_t), AT(ze_device_properties_t, flags), AT(ze_device_properties_t, maxMemAllocSize),
    AT(ze_device_properties_t, timerResolution), AT(ze_device_properties_t, uuid), AT(ze_device_properties_t, name),
    SIZE(ze_device_memory_properties_t), AT(ze_device_memory_properties_t, totalSize),
    AT(ze_device_memory_properties_t, name), AT(ze_pci_ext_properties_t, address), SIZE(zes_pci_properties_t),
    AT(zes_pci_properties_t, address), SIZE(zes_device_properties_t), AT(zes_device_properties_t, core),
    AT(zes_device_properties_t, numSubdevices), AT(zes_device_properties_t, driverVersion), SIZE(zes_device_state_t),
    AT(zes_device_state_t, reset), SIZE(zes_mem_state_t), AT(zes_mem_state_t, health), AT(zes_mem_state_t, free),
    AT(zes_mem_state_t, size), AT(zes_engine_properties_t, type), AT(zes_engine_properties_t, onSubdevice),
    AT(zes_engine_properties_t, subdeviceId), SIZE(zes_temp_properties_t), SIZE(zes_engine_stats_t),
    SIZE(zes_mem_properties_t), AT(zes_mem_properties_t, type), AT(zes_mem_properties_t, onSubdevice),
    AT(zes_mem_properties_t, subdeviceId),
    SIZE(zes_ras_state_t), AT(zes_ras_state_t, category), SIZE(zes_fabric_port_id_t),
    AT(zes_fabric_port_id_t, portNumber), SIZE(zes_fabric_port_properties_t), AT(zes_fabric_port_properties_t, portId),
    AT(zes_fabric_port_properties_t, maxTxSpeed), SIZE(zes_fabric_port_state_t), AT(zes_fabric_port_state_t, status),
    AT(zes_fabric_port_state_t, remotePortId), AT(zes_fabric_port_state_t, txSpeed),
};

long fake_layout(const char *name) {
  for (size_t i = 0; i < sizeof layout / sizeof *layout; i++)
    if (strcmp(layout[i].name, name) == 0) return (long)layout[i].value;
  return -1;
}

static int is(const char *scenario) {
  const char *now = getenv("FAKE_ZE");
  return now != NULL && strcmp(now, scenario) == 0;
}

typedef struct { const char *name; uint32_t id, bus, slot, flags; uint64_t bytes; uint32_t tiles; } card_t;
static const card_t flex[] = {
    {"Intel(R) Data Center GPU Flex 170", 0x56c0, 0x4d, 0, 4, 14193102848ULL, 1},
    {"Intel(R) UHD Graphics 770", 0x4680, 0x00, 2, 1, 50465865728ULL, 1},
};
static const card_t max[] = {
    {"Intel(R) Data Center GPU Max 1550", 0x0bd5, 0x29, 0, 4, 68719476736ULL, 2},
    {"Intel(R) Data Center GPU Max 1550", 0x0bd5, 0x9a, 0, 4, 68719476736ULL, 2},
};
static const card_t *cards(void) {
  const char *now = getenv("FAKE_ZE");
  return now != NULL && strncmp(now, "max", 3) == 0 ? max : flex;
}
static int is_composite(void) {
  const char *hierarchy = getenv("ZE_FLAT_DEVICE_HIERARCHY");
  return hierarchy == NULL ? is("max_early") : strcmp(hierarchy, "COMPOSITE") == 0;
}
enum { N_CARDS = 2 };

/* Handles: which kind, which card, which tile. */
static void *handle(uintptr_t kind, uintptr_t card, uintptr_t tile) {
  return (void *)(kind << 16 | (card + 1) << 8 | (tile + 1));
}
static uint32_t card_of(const void *h) { return (uint32_t)((uintptr_t)h >> 8 & 0xff) - 1; }
static uint32_t tile_of(const void *h) { return (uint32_t)((uintptr_t)h & 0xff) - 1; }
static int is_kind(const void *h, uintptr_t kind) { return (uintptr_t)h >> 16 == kind; }
enum { DRIVER = 1, DEVICE, SYSMAN, MODULE, ENGINE, SENSOR, RAS, POWER, PORT };

static int put(uint32_t *count, void **out, void *const *found, uint32_t n) {
  if (out != NULL) memcpy(out, found, sizeof *found * (n < *count ? n : *count));
  *count = n;
  return OK;
}

int zeInit(uint32_t flags) {
  if (flags != 1) return UNSUPPORTED;
  if (getenv("ZE_AFFINITY_MASK") != NULL) return 0x70020000; /* the mask must be gone before */
  return is("none") ? UNINITIALIZED : is("denied") ? DENIED : OK;
}

int zeDriverGet(uint32_t *count, void **out) {
  void *found[] = {handle(DRIVER, 0, 0), handle(DRIVER, 1, 0)};
  return put(count, out, found, is("two_drivers") ? 2 : 1);
}

int zeDeviceGet(void *driver, uint32_t *count, void **out) {
  void *found[4];
  uint32_t n = 0;
  if (!is_kind(driver, DRIVER)) return UNSUPPORTED;
  for (uint32_t i = 0; i < N_CARDS; i++)
    for (uint32_t tile = 0; tile < (is_composite() ? 1 : cards()[i].tiles); tile++) found[n++] = handle(DEVICE, i, tile);
  return put(count, out, found, n);
}

static void describe(ze_device_properties_t *p, uint32_t i, uint32_t tile) {
  p->type = 1;
  p->vendorId = 0x8086;
  p->deviceId = cards()[i].id;
  p->flags = cards()[i].flags;
  for (int k = 0; k < 6; k++) p->uuid.id[k] = (uint8_t)(0x10 * (i + 1) + k);
  p->uuid.id[15] = (uint8_t)tile; /* a tile has a UUID of its own, which ends with 1 for the first */
  snprintf(p->name, sizeof p->name, "%s", cards()[i].name);
}

int zeDeviceGetProperties(void *device, ze_device_properties_t *p) {
  if (!is_kind(device, DEVICE) || p->stype != 0x3 || p->pNext != NULL) return UNSUPPORTED;
  describe(p, card_of(device), cards()[card_of(device)].tiles < 2 || is_composite() ? 0 : tile_of(device) + 1);
  return OK;
}

static address_t where(uint32_t i) { return (address_t){0, cards()[i].bus, cards()[i].slot, 0}; }

int zeDevicePciGetPropertiesExt(void *device, ze_pci_ext_properties_t *p) {
  if (!is_kind(device, DEVICE) || p->stype != 0x10008) return UNSUPPORTED;
  p->address = where(card_of(device));
  return OK;
}

int zeDeviceGetMemoryProperties(void *device, uint32_t *count, ze_device_memory_properties_t *p) {
  if (p != NULL) {
    if (*count < 1 || p->stype != 0x7) return UNSUPPORTED;
    p->totalSize = cards()[card_of(device)].bytes * (is_composite() ? cards()[card_of(device)].tiles : 1);
  }
  *count = 1;
  return OK;
}

int zesInit(uint32_t flags) { return flags != 0 || is("old") || is("max_old") ? UNSUPPORTED : is("none") ? UNINITIALIZED : OK; }

int zesDriverGet(uint32_t *count, void **out) {
  void *found[] = {handle(DRIVER, 0, 0)};
  return put(count, out, found, 1);
}

int zesDeviceGet(void *driver, uint32_t *count, void **out) {
  void *found[N_CARDS];
  if (!is_kind(driver, DRIVER)) return UNSUPPORTED;
  for (uint32_t i = 0; i < N_CARDS; i++) found[i] = handle(SYSMAN, N_CARDS - 1 - i, 0);
  return put(count, out, found, N_CARDS);
}

int zesDeviceGetProperties(void *device, zes_device_properties_t *p) {
  if (!is_kind(device, SYSMAN) || p->stype != 0x1) return UNSUPPORTED;
  describe(&p->core, card_of(device), 0);
  p->numSubdevices = cards()[card_of(device)].tiles < 2 ? 0 : cards()[card_of(device)].tiles;
  snprintf(p->driverVersion, sizeof p->driverVersion, "%s", "I915_25.2.23_PSB_250224.30");
  return OK;
}

int zesDevicePciGetProperties(void *device, zes_pci_properties_t *p) {
  if (!is_kind(device, SYSMAN) || p->stype != 0x2) return UNSUPPORTED;
  p->address = where(card_of(device));
  return OK;
}

int zesDeviceGetState(void *device, zes_device_state_t *state) {
  if (!is_kind(device, SYSMAN) || state->stype != 0x15) return UNSUPPORTED;
  if (is("lost")) return LOST;
  state->reset = is("wedged") || is("max_wedged") ? 1 : 0;
  return OK;
}

static int list(void *device, uintptr_t kind, uint32_t *count, void **out) {
  void *found[2];
  uint32_t tiles;
  if (!is_kind(device, SYSMAN)) return UNSUPPORTED;
  tiles = cards()[card_of(device)].tiles;
  for (uint32_t tile = 0; tile < tiles; tile++) found[tile] = handle(kind, card_of(device), tile);
  return put(count, out, found, tiles);
}

int zesDeviceEnumMemoryModules(void *device, uint32_t *count, void **out) { return list(device, MODULE, count, out); }

static int is_on_tile(const void *h) { return cards()[card_of(h)].tiles > 1 && !is("max_blind"); }

int zesMemoryGetProperties(void *module, zes_mem_properties_t *p) {
  if (!is_kind(module, MODULE) || p->stype != 0xb) return UNSUPPORTED;
  p->onSubdevice = is_on_tile(module);
  p->subdeviceId = is_on_tile(module) ? tile_of(module) : 0;
  p->physicalSize = cards()[card_of(module)].bytes; /* writes beyond the fields that we declare */
  p->numChannels = 16;
  return OK;
}

int zesMemoryGetState(void *module, zes_mem_state_t *state) {
  if (!is_kind(module, MODULE) || state->stype != 0x1e) return UNSUPPORTED;
  if (is("lost")) return LOST;
  state->health = is("bad_memory") ? 4 : 1;
  state->size = cards()[card_of(module)].bytes;
  state->free = state->size - ((1ULL + tile_of(module)) << 30);
  return OK;
}

/* One group of compute engines (even) and one of copy engines (odd) per tile: handle 3 copies for tile 1. */
int zesDeviceEnumEngineGroups(void *device, uint32_t *count, void **out) {
  void *found[4];
  uint32_t n;
  if (!is_kind(device, SYSMAN)) return UNSUPPORTED;
  n = 2 * cards()[card_of(device)].tiles;
  for (uint32_t engine = 0; engine < n; engine++) found[engine] = handle(ENGINE, card_of(device), engine);
  return put(count, out, found, n);
}

int zesEngineGetProperties(void *engine, zes_engine_properties_t *p) {
  if (!is_kind(engine, ENGINE) || p->stype != 0x5) return UNSUPPORTED;
  p->type = tile_of(engine) % 2 == 0 ? 1 : 3; /* COMPUTE_ALL, COPY_ALL */
  p->onSubdevice = is_on_tile(engine);
  p->subdeviceId = is_on_tile(engine) ? tile_of(engine) / 2 : 0;
  return OK;
}

int zesEngineGetActivity(void *engine, zes_engine_stats_t *stats) {
  static uint64_t calls[N_CARDS][2];
  uint32_t tile = tile_of(engine) / 2;
  uint64_t n = ++calls[card_of(engine)][tile];
  if (tile_of(engine) % 2 != 0) return UNSUPPORTED; /* nobody may ask for copies */
  *stats = (zes_engine_stats_t){n * (300000 + 400000 * tile), n * 1000000};
  return OK;
}

int zesDeviceGetCardPowerDomain(void *device, void **out) {
  *out = handle(POWER, card_of(device), 0);
  return is_kind(device, SYSMAN) ? OK : UNSUPPORTED;
}

int zesPowerGetEnergyCounter(void *power, zes_engine_stats_t *energy) {
  static uint64_t calls[N_CARDS];
  uint64_t n = ++calls[card_of(power)];
  *energy = (zes_engine_stats_t){n * 87500000, n * 1000000};
  return is_kind(power, POWER) ? OK : UNSUPPORTED;
}

int zesDeviceEnumTemperatureSensors(void *device, uint32_t *count, void **out) {
  return list(device, SENSOR, count, out);
}

int zesTemperatureGetProperties(void *sensor, zes_temp_properties_t *p) {
  if (!is_kind(sensor, SENSOR) || p->stype != 0x14) return UNSUPPORTED;
  p->type = 1;
  p->maxTemperature = 105; /* writes beyond the fields that we declare */
  p->isThreshold2Supported = 1;
  return OK;
}

int zesTemperatureGetState(void *sensor, double *celsius) {
  *celsius = 47 + 5 * tile_of(sensor);
  return is_kind(sensor, SENSOR) ? OK : UNSUPPORTED;
}

int zesDeviceEnumRasErrorSets(void *device, uint32_t *count, void **out) {
  void *found[] = {handle(RAS, card_of(device), 0), handle(RAS, card_of(device), 1)};
  return put(count, out, found, 2);
}

int zesRasGetProperties(void *errors, zes_ras_properties_t *p) {
  if (!is_kind(errors, RAS) || p->stype != 0xf) return UNSUPPORTED;
  p->type = tile_of(errors); /* correctable, uncorrectable */
  return OK;
}

int zesRasGetState(void *errors, uint8_t clear, zes_ras_state_t *state) {
  if (!is_kind(errors, RAS) || clear != 0 || state->stype != 0x22) return UNSUPPORTED;
  for (int kind = 0; kind < 7; kind++) state->category[kind] = 100; /* resets, programming errors, ... */
  state->category[3] = state->category[4] = 0;
  state->category[5] = is("errors") ? 3 : 0;
  return OK;
}

/* A port per tile of the cards that have several. An end of the fabric is a card, a part of it a tile. */
int zesDeviceEnumFabricPorts(void *device, uint32_t *count, void **out) {
  if (cards()[card_of(device)].tiles < 2) { *count = 0; return OK; }
  return list(device, PORT, count, out);
}

static zes_fabric_port_id_t port_id(uint32_t i, uint32_t tile) {
  return (zes_fabric_port_id_t){0x1d8a0000 + i, tile, (uint8_t)(4 + tile)};
}

int zesFabricPortGetProperties(void *port, zes_fabric_port_properties_t *p) {
  if (!is_kind(port, PORT) || p->stype != 0x6) return UNSUPPORTED;
  snprintf(p->model, sizeof p->model, "%s", "XeLink");
  p->portId = port_id(card_of(port), tile_of(port));
  p->maxTxSpeed = (zes_fabric_port_speed_t){90000000000LL, 4};
  return OK;
}

int zesFabricPortGetState(void *port, zes_fabric_port_state_t *state) {
  if (!is_kind(port, PORT) || state->stype != 0x19) return UNSUPPORTED;
  state->status = is("max_down") ? 4 : 1 + tile_of(port); /* disabled; healthy, degraded */
  state->remotePortId = port_id(1 - card_of(port), tile_of(port));
  return OK;
}

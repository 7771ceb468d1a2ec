/* A fake librocm_smi64: two cards, listed against their order on the bus, for our ctypes binding.
 *
 * Proves: which functions we call with which parameters, that cards are joined by PCI address and never by index, and
 * how a status, a missing function or an older card is taken. Cannot prove: what AMD's or Hygon's library answers.
 * FAKE_ROCM_SMI: "" (two cards), "fails" (rsmi_init), "mi300" (no average power, no edge sensor), "errors" (ECC).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, NOT_SUPPORTED = 2, INIT_ERROR = 8 };

typedef struct {
  uint64_t correctable_err;
  uint64_t uncorrectable_err;
  uint64_t deferred_err; /* newer releases */
} rsmi_error_count_t;

static int is(const char *scenario) {
  const char *now = getenv("FAKE_ROCM_SMI");
  return now != NULL && strcmp(now, scenario) == 0;
}

static const uint64_t addresses[] = {0x00000000c100ULL, 0x000000008300ULL};

int rsmi_init(uint64_t flags) { return flags == 0 && !is("fails") ? OK : INIT_ERROR; }

int rsmi_num_monitor_devices(uint32_t *count) {
  *count = 2;
  return OK;
}

int rsmi_dev_pci_id_get(uint32_t index, uint64_t *bdf) {
  *bdf = addresses[index];
  return OK;
}

int rsmi_dev_name_get(uint32_t index, char *name, size_t size) {
  strncpy(name, index == 1 ? "AMD Instinct MI300X" : "AMD Instinct MI300X (second)", size - 1);
  return OK;
}

int rsmi_dev_unique_id_get(uint32_t index, uint64_t *id) {
  *id = 0x1111111111111100ULL + index;
  return OK;
}

int rsmi_dev_memory_total_get(uint32_t index, int type, uint64_t *bytes) {
  *bytes = (uint64_t)(192 - index) << 30;
  return type == 0 ? OK : INVALID;
}

int rsmi_dev_memory_usage_get(uint32_t index, int type, uint64_t *bytes) {
  *bytes = (uint64_t)(10 + index) << 30;
  return type == 0 ? OK : INVALID;
}

int rsmi_dev_busy_percent_get(uint32_t index, uint32_t *percent) {
  *percent = 40 + index;
  return OK;
}

int rsmi_dev_temp_metric_get(uint32_t index, uint32_t sensor, int metric, int64_t *milli) {
  if (sensor == 0 && is("mi300")) return NOT_SUPPORTED;
  if (metric != 0 && metric != 5 && metric != 7) return INVALID;
  *milli = metric == 7 ? 105000 : metric == 5 ? 100000 : (int64_t)(sensor == 1 ? 61000 : 52000) + index * 1000;
  return OK;
}

int rsmi_dev_power_ave_get(uint32_t index, uint32_t sensor, uint64_t *microwatts) {
  if (is("mi300") || sensor != 0) return NOT_SUPPORTED;
  *microwatts = 118000000 + index;
  return OK;
}

int rsmi_dev_power_get(uint32_t index, uint64_t *microwatts, int *type) {
  *microwatts = 140000000 + index;
  *type = 1; /* current */
  return OK;
}

int rsmi_dev_ecc_count_get(uint32_t index, int block, rsmi_error_count_t *count) {
  if (block != 1 && block != 4) return NOT_SUPPORTED; /* this card counts UMC and GFX */
  memset(count, 0, sizeof *count);
  count->correctable_err = 7;
  count->deferred_err = 9;
  count->uncorrectable_err = is("errors") && index == 1 ? 2 : 0;
  return OK;
}

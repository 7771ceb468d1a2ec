/* A libdcmi.so that answers from a scenario named by FAKE_DCMI and writes each question to the file FAKE_DCMI_LOG.
 *
 * Proves: our order of calls, our reading of both interfaces' structs as laid out here, our mapping of refusals. Does not
 * prove: how a real driver behaves. Signatures and structs are those of dcmi_interface_api.h and
 * dcmi_interface_api_v2.h, declared here by hand; `fake_layout` tells their sizes and offsets to the test that pins them.
 *
 * Scenarios: 910b (two cards of a chip and a controller, listed against the order of the bus), a3 (a card of two dies),
 * 310p (a card of two chips at one bus address, DDR), 950 (the second interface only), lost (910b, the second card's
 * physical id cannot be read), split (910b that answers no die, no metric it could be believed in), alarm (910b),
 * old_topo (910b of a driver to which 6 is an unknown relation), resetting (910b whose first card does not tell its
 * address for now), no_bus (910b on no PCI bus), upgrading, empty (no card), hang, crash.
 */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NO_DEVICE = -8008, NOT_READY = -8012, UPGRADING = -8017, NOT_SUPPORTED = -8255 };

struct dcmi_chip_info_v2 {
    unsigned char chip_type[32], chip_name[32], chip_ver[32];
    unsigned int aicore_cnt;
    unsigned char npu_name[32];
};
struct dcmi_pcie_info_all {
    unsigned int venderid, subvenderid, deviceid, subdeviceid;
    int domain;
    unsigned int bdf_busid, bdf_deviceid, bdf_funcid;
    unsigned char reserve[32];
};
struct dcmi_die_id { unsigned int soc_die[5]; };
struct dcmi_hbm_info {
    unsigned long long memory_size;
    unsigned int freq;
    unsigned long long memory_usage;
    int temp;
    unsigned int bandwith_util_rate;
};
struct dcmi_get_memory_info_stru {
    unsigned long long memory_size, memory_available;
    unsigned int freq;
    unsigned long hugepagesize, hugepages_total, hugepages_free;
    unsigned int utiliza;
    unsigned char reserve[60];
};
struct dcmi_ecc_info {
    int enable_flag;
    unsigned int single_bit_error_cnt, double_bit_error_cnt, total_single_bit_error_cnt, total_double_bit_error_cnt,
        single_bit_isolated_pages_cnt, double_bit_isolated_pages_cnt;
};

#define SIZE(s) {#s, sizeof(struct s)}
#define AT(s, f) {#s "." #f, offsetof(struct s, f)}
static const struct { const char *what; size_t n; } layouts[] = {
    SIZE(dcmi_chip_info_v2), AT(dcmi_chip_info_v2, chip_name), AT(dcmi_chip_info_v2, aicore_cnt),
    AT(dcmi_chip_info_v2, npu_name),
    SIZE(dcmi_pcie_info_all), AT(dcmi_pcie_info_all, domain), AT(dcmi_pcie_info_all, bdf_busid),
    AT(dcmi_pcie_info_all, bdf_deviceid), AT(dcmi_pcie_info_all, bdf_funcid), AT(dcmi_pcie_info_all, reserve),
    SIZE(dcmi_die_id), AT(dcmi_die_id, soc_die),
    SIZE(dcmi_hbm_info), AT(dcmi_hbm_info, memory_size), AT(dcmi_hbm_info, memory_usage), AT(dcmi_hbm_info, temp),
    SIZE(dcmi_get_memory_info_stru), AT(dcmi_get_memory_info_stru, memory_available),
    AT(dcmi_get_memory_info_stru, hugepagesize), AT(dcmi_get_memory_info_stru, utiliza),
    SIZE(dcmi_ecc_info), AT(dcmi_ecc_info, double_bit_error_cnt), AT(dcmi_ecc_info, double_bit_isolated_pages_cnt),
    {0, 0},
};
const char *fake_layout(unsigned int index, size_t *n) { *n = layouts[index].n; return layouts[index].what; }

static int is(const char *name) {
    const char *scenario = getenv("FAKE_DCMI");
    return scenario && !strcmp(scenario, name);
}
static void note(const char *function) {
    const char *path = getenv("FAKE_DCMI_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) { fprintf(file, "%s\n", function); fclose(file); }
}
#define NOTE note(__func__)

/* Cards of 910b are 4 and 2: the first listed is the later one on the bus. The controller is the device behind them. */
static int chips_on(int card) { (void)card; return is("a3") || is("310p") ? 2 : 1; }
static int logic_of(int card, int device) { return is("a3") || is("310p") ? 2 * (card - 1) + device : card == 4; }

int dcmi_init(void) {
    NOTE;
    if (is("950")) return NOT_SUPPORTED;
    if (is("upgrading")) return UPGRADING;
    if (is("crash")) raise(SIGSEGV);
    if (is("hang")) for (;;) pause();
    return OK;
}
int dcmi_get_driver_version(char *text, unsigned int length) { NOTE; snprintf(text, length, "25.3.rc1"); return OK; }
int dcmi_get_card_list(int *count, int *cards, int length) {
    NOTE;
    (void)length;
    *count = is("empty") ? 0 : is("a3") || is("310p") ? 1 : 2;
    cards[0] = *count == 1 ? 3 : 4;
    cards[1] = 2;
    return OK;
}
int dcmi_get_device_num_in_card(int card, int *count) { NOTE; *count = chips_on(card) + 1; return OK; }
int dcmi_get_device_type(int card, int device, int *type) { NOTE; *type = device >= chips_on(card); return OK; }
int dcmi_get_device_logic_id(int *logic, int card, int device) { NOTE; *logic = logic_of(card, device); return OK; }
int dcmi_get_device_phyid_from_logicid(unsigned int logic, unsigned int *physical) {
    NOTE;
    if (is("lost") && logic == 1) return NO_DEVICE;
    *physical = 8 + logic;
    return OK;
}
static int chip(struct dcmi_chip_info_v2 *info, const char *name, const char *npu) {
    memset(info, 0, sizeof *info);
    strcpy((char *)info->chip_type, "Ascend");
    strcpy((char *)info->chip_name, name);
    strcpy((char *)info->npu_name, npu);
    info->aicore_cnt = 20;
    return OK;
}
int dcmi_get_device_chip_info_v2(int card, int device, struct dcmi_chip_info_v2 *info) {
    NOTE;
    (void)card; (void)device;
    return is("a3") ? chip(info, "Ascend910", "9391") : is("310p") ? chip(info, "310P3", "") : chip(info, "910B3", "");
}
static int place(struct dcmi_pcie_info_all *info, unsigned int bus) {
    memset(info, 0, sizeof *info);
    info->venderid = 0x19e5;
    info->bdf_busid = bus;
    return OK;
}
int dcmi_get_device_pcie_info_v2(int card, int device, struct dcmi_pcie_info_all *info) {
    NOTE;
    if (is("no_bus") || (is("resetting") && card == 4)) return is("no_bus") ? NOT_SUPPORTED : NOT_READY;
    return place(info, is("a3") ? 0x9d + 2 * device : is("310p") ? 0x01 : card == 4 ? 0xd9 : 0xc1);
}
static int die(struct dcmi_die_id *id, unsigned int chip_number) {
    id->soc_die[0] = 0xE0F4EE64u;
    id->soc_die[1] = 0x002061B1u; /* leading zeros are part of it */
    id->soc_die[2] = 0x6A691492u;
    id->soc_die[3] = 0x89528485u;
    id->soc_die[4] = chip_number;
    return OK;
}
int dcmi_get_device_die_v2(int card, int device, int type, struct dcmi_die_id *id) {
    NOTE;
    if (is("split")) { memset(id, 0, sizeof *id); return OK; }
    return type == 1 ? die(id, 16 * card + device) : NOT_SUPPORTED;
}
int dcmi_get_device_health(int card, int device, unsigned int *health) {
    NOTE;
    (void)device;
    *health = is("alarm") ? (card == 4 ? 2 : 1) : 0;
    return OK;
}
int dcmi_get_device_errorcode_v2(int card, int device, int *count, unsigned int *codes, unsigned int length) {
    NOTE;
    (void)device;
    if (length < 128) return NOT_SUPPORTED;
    *count = is("alarm") && card == 4 ? 2 : 0;
    codes[0] = 0x80E01801u;
    codes[1] = 0x0C4Fu;
    return OK;
}
static int hbm(struct dcmi_hbm_info *info) {
    memset(info, 0, sizeof *info);
    info->memory_size = 65536;
    info->memory_usage = 3413;
    return OK;
}
int dcmi_get_device_hbm_info(int card, int device, struct dcmi_hbm_info *info) {
    NOTE;
    (void)card; (void)device;
    return is("310p") ? NOT_SUPPORTED : hbm(info);
}
int dcmi_get_device_memory_info_v3(int card, int device, struct dcmi_get_memory_info_stru *info) {
    NOTE;
    (void)card; (void)device;
    memset(info, 0, sizeof *info);
    info->memory_size = 21527;
    info->memory_available = 20000;
    return OK;
}
int dcmi_get_device_utilization_rate(int card, int device, int type, unsigned int *rate) {
    NOTE;
    (void)card; (void)device;
    *rate = is("split") ? 0x80000000u : type == 2 ? 37 : 99;
    return OK;
}
int dcmi_get_device_temperature(int card, int device, int *celsius) {
    NOTE;
    (void)card; (void)device;
    *celsius = is("split") ? 0x7ffd : 53;
    return OK;
}
int dcmi_get_device_power_info(int card, int device, int *tenths) {
    NOTE;
    (void)card; (void)device;
    *tenths = is("split") ? 0x7fff : 913;
    return OK;
}
int dcmi_get_device_ecc_info(int card, int device, int type, struct dcmi_ecc_info *info) {
    NOTE;
    (void)card; (void)device;
    if (type != 2) return NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    info->enable_flag = !is("split");
    info->single_bit_error_cnt = 7;
    info->double_bit_error_cnt = 2;
    return OK;
}
int dcmi_get_topo_info_by_device_id(int card1, int device1, int card2, int device2, int *type) {
    NOTE;
    (void)device1; (void)device2;
    *type = is("310p") ? 9 : card1 == card2 || is("old_topo") ? 6 : 3;
    return OK;
}

/* The second interface: two chips, numbered by logic id; it has no relations and of the dies only the third kind. */
int dcmiv2_init(void) { NOTE; return is("950") ? OK : NOT_SUPPORTED; }
int dcmiv2_get_device_list(int *numbers, int *count, int length) {
    NOTE;
    (void)length;
    numbers[0] = 0;
    numbers[1] = 1;
    *count = 2;
    return OK;
}
int dcmiv2_get_device_type(int number, int *type) { NOTE; (void)number; *type = 0; return OK; }
int dcmiv2_get_chip_phy_id_by_dev_id(unsigned int number, unsigned int *physical) {
    NOTE;
    *physical = 4 + number;
    return OK;
}
int dcmiv2_get_device_chip_info(int number, struct dcmi_chip_info_v2 *info) {
    NOTE;
    (void)number;
    return chip(info, "Ascend950PR", "950_1234");
}
int dcmiv2_get_device_pcie_info(int number, struct dcmi_pcie_info_all *info) { NOTE; return place(info, 0x11 + number); }
int dcmiv2_get_device_die_id(int number, int type, struct dcmi_die_id *id) {
    NOTE;
    return type == 2 ? die(id, number) : NOT_SUPPORTED;
}
int dcmiv2_get_device_health(int number, unsigned int *health) { NOTE; (void)number; *health = 0; return OK; }
int dcmiv2_get_device_hbm_info(int number, struct dcmi_hbm_info *info) { NOTE; (void)number; return hbm(info); }
int dcmiv2_get_device_utilization_rate(int number, int type, unsigned int *rate) {
    NOTE;
    (void)number; (void)type;
    *rate = 12;
    return OK;
}
int dcmiv2_get_device_temperature(int number, int *celsius) { NOTE; (void)number; *celsius = 41; return OK; }
int dcmiv2_get_device_power_info(int number, int *tenths) { NOTE; (void)number; *tenths = 2345; return OK; }
/* dcmiv2_get_device_ecc_info and dcmiv2_get_driver_version are left out on purpose: a missing function is an unknown. */

"""Ascend NPUs through DCMI (libdcmi.so of the driver): identity, samples and links, by ctypes.

Two interfaces are in one library. The first addresses a chip by card and number on the card; the second, of the Ascend
950 (a driver that has it refuses to start the first), by the logic id alone. Otherwise they differ in names only.

Signatures: `dcmi_interface_api.h` and `dcmi_interface_api_v2.h` (Huawei, Apache-2.0, in the mind-cluster and CANN
driver sources), compared with gpustack-runtime 88026d6 pydcmi. Power is in 0.1 W. Not every driver answers every
question: what it refuses is None.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TypeVar

from xinf.core.device import Distance, Health
from xinf.device.ascend_chip import Condition, Numbers, architecture_of, describe, identify, judge, uuid_of_die
from xinf.device.ascend_structs import ChipInfo, DieId, EccInfo, HbmInfo, MemoryInfo, PcieInfo
from xinf.device.library import LibraryError, find_function, load_library
from xinf.device.roster import Card, Listing, list_readable

T = TypeVar("T", bound="ctypes.Structure | ctypes._SimpleCData[int]")
Address = tuple[int, ...]  # (card, chip on it), or (logic id,) of the second interface

_DIRECTORIES = ("/usr/local/dcmi", "/usr/local/Ascend/driver/lib64/driver")
_MAX_CARDS = 64
_MAX_CHIPS = 16  # on one card, with what is no NPU
_MAX_ERRORS = 128  # as long as the list of the documents; a shorter one is refused
_NPU = 0  # enum dcmi_unit_type; 1 is a card's own controller, 2 its processor
_AICORE_RATE = 2
_HBM = 2  # enum dcmi_device_type
_DIES = (1, 0, 2)  # enum dcmi_die_type in the order of asking: VDIE, NDIE, DDIE (the only one of a 950)
_SIO = 6  # the bus between the two dies of a chip; "unknown" in drivers before A3
_DISTANCES = {
    1: Distance.SYS,
    2: Distance.PHB,
    3: Distance.LINK,  # HCCS
    4: Distance.PXB,
    5: Distance.PIX,
    7: Distance.LINK,  # HCCS through a switch
    8: Distance.LINK,  # UB
}
_INVALID = -8001  # an argument: of a die, that the chip has none of its kind
_CODES = {
    -8002: "not permitted: run as root or as a member of HwHiAiUser",
    -8005: "internal error",
    -8006: "timed out",
    -8008: "no such device",
    -8009: "the driver refuses: look at `dmesg`",
    -8012: "not ready: the NPUs are still starting",
    -8013: "not supported in a container",
    -8017: "an upgrade is under way: wait for its end, then restart the host",
    -8020: "in use by another",
    -8255: "not supported",
}
# What is on the processor's own bus, as of an Atlas 200, has no address on PCI; in some containers nothing tells one.
_TELLS_NONE = (-8013, -8255)
# The same question to the first and to the second interface.
_FUNCTIONS = {
    "type": ("dcmi_get_device_type", "dcmiv2_get_device_type"),
    "chip": ("dcmi_get_device_chip_info_v2", "dcmiv2_get_device_chip_info"),
    "pcie": ("dcmi_get_device_pcie_info_v2", "dcmiv2_get_device_pcie_info"),
    "die": ("dcmi_get_device_die_v2", "dcmiv2_get_device_die_id"),
    "health": ("dcmi_get_device_health", "dcmiv2_get_device_health"),
    "hbm": ("dcmi_get_device_hbm_info", "dcmiv2_get_device_hbm_info"),
    "memory": ("dcmi_get_device_memory_info_v3", ""),
    "utilization": ("dcmi_get_device_utilization_rate", "dcmiv2_get_device_utilization_rate"),
    "temperature": ("dcmi_get_device_temperature", "dcmiv2_get_device_temperature"),
    "power": ("dcmi_get_device_power_info", "dcmiv2_get_device_power_info"),
    "errors": ("dcmi_get_device_errorcode_v2", "dcmiv2_get_device_error_code_list"),
    "ecc": ("dcmi_get_device_ecc_info", "dcmiv2_get_device_ecc_info"),
}


class Dcmi:
    """The started library. Raises: LibraryError when it is not there or does not start."""

    def __init__(self, root: Path) -> None:
        self._library = load_library(("libdcmi.so",), directories=_DIRECTORIES, root=root)
        self._interface = self._start()
        self._places: dict[Address, str] = {}  # told once: a chip does not move, and a call may fail the next time

    def inventory(self) -> Listing:
        """List the chips, without the controllers on their cards; no metric is read. Raises: LibraryError."""
        driver = self._driver()
        return list_readable(enumerate(self._addresses()), lambda address: self._describe(address, driver))

    def states(self) -> Listing:
        """Read what each chip is doing, but for those that cannot be named. Raises: LibraryError if none can."""
        return list_readable(enumerate(self._addresses()), self._measure)

    def distances(self) -> tuple[tuple[str, str, Distance], ...]:
        """Ask how far each two chips are apart; the second interface has no such question."""
        if self._interface != 1:
            return ()
        ask = find_function(self._library, "dcmi_get_topo_info_by_device_id")
        addresses = self._addresses()
        uuids = [self._identify(address) for address in addresses]
        found: list[tuple[str, str, Distance]] = []
        for i, first in enumerate(addresses):
            for j, second in enumerate(addresses[:i]):
                kind = ctypes.c_int()
                if ask(*first, *second, ctypes.byref(kind)) != 0:
                    continue
                is_one_card = first[0] == second[0]
                distance = Distance.LINK if kind.value == _SIO and is_one_card else _DISTANCES.get(kind.value)
                if distance is not None:
                    found.append((uuids[i], uuids[j], distance))
        return tuple(found)

    def _start(self) -> int:
        """Start the first interface that starts; gives its number."""
        refusals = []
        for interface, name in ((1, "dcmi_init"), (2, "dcmiv2_init")):
            try:
                code = find_function(self._library, name)()
            except LibraryError as error:
                refusals.append(str(error))
                continue
            if code == 0:
                return interface
            refusals.append(f"{name}: {_words(code)}")
        raise LibraryError(f"libdcmi.so does not start: {'; '.join(refusals)}")

    def _driver(self) -> str | None:
        text = ctypes.create_string_buffer(64)
        name = "dcmi_get_driver_version" if self._interface == 1 else "dcmiv2_get_driver_version"
        try:
            code = find_function(self._library, name)(text, ctypes.c_uint(len(text)))
        except LibraryError:
            return None  # one of the two published headers of the second interface lacks it
        return _text(text.value) or None if code == 0 else None

    def _addresses(self) -> tuple[Address, ...]:
        numbers, count = (ctypes.c_int * _MAX_CARDS)(), ctypes.c_int()
        if self._interface == 2:
            self._demand("dcmiv2_get_device_list", numbers, ctypes.byref(count), _MAX_CARDS)
            listed: list[Address] = [(number,) for number in numbers[: max(0, count.value)]]
        else:
            self._demand("dcmi_get_card_list", ctypes.byref(count), numbers, _MAX_CARDS)
            listed = [(card, chip) for card in numbers[: max(0, count.value)] for chip in range(self._chips_on(card))]
        return tuple(address for address in listed if self._is_npu(address))

    def _chips_on(self, card: int) -> int:
        """Count a card's devices, its controller among them; one that does not answer has a first chip at least."""
        count = ctypes.c_int()
        code = find_function(self._library, "dcmi_get_device_num_in_card")(card, ctypes.byref(count))
        return min(count.value, _MAX_CHIPS) if code == 0 else 1

    def _is_npu(self, address: Address) -> bool:
        kind = self._read("type", address, ctypes.c_int())
        return kind is None or kind.value == _NPU  # what does not say its type is shown rather than lost

    def _describe(self, address: Address, driver: str | None) -> Card:
        info = self._read("chip", address, ChipInfo())
        name, npu_name = (_text(info.chip_name), _text(info.npu_name)) if info is not None else ("NPU", "")
        extra: dict[str, str | int] = {}
        if npu_name and architecture_of(name) == "910C":
            extra["soc"] = f"Ascend910_{npu_name}"  # the name does not say it
        if info is not None and info.aicore_cnt:
            extra["cores"] = info.aicore_cnt
        uuid = self._uuid(address)
        if uuid is not None:
            extra["uuid"] = uuid
        logic_id = self._logic_id(address)
        return describe(
            Numbers(
                npu_id=address[0],
                chip_id=_chip_id(address),
                logic_id=logic_id,
                physical_id=None if logic_id is None else self._physical_id(logic_id),
                name=name,
            ),
            pci=self._pci(address),
            memory_bytes=self._memory(address)[0],
            driver=driver,
            condition=self._condition(address),
            extra=extra,
        )

    def _measure(self, address: Address) -> Card:
        total, free = self._memory(address)
        rate = self._read("utilization", address, ctypes.c_uint(), _AICORE_RATE)
        temperature = self._read("temperature", address, ctypes.c_int())
        ecc = self._read("ecc", address, EccInfo(), _HBM)
        condition = self._condition(address)
        return Card(
            pci=self._pci(address),
            uuid=self._identify(address),
            memory_bytes=total,
            used_bytes=None if total is None or free is None else total - free,
            free_bytes=free,
            # A split chip answers with its top bits set, a broken sensor with 0x7ffd and up: neither is a measurement.
            util_pct=float(rate.value) if rate is not None and rate.value <= 100 else None,
            temp_c=float(temperature.value) if temperature is not None and -100 < temperature.value < 200 else None,
            power_w=self._power(address),
            ecc_uncorrected=ecc.double_bit_error_cnt if ecc is not None and ecc.enable_flag else None,
            health=condition.health,
            reason=condition.reason,
        )

    def _condition(self, address: Address) -> Condition:
        health = self._read("health", address, ctypes.c_uint())
        if health is None:
            return Condition(None)
        condition = judge(health.value)
        return condition if condition.health is not Health.FAULTY else judge(health.value, self._errors(address))

    def _errors(self, address: Address) -> tuple[int, ...]:
        """List the errors that a chip has at present: of a sick one only, since well ones are asked all the time."""
        count, codes = ctypes.c_int(), (ctypes.c_uint * _MAX_ERRORS)()
        try:
            ask = find_function(self._library, _FUNCTIONS["errors"][self._interface - 1])
        except LibraryError:
            return ()
        code = ask(*address, ctypes.byref(count), codes, ctypes.c_uint(_MAX_ERRORS))
        return tuple(codes[: min(count.value, _MAX_ERRORS)]) if code == 0 else ()

    def _memory(self, address: Address) -> tuple[int | None, int | None]:
        """Read total and free bytes."""
        hbm = self._read("hbm", address, HbmInfo())
        if hbm is not None and hbm.memory_size:
            return hbm.memory_size << 20, max(0, hbm.memory_size - hbm.memory_usage) << 20
        memory = self._read("memory", address, MemoryInfo())
        if memory is not None and memory.memory_size:
            return memory.memory_size << 20, memory.memory_available << 20
        return None, None

    def _power(self, address: Address) -> float | None:
        """Read the power; on an A3 card it is the card's, told for its first die only, as npu-smi does."""
        if len(address) == 2 and address[1] > 0:
            info = self._read("chip", address, ChipInfo())
            if info is None or architecture_of(_text(info.chip_name)) == "910C":
                return None
        tenths = self._read("power", address, ctypes.c_int())
        return tenths.value / 10 if tenths is not None and 0 <= tenths.value < 0x7FFD else None

    def _logic_id(self, address: Address) -> int | None:
        if len(address) == 1:
            return address[0]
        number = ctypes.c_int()
        code = find_function(self._library, "dcmi_get_device_logic_id")(ctypes.byref(number), *address)
        return number.value if code == 0 else None

    def _physical_id(self, logic_id: int) -> int | None:
        names = ("dcmi_get_device_phyid_from_logicid", "dcmiv2_get_chip_phy_id_by_dev_id")
        number = ctypes.c_uint()
        ask = find_function(self._library, names[self._interface - 1])
        return number.value if ask(ctypes.c_uint(logic_id), ctypes.byref(number)) == 0 else None

    def _pci(self, address: Address) -> str | None:
        """Ask for the bus address. Raises: LibraryError where it cannot be told now: a chip is named by it."""
        if address not in self._places:
            info = PcieInfo()
            code = self._ask("pcie", address, info)
            if code is None or code in _TELLS_NONE:
                return None
            if code != 0:
                raise LibraryError(f"{_FUNCTIONS['pcie'][self._interface - 1]}: {_words(code)}")
            place = f"{info.domain & 0xFFFF:04x}:{info.bdf_busid:02x}:{info.bdf_deviceid:02x}.{info.bdf_funcid:x}"
            self._places[address] = place
        return self._places[address]

    def _identify(self, address: Address) -> str:
        return identify(address[0], _chip_id(address), self._pci(address))

    def _uuid(self, address: Address) -> str | None:
        """Ask for the id of the first of its dies that has one: of another die it would look like another chip."""
        for kind in _DIES:
            die = DieId()
            code = self._ask("die", address, die, kind)
            if code != 0 and code not in (_INVALID, *_TELLS_NONE):
                return None
            uuid = uuid_of_die(die.soc_die) if code == 0 else None
            if uuid is not None:
                return uuid
        return None

    def _read(self, question: str, address: Address, answer: T, *inputs: int) -> T | None:
        """Ask a question of a chip; None when it, or this library, has no answer."""
        return answer if self._ask(question, address, answer, *inputs) == 0 else None

    def _ask(self, question: str, address: Address, answer: T, *inputs: int) -> int | None:
        """Ask a question of a chip and give what the call returned; None when this library has no such question."""
        try:
            ask = find_function(self._library, _FUNCTIONS[question][self._interface - 1])
        except LibraryError:
            return None
        return int(ask(*address, *inputs, ctypes.byref(answer)))

    def _demand(self, name: str, *arguments: object) -> None:
        code = find_function(self._library, name)(*arguments)
        if code != 0:
            raise LibraryError(f"{name}: {_words(code)}")


def _chip_id(address: Address) -> int:
    return address[1] if len(address) == 2 else 0


def _words(code: int) -> str:
    return f"{_CODES.get(code, 'unknown error')} ({code})"


def _text(value: bytes) -> str:
    return value.decode(errors="replace").strip()

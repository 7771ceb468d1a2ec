"""What Kunlunxin's xpu-smi prints: `-q` (nested keys), `-m` (a line of 32 fields per card) and its table.

Intel's tool of the same name prints none of them: call these only where the PCI bus shows a Kunlunxin card.

Sources: `-q` in ZStack's GPU plugin (P800 PCIe, driver 5.0.21.26); `-m` in SwanLab's kunlunxin.py and in deployment
logs of P800 OAM (2026-09), where readers require 32 fields; the table in documents of PaddlePaddle and ERNIE (driver
5.0.21.26; in containers 515.58 with `XPU-RT Version: N/A`; Cloudpods' test has 5.19.0.0 alike); `topo -m` in the reader
of a cluster's set-up tool and in an environment report of eight P800 (driver 5.0.21.47), without a whole output.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from xinf.core.device import Distance, Vendor
from xinf.device.framed_table import parse_framed_table
from xinf.device.kunlunxin_library import name_arch
from xinf.device.link_matrix import Link, parse_link_matrix
from xinf.device.pci import normalise_address
from xinf.device.quantity import is_count, size_in_bytes
from xinf.device.roster import Card, name_by_place
from xinf.device.tool import FormatError

_FIELDS = 32
# Of `-m`, counted from 0. What the others mean is not known, or not asked.
_BUS, _ID, _MINOR, _SERIAL, _TEMP, _POWER, _USED, _TOTAL, _LOAD, _NAME = 0, 1, 2, 3, 4, 8, 17, 18, 19, 21
_MIB = 1 << 20
_MOST_WATTS = 2000  # drivers of the K200 gave milliwatts here: a number above is of a unit that is not known
_UNKNOWN = ("", "-", "N/A")
_ADDRESS = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
_TITLE = re.compile(r"XPU-SMI\s+Driver Version:\s*(?P<driver>[\w.-]+)\s+XPU-RT Version:\s*(?P<runtime>[\w./-]+)")
_VALUE = r"\S+"
_MIB_PAIR = r"[0-9]{1,18}MiB\s*/\s*[0-9]{1,18}MiB"
_WATTS = r"(?:\d+W|N/A)"
_COLUMNS = {
    "XPU": r"[0-9]{1,18}",
    "Name": r"\S+(?: \S+)*",
    "Persistence-M": _VALUE,
    "Bus-Id": _ADDRESS.pattern,
    "Disp.A": _VALUE,
    "Volatile Uncorr. ECC": _VALUE,
    "Fan": _VALUE,
    "Temp": r"\d+C|N/A",
    "Perf": _VALUE,
    "Pwr:Usage/Cap": rf"{_WATTS}\s*/\s*{_WATTS}",
    "Memory-Usage": _MIB_PAIR,
    "XPU-Util": r"\d+%|N/A",
    "Compute M.": _VALUE,
    "L3-Usage": _MIB_PAIR,
    "SR-IOV M.": _VALUE,
}
_KINDS = {
    "X": None,  # itself
    "XL": Distance.LINK,
    "PIX": Distance.PIX,
    "PXB": Distance.PXB,
    "PHB": Distance.PHB,
    "NODE": Distance.NODE,
    "SYS": Distance.SYS,
}
_NEEDED = ("XPU", "Name", "Bus-Id", "Volatile Uncorr. ECC", "Temp", "Pwr:Usage/Cap", "Memory-Usage", "XPU-Util")


def parse_query(text: str) -> tuple[Card, ...]:
    """Read `xpu-smi -q`. Raises: FormatError."""
    blocks: list[tuple[str, dict[str, str]]] = []
    common: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if start := re.fullmatch(r"\s*XPU\s+(\S+)\s*", line):
            blocks.append((start[1], {}))
            path = []
            continue
        key, separator, value = line.partition(":")
        indent = len(line) - len(line.lstrip())
        while path and path[-1][0] >= indent:
            path.pop()
        if separator:
            fields = blocks[-1][1] if blocks else common
            fields["/".join([*(name for _, name in path), key.strip()])] = value.strip()
        elif key.strip():
            path.append((indent, key.strip()))
    if not blocks or "XPU-RT Version" not in common:
        raise FormatError(f"xpu-smi -q printed no `XPU-RT Version` and `XPU <bus id>`, but {_begin(text)}")
    n_attached = common.get("Attached XPUs", "")
    if n_attached != str(len(blocks)):
        raise FormatError(f"xpu-smi -q says `Attached XPUs` {n_attached!r} and lists {len(blocks)}: it is cut off")
    return tuple(_read_block(bus, fields, common) for bus, fields in blocks)


def parse_machine(text: str) -> tuple[Card, ...]:
    """Read `xpu-smi -m`. Raises: FormatError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FormatError("xpu-smi -m printed nothing")
    return tuple(_read_machine_line(line) for line in lines)


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table of a plain `xpu-smi`. Raises: FormatError."""
    title = _TITLE.search(text)
    if title is None:
        raise FormatError(f"xpu-smi's table does not begin as Kunlunxin's does, but with {_begin(text)}")
    table = parse_framed_table("xpu-smi", text[title.end() :], _COLUMNS, height=3, needed=_NEEDED, until="Processes:")
    runtime = None if title["runtime"] in _UNKNOWN else title["runtime"]
    return tuple(_read_record(record, driver=title["driver"], runtime=runtime) for record in table.records)


def parse_topology(text: str) -> tuple[Link, ...]:
    """Read `xpu-smi topo -m`; a label is `XPU` and the id. Raises: FormatError."""
    return parse_link_matrix("xpu-smi topo -m", text, device=r"XPU\d+", other=r"NIC\d+|mlx5_\w+", kinds=_KINDS)


def _read_block(bus: str, fields: dict[str, str], common: dict[str, str]) -> Card:
    address = fields.get("PCI/Bus Id", bus)
    if not _ADDRESS.fullmatch(address):
        raise FormatError(f"xpu-smi -q: a card has the `Bus Id` {address[:40]!r}, not an address")
    for key in ("Product Name", "Memory Usage/Total"):
        if key not in fields:
            raise FormatError(f"xpu-smi -q: XPU {bus} has no `{key}`")
    name, minor = fields["Product Name"], _number(fields, "Minor Number", "")
    runtime = common["XPU-RT Version"]
    keys = {"architecture": "Product Architecture", "uuid": "XPU UUID", "serial": "Serial Number"}
    told = {name: fields.get(key, "") for name, key in keys.items()}
    errors = _number(fields, "ECC Errors/Volatile/DRAM Uncorrectable", "")
    pci = normalise_address(address)
    return Card(
        pci=pci,
        uuid=name_by_place(Vendor.KUNLUNXIN, pci),
        name=name,
        arch=name_arch(name),
        memory_bytes=_size(fields, "Memory Usage/Total"),
        driver=common.get("Driver Version") or None,
        runtime=None if runtime in _UNKNOWN else runtime,
        dev_nodes=() if minor is None else (f"/dev/xpu{int(minor)}",),
        extra={key: value for key, value in told.items() if value not in _UNKNOWN},
        used_bytes=_size(fields, "Memory Usage/Used"),
        free_bytes=_size(fields, "Memory Usage/Free"),
        util_pct=_number(fields, "Utilization/Xpu", "%"),
        temp_c=_number(fields, "Temperature/XPU Current Temp", "C"),
        power_w=_number(fields, "Power Readings/Power Draw", "W"),
        ecc_uncorrected=None if errors is None else int(errors),
    )


def _read_machine_line(line: str) -> Card:
    try:
        fields = shlex.split(line)
    except ValueError as error:
        raise FormatError(f"xpu-smi -m printed a line that is cut off ({error}): {line[:60]!r}") from None
    if len(fields) != _FIELDS:
        raise FormatError(f"xpu-smi -m printed {len(fields)} fields, not {_FIELDS}: {line[:60]!r}")
    numbers = {at: fields[at] for at in (_ID, _MINOR, _TEMP, _POWER, _USED, _TOTAL, _LOAD)}
    if not _ADDRESS.fullmatch(fields[_BUS]) or not all(map(is_count, numbers.values())):
        raise FormatError(f"xpu-smi -m printed fields in an order that is not known: {line[:60]!r}")
    number, minor, temp, power, used, total, load = (int(text) for text in numbers.values())
    if total == 0 or used > total or load > 100:
        raise FormatError(f"xpu-smi -m uses {used} of {total} MiB at {load} %: its fields are not in the known order")
    pci = normalise_address(fields[_BUS])
    return Card(
        pci=pci,
        uuid=name_by_place(Vendor.KUNLUNXIN, pci),
        number=number,
        extra={"serial": fields[_SERIAL]},
        name=fields[_NAME],
        arch=name_arch(fields[_NAME]),
        memory_bytes=size_in_bytes(total, _MIB),
        dev_nodes=(f"/dev/xpu{minor}",),
        used_bytes=size_in_bytes(used, _MIB),
        util_pct=float(load),
        temp_c=float(temp),
        power_w=float(power) if power <= _MOST_WATTS else None,
    )


def _read_record(record: Mapping[str, str], *, driver: str, runtime: str | None) -> Card:
    used, total = (size_in_bytes(int(mib), _MIB) for mib in re.findall(r"(\d+)MiB", record["Memory-Usage"]))
    power = re.match(r"\d+(?=W)", record["Pwr:Usage/Cap"])  # else N/A, which has a stroke of its own
    errors = record["Volatile Uncorr. ECC"]
    pci = normalise_address(record["Bus-Id"])
    return Card(
        pci=pci,
        uuid=name_by_place(Vendor.KUNLUNXIN, pci),
        number=int(record["XPU"]),
        name=record["Name"],
        arch=name_arch(record["Name"]),
        memory_bytes=total,
        driver=driver,
        runtime=runtime,
        used_bytes=used,
        util_pct=None if record["XPU-Util"] in _UNKNOWN else float(record["XPU-Util"].rstrip("%")),
        temp_c=None if record["Temp"] in _UNKNOWN else float(record["Temp"].rstrip("C")),
        power_w=None if power is None else float(power[0]),
        ecc_uncorrected=int(errors) if is_count(errors) else None,
    )


def _size(fields: dict[str, str], key: str) -> int | None:
    return size_in_bytes(_number(fields, key, "MiB"), _MIB)


def _number(fields: dict[str, str], key: str, unit: str) -> float | None:
    text = fields.get(key, "")
    if text in _UNKNOWN:
        return None
    found = re.fullmatch(rf"([0-9]{{1,18}}(?:\.[0-9]+)?)\s*{unit}", text)
    if found is None:
        raise FormatError(f"xpu-smi -q: `{key}` is {text[:60]!r}, not a number" + (f" of {unit}" if unit else ""))
    return float(found[1])


def _begin(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip(" -+=|")), "")
    return repr(line[:60]) if line else "nothing"

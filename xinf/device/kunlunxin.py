"""Kunlunxin XPUs through xpu-smi alone: of libxpuml no header or binding is public. Only the formats are tested.

XPU_VISIBLE_DEVICES (and CUDA_VISIBLE_DEVICES, which vLLM-Kunlun's documents set alike) counts as xpu-smi's id does.
`-q` prints a UUID and no id, `-m` and the table an id and no UUID: they are joined by the bus address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Sample, Vendor
from xinf.device.kunlunxin_tool import parse_machine, parse_query, parse_table
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.roster import Card, make_devices, make_samples
from xinf.device.tool import ToolError, find_tool, run_tool

_TIMEOUT_S = 4.0  # three times within the deadline of an inventory
_NAMES = ("xpu_smi", "xpu-smi")  # the first is Kunlunxin's alone, the second may be Intel's where both are installed
_DIRECTORIES = ("/usr/local/bin", "/usr/local/xpu/bin", "/usr/bin")
_ABSENT = "xpu-smi is not there: install Kunlunxin's driver and runtime (XRE)"


class KunlunxinProbe:
    """Asks xpu-smi where the PCI bus shows a Kunlunxin card; what it does not say, the bus does."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def is_present(self, root: Path) -> bool:
        return bool(_find(root))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions, tool = _find(root), find_tool(*_NAMES, directories=_DIRECTORIES, root=root)
        if tool is None:
            return make_devices(Vendor.KUNLUNXIN, (), functions, missing=_ABSENT, root=root)
        reasons: list[str] = []
        cards = self._query(tool, reasons)
        numbered = self._machine(tool, reasons) or self._table(tool, reasons)
        cards = _number(cards, numbered) if cards else numbered
        missing = "xpu-smi does not list it" if cards else "; ".join(reasons)
        return make_devices(Vendor.KUNLUNXIN, cards, functions, missing=missing, root=root)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError with what was tried."""
        tool = find_tool(*_NAMES, directories=_DIRECTORIES, root=root)
        if tool is None:
            raise ToolError(_ABSENT)
        reasons: list[str] = []
        cards = self._query(tool, reasons) or self._machine(tool, reasons) or self._table(tool, reasons)
        if not cards:
            raise ToolError("; ".join(reasons))
        return make_samples(cards)

    def _query(self, tool: str, reasons: list[str]) -> Sequence[Card]:
        return self._read([tool, "-q"], parse_query, reasons)

    def _machine(self, tool: str, reasons: list[str]) -> Sequence[Card]:
        return self._read([tool, "-m"], parse_machine, reasons)

    def _table(self, tool: str, reasons: list[str]) -> Sequence[Card]:
        return self._read([tool], parse_table, reasons)

    def _read(
        self, argv: Sequence[str], parse: Callable[[str], tuple[Card, ...]], reasons: list[str]
    ) -> Sequence[Card]:
        """Run and read; none, and one reason more, when that does not work."""
        try:
            return parse(run_tool(argv, timeout_s=self._timeout_s))
        except ToolError as error:
            reasons.append(str(error))
            return ()


def _number(cards: Sequence[Card], numbered: Sequence[Card]) -> Sequence[Card]:
    """Give the cards the tool's ids of those at the same addresses."""
    numbers = {card.pci: card.number for card in numbered}
    return [msgspec.structs.replace(card, number=numbers.get(card.pci)) for card in cards]


def _find(root: Path) -> tuple[PciFunction, ...]:
    return find_pci_functions(root, Vendor.KUNLUNXIN)

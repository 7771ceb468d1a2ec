"""Hygon DCUs: KFD's files (the kernel driver is a fork of AMD's), then DTK's librocm_smi64, then hy-smi.

HIP counts devices as KFD does among those that this process may use, so a device's place there is what
HIP_VISIBLE_DEVICES takes; where KFD's files are not to be seen, hy-smi's cardN, joined by PCI address, says it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.core.device import Vendor
from xinf.device.amdgpu import CardFacts, CardReading
from xinf.device.hygon_tool import ToolCard, parse_table, read_facts, read_readings
from xinf.device.pci import PciFunction
from xinf.device.rocm import RocmCard, why_hidden
from xinf.device.rocm_probe import RocmProbe, Told
from xinf.device.tool import FormatError, ToolError, find_tool, run_tool

_TOOLS = ("/opt/hyhal/bin", "/usr/local/hyhal/bin", "/opt/dtk/bin")
_NAMES = ("hy-smi", "rocm-smi")


class HygonProbe(RocmProbe):
    """Reads Hygon's cards; `timeout_s` bounds one run of hy-smi."""

    vendor = Vendor.HYGON
    libraries = ("/opt/hyhal/lib", "/opt/dtk/lib", "/opt/dtk/rocm_smi/lib")
    runtime = ("opt/dtk/.dtk_version", "opt/dtk/.info/version")

    def _needs_tool(self, card: RocmCard, facts: CardFacts) -> bool:
        return facts.name is None or facts.memory_bytes is None or card.node is None

    def _ask_for_facts(self, root: Path) -> Told:
        return {card.address: card for card in read_facts(_find_tool(root), timeout_s=self._timeout_s)}

    def _ask_tool_for_readings(self, addresses: Sequence[str], root: Path) -> Mapping[str, CardReading]:
        tool = _find_tool(root)
        try:
            return read_readings(tool, timeout_s=self._timeout_s)
        except FormatError:
            if len(addresses) != 1:
                raise  # the table names cards by number only
        numbered = parse_table(run_tool([tool], timeout_s=self._timeout_s))
        return {addresses[0]: numbered[0]} if 0 in numbered else {}

    def _visible(self, card: RocmCard, told: CardFacts | None) -> str | None:
        if card.node is not None:
            return None if card.node.ordinal is None else str(card.node.ordinal)
        return str(told.number) if isinstance(told, ToolCard) else None

    def _why_unusable(self, card: RocmCard, facts: CardFacts, closed: str | None, reasons: Sequence[str]) -> str | None:
        """Say why no engine can compute on it. A card that library or tool know has a driver that works."""
        if closed is None and card.node is not None:
            return why_hidden(card.node)
        if closed is None and facts.memory_bytes is None:
            closed = "its driver shows this process no compute node (KFD) for it"
        return None if closed is None else "; ".join((closed, *reasons))

    def _why_unbound(self, function: PciFunction) -> str:
        if function.driver is None:
            return "no kernel driver is bound to it: install Hygon's driver and run `modprobe hycu` (older: hydcu)"
        return f"the kernel driver {function.driver} is bound to it, not Hygon's: it is given to a virtual machine"


def _find_tool(root: Path) -> str:
    tool = find_tool(*_NAMES, directories=_TOOLS, root=root)
    if tool is None:
        raise ToolError("hy-smi is not there")
    return tool

"""AMD devices: the driver's own files first, then librocm_smi64, then amd-smi; none needs ROCm's runtime or torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.core.device import Vendor
from xinf.device.amd_tool import read_list, read_metric, read_static
from xinf.device.amdgpu import CardFacts, CardReading
from xinf.device.pci import PciFunction
from xinf.device.rocm import RocmCard, why_hidden
from xinf.device.rocm_probe import RocmProbe, Told
from xinf.device.tool import TIMEOUT_S, ToolError, find_tool

_TOOLS = ("/opt/rocm/bin",)


class AmdProbe(RocmProbe):
    """Reads AMD's cards; `timeout_s` bounds one run of amd-smi."""

    vendor = Vendor.AMD
    libraries = ("/opt/rocm/lib", "/opt/rocm/rocm_smi/lib")
    runtime = ("opt/rocm/.info/version",)

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(timeout_s=timeout_s)
        self._numbers: dict[int, str] | None = None  # of amd-smi; asked once

    def _needs_tool(self, card: RocmCard, facts: CardFacts) -> bool:  # noqa: ARG002 - the class's
        return facts.arch is None or facts.memory_bytes is None

    def _ask_for_facts(self, root: Path) -> Told:
        return read_static(_find_tool(root), timeout_s=self._timeout_s)

    def _ask_tool_for_readings(self, addresses: Sequence[str], root: Path) -> Mapping[str, CardReading]:  # noqa: ARG002
        tool = _find_tool(root)
        if self._numbers is None:
            self._numbers = read_list(tool, timeout_s=self._timeout_s)
        return read_metric(tool, self._numbers, timeout_s=self._timeout_s)

    def _visible(self, card: RocmCard, told: CardFacts | None) -> str | None:  # noqa: ARG002 - the class's
        """Say what ROCR_VISIBLE_DEVICES takes for it: the chip's unique id, or its place among KFD's GPU nodes.

        Old and integrated chips have no unique id, and the partitions of a card share one; ROCr then counts the nodes
        that it may read, in KFD's order. Source: ROCR-Runtime, HSA_AMD_AGENT_INFO_UUID in amd_gpu_agent.cpp.
        """
        if card.node is None or card.node.ordinal is None:
            return None
        is_whole = card.partition is None and card.uuid.startswith("GPU-")
        return card.uuid if is_whole else str(card.node.ordinal)

    def _why_unusable(self, card: RocmCard, facts: CardFacts, closed: str | None, reasons: Sequence[str]) -> str | None:
        if closed is not None:
            return closed
        if card.node is not None:
            return why_hidden(card.node)
        if facts.arch is not None:
            return None
        return "; ".join(("amdgpu shows this process no compute node (KFD) for it", *reasons))

    def _why_unbound(self, function: PciFunction) -> str:
        if function.driver is None:
            return "no kernel driver is bound to it: install amdgpu and run `modprobe amdgpu`"
        return f"the kernel driver {function.driver} is bound to it, not amdgpu: it is given to a virtual machine"


def _find_tool(root: Path) -> str:
    tool = find_tool("amd-smi", directories=_TOOLS, root=root)
    if tool is None:
        raise ToolError("amd-smi is not there")
    return tool

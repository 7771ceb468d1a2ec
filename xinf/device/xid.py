"""What an Xid means for new work: the errors that NVIDIA's driver numbers, as data.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors), the column of the
immediate action, read in the copy that leptonai/gpud 73e270e generated from it on 2025-10-29. A verdict follows from
that action alone:

    RESET_GPU, RESTART_BM, RESTART_VM,             UNUSABLE      no new work until it is reset
    WORKFLOW_XID_48, WORKFLOW_NVLINK_ERR
    RESTART_APP, and what the catalogue says       APPLICATION   a process was at fault or its victim
    follows another error
    IGNORE, and actions for whoever looks          NOTICE        told, nothing more
    after the machine; WORKFLOW_NVLINK5_ERR

The last asks for bits that NVML does not tell: if something has to be done, newer drivers send 154 after it (as after
every error that asks for an action), and the action itself can be read (nvidia_metrics.py). Codes that the catalogue
calls unused are not listed; they are told and mark nothing.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """What an Xid says of the device."""

    UNUSABLE = "unusable"
    APPLICATION = "application"
    NOTICE = "notice"


class Xid(msgspec.Struct, frozen=True):
    """One number of the catalogue."""

    code: int
    verdict: Verdict
    meaning: str
    remedy: str


class XidRow(msgspec.Struct, frozen=True):
    """Numbers that mean the same: most engines of a GPU have several."""

    codes: tuple[int, ...]
    verdict: Verdict
    meaning: str
    remedy: str


RECOVERY_ACTION_CHANGED = 154

_RESET = "drain it, then `nvidia-smi --gpu-reset`"
_REBOOT = "reboot the host; if it comes back, have the card reseated or swapped"
_LOOK = "its replica is restarted; if it comes back with other models too, look at `dmesg`"
_OTHER = "look at the Xid 154 after it, if there is one, and at `dmesg`"
_NVLINK = f"check the NVLink bridges and, with NVSwitch, the fabric manager; {_RESET}"

_FIRMWARE = "look at `dmesg`; update the driver if it comes back"
_UNUSABLE, _APPLICATION, _NOTICE = Verdict.UNUSABLE, Verdict.APPLICATION, Verdict.NOTICE

ROWS: tuple[XidRow, ...] = (
    XidRow((8,), _APPLICATION, "the GPU stopped processing", _LOOK),
    XidRow((11, 32), _APPLICATION, "invalid or corrupted push buffer stream", _LOOK),
    XidRow((13,), _APPLICATION, "exception of the graphics engine, mostly an access out of bounds", _LOOK),
    XidRow((25,), _APPLICATION, "invalid or illegal push buffer stream", _LOOK),
    XidRow((31,), _APPLICATION, "page fault in GPU memory", _LOOK),
    XidRow((37, 38), _NOTICE, "error of the driver's firmware", _FIRMWARE),
    XidRow(
        (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), _APPLICATION, "exception of a copy engine", _LOOK
    ),
    XidRow((43,), _APPLICATION, "the GPU stopped processing for one application", _LOOK),
    XidRow((44,), _APPLICATION, "fault of the graphics engine during a context switch", _LOOK),
    XidRow((45,), _APPLICATION, "contexts were removed because of an earlier error", "look at the Xid before it"),
    XidRow((46,), _UNUSABLE, "the GPU stopped processing", _RESET),
    XidRow((48,), _UNUSABLE, "uncorrectable (double bit) ECC error", _RESET),
    XidRow((54,), _NOTICE, "auxiliary power is not connected to the board", "check the power cables"),
    XidRow((60,), _APPLICATION, "exception of the video processor", _LOOK),
    XidRow((62,), _UNUSABLE, "the internal micro-controller halted", _RESET),
    XidRow((63,), _NOTICE, "a row or page of memory was retired", "reset it when it is idle"),
    XidRow((64,), _UNUSABLE, "a row or page of memory could not be retired", f"{_RESET}; then have it looked at"),
    XidRow((66, 67), _NOTICE, "illegal access by the driver", _FIRMWARE),
    XidRow((68, 83, 84, 88, 89, 96, 97, 98), _APPLICATION, "exception of a video decoder", _LOOK),
    XidRow((69,), _APPLICATION, "class error of the graphics engine", _LOOK),
    XidRow((74,), _UNUSABLE, "NVLink error", _NVLINK),
    XidRow((78,), _NOTICE, "a vGPU did not start", "update the driver of host or guest: their versions do not fit"),
    XidRow((79,), _UNUSABLE, "the GPU has fallen off the bus", _REBOOT),
    XidRow((80,), _APPLICATION, "corrupted data was sent to the GPU", _LOOK),
    XidRow((82, *range(99, 106)), _APPLICATION, "exception of a JPEG engine", _LOOK),
    XidRow((86, 139), _APPLICATION, "exception of the optical flow engine", _LOOK),
    XidRow((92,), _NOTICE, "high rate of correctable (single bit) ECC errors", "have it looked at"),
    XidRow((93,), _NOTICE, "the memory of the board was written more often than it is made for", "have it looked at"),
    XidRow((94,), _APPLICATION, "contained memory error: the process that used it was ended", _LOOK),
    XidRow((95,), _UNUSABLE, "uncontained memory error", _RESET),
    XidRow((106, 107), _NOTICE, "test message of the management bus", "nothing to do"),
    XidRow((109,), _UNUSABLE, "timeout of a context switch", _RESET),
    XidRow((110,), _UNUSABLE, "security fault", _RESET),
    XidRow((119,), _UNUSABLE, "the GPU's system processor (GSP) does not answer", _RESET),
    XidRow((120,), _UNUSABLE, "error of the GPU's system processor (GSP)", _RESET),
    XidRow((121,), _NOTICE, "error of the chip-to-chip link (C2C)", "have it looked at"),
    XidRow((136,), _UNUSABLE, "a link could not be trained", _RESET),
    XidRow((137,), _NOTICE, "an access over NVLink was refused, mostly after an error of the other GPU", _OTHER),
    XidRow((140,), _UNUSABLE, "unrecovered ECC error", _RESET),
    XidRow((141,), _NOTICE, "error of CUDA's fast path", _FIRMWARE),
    XidRow((142,), _NOTICE, "exception of a video encoder", "have it looked at"),
    XidRow((143,), _UNUSABLE, "the GPU could not be initialised", _RESET),
    XidRow(tuple(range(144, 151)), _NOTICE, "NVLink 5 error", _OTHER),
    XidRow((151,), _UNUSABLE, "error of the rotation of keys (confidential computing)", "restart the virtual machine"),
    XidRow((152, 153), _NOTICE, "error of the deep learning accelerator (DLA)", "have it looked at"),
    XidRow((155,), _UNUSABLE, "NVLink: error defined by software", _RESET),
    XidRow((156,), _UNUSABLE, "a resource of the GPU was retired", _RESET),
    XidRow((157,), _NOTICE, "a resource of the GPU could not be retired", "have it looked at"),
    XidRow((158,), _UNUSABLE, "fatal timeout", _RESET),
    XidRow((159,), _NOTICE, "error of the coherent link that carried no data", "look at `dmesg` for errors of UVM"),
    XidRow((160, 161), _NOTICE, "a channel of memory was to be retired", "have it looked at"),
    XidRow((162, 163, 164, 165), _NOTICE, "state of the circuits that smooth its power", "have it looked at"),
    XidRow((166, 170), _NOTICE, "NVLink in confidential computing: not as it was set up", "look at `dmesg`"),
    XidRow((167,), _NOTICE, "fatal timeout of PCIe", _OTHER),
    XidRow((168,), _NOTICE, "memory of the GPU was taken out of use because of errors", "have it looked at"),
    XidRow((169,), _NOTICE, "an internal micro-controller halted", _OTHER),
    XidRow((171, 172), _NOTICE, "where the uncorrectable ECC error of Xid 48 was", "look at the Xid 48 beside it"),
)
XIDS: dict[int, Xid] = {code: Xid(code, r.verdict, r.meaning, r.remedy) for r in ROWS for code in r.codes}


def find_xid(code: int) -> Xid:
    """Look a number up in O(1); one that is not known here is a notice that says so."""
    unknown = Xid(code, Verdict.NOTICE, "not known here", "look at `dmesg` and at NVIDIA's Xid catalogue")
    return XIDS.get(code, unknown)

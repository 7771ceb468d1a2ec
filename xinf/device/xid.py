"""What an Xid means for new work: the errors that NVIDIA's driver numbers, as data.

Source: NVIDIA, "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors), the column of the
immediate action, read in the copy that leptonai/gpud 73e270e generated from it on 2025-10-29. A verdict follows from
that action alone:

    RESET_GPU, RESTART_BM, WORKFLOW_XID_48, WORKFLOW_NVLINK_ERR      UNUSABLE      no new work until it is reset
    RESTART_APP, and what the catalogue says follows another error   APPLICATION   a process was at fault or its victim
    IGNORE, with a hint for whoever looks after the machine          NOTICE        told, nothing more

Codes that the catalogue calls unused and those that are not listed here are told and mark nothing: newer drivers send
154 after an error that asks for an action, and the action itself can be read (nvidia_metrics.py).
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


RECOVERY_ACTION_CHANGED = 154

_RESET = "drain it, then `nvidia-smi --gpu-reset`"
_REBOOT = "reboot the host; if it comes back, have the card reseated or swapped"
_LOOK = "its replica is restarted; if it comes back with other models too, look at `dmesg`"
_NVLINK = f"check the NVLink bridges and, with NVSwitch, the fabric manager; {_RESET}"

XIDS: tuple[Xid, ...] = (
    Xid(8, Verdict.APPLICATION, "the GPU stopped processing", _LOOK),
    Xid(11, Verdict.APPLICATION, "invalid or corrupted push buffer stream", _LOOK),
    Xid(13, Verdict.APPLICATION, "exception of the graphics engine, mostly an access out of bounds", _LOOK),
    Xid(25, Verdict.APPLICATION, "invalid or illegal push buffer stream", _LOOK),
    Xid(31, Verdict.APPLICATION, "page fault in GPU memory", _LOOK),
    Xid(32, Verdict.APPLICATION, "invalid or corrupted push buffer stream", _LOOK),
    Xid(39, Verdict.APPLICATION, "exception of a copy engine", _LOOK),
    Xid(40, Verdict.APPLICATION, "exception of a copy engine", _LOOK),
    Xid(41, Verdict.APPLICATION, "exception of a copy engine", _LOOK),
    Xid(43, Verdict.APPLICATION, "the GPU stopped processing for one application", _LOOK),
    Xid(44, Verdict.APPLICATION, "fault of the graphics engine during a context switch", _LOOK),
    Xid(45, Verdict.APPLICATION, "contexts were removed because of an earlier error", "look at the Xid before it"),
    Xid(46, Verdict.UNUSABLE, "the GPU stopped processing", _RESET),
    Xid(48, Verdict.UNUSABLE, "uncorrectable (double bit) ECC error", _RESET),
    Xid(54, Verdict.NOTICE, "auxiliary power is not connected to the board", "check the power cables"),
    Xid(62, Verdict.UNUSABLE, "the internal micro-controller halted", _RESET),
    Xid(63, Verdict.NOTICE, "a row or page of memory was retired", "reset it when it is idle"),
    Xid(64, Verdict.UNUSABLE, "a row or page of memory could not be retired", f"{_RESET}; then have it looked at"),
    Xid(68, Verdict.APPLICATION, "exception of a video decoder", _LOOK),
    Xid(69, Verdict.APPLICATION, "class error of the graphics engine", _LOOK),
    Xid(74, Verdict.UNUSABLE, "NVLink error", _NVLINK),
    Xid(79, Verdict.UNUSABLE, "the GPU has fallen off the bus", _REBOOT),
    Xid(80, Verdict.APPLICATION, "corrupted data was sent to the GPU", _LOOK),
    Xid(92, Verdict.NOTICE, "high rate of correctable (single bit) ECC errors", "have it looked at"),
    Xid(94, Verdict.APPLICATION, "contained memory error: the process that used it was ended", _LOOK),
    Xid(95, Verdict.UNUSABLE, "uncontained memory error", _RESET),
    Xid(109, Verdict.UNUSABLE, "timeout of a context switch", _RESET),
    Xid(110, Verdict.UNUSABLE, "security fault", _RESET),
    Xid(119, Verdict.UNUSABLE, "the GPU's system processor (GSP) does not answer", _RESET),
    Xid(120, Verdict.UNUSABLE, "error of the GPU's system processor (GSP)", _RESET),
    Xid(121, Verdict.NOTICE, "error of the chip-to-chip link (C2C)", "have it looked at"),
    Xid(136, Verdict.UNUSABLE, "a link could not be trained", _RESET),
    Xid(140, Verdict.UNUSABLE, "unrecovered ECC error", _RESET),
    Xid(143, Verdict.UNUSABLE, "the GPU could not be initialised", _RESET),
    Xid(155, Verdict.UNUSABLE, "NVLink: error defined by software", _RESET),
    Xid(156, Verdict.UNUSABLE, "a resource of the GPU was retired", _RESET),
    Xid(158, Verdict.UNUSABLE, "fatal timeout", _RESET),
)
_BY_CODE = {xid.code: xid for xid in XIDS}


def find_xid(code: int) -> Xid:
    """Look a number up in O(1); one that is not known here is a notice that says so."""
    unknown = Xid(code, Verdict.NOTICE, "not known here", "look at `dmesg` and at NVIDIA's Xid catalogue")
    return _BY_CODE.get(code, unknown)

"""Why an engine ended, when its shim could not say so itself: from exit status, kernel and the last lines of the log.

The causes are those of docs/reference/errors.md. A rule names the words that the engine or Python writes; the line that
matched becomes the message, so that nothing is claimed that the log does not say.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec

from xinf.core.records import ReplicaFailure

SHOWN_LINES = 20


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a start that ended."""

    exit_status: int | None = None  # negative: a signal; None: nobody lived to see it
    log_tail: tuple[str, ...] = ()
    oom_kills: int = 0  # by the kernel since the start


class _Rule(msgspec.Struct, frozen=True):
    cause: str
    pattern: re.Pattern[str]
    remedy: str


def _rule(cause: str, pattern: str, remedy: str) -> _Rule:
    return _Rule(cause, re.compile(pattern), remedy)


# The first that matches wins: the specific before the general. Wordings seen with vLLM 0.32, torch 2, transformers 5.
_RULES = (
    _rule(
        "out_of_memory",
        r"OutOfMemoryError|CUDA out of memory|less than desired GPU memory|No available memory for the cache"
        r"|larger than the (available|maximum number of tokens).*KV cache|KV cache memory",
        "lower --max-model-len, use a smaller or quantized model, or a device with more memory",
    ),
    _rule(
        "out_of_memory",
        r"^MemoryError|\bMemoryError:|Cannot allocate memory|std::bad_alloc|DefaultCPUAllocator: can't allocate",
        "free memory on the host, or use a smaller model",
    ),
    _rule(
        "device_unavailable",
        r"No CUDA GPUs are available|no CUDA-capable device|Failed to infer device type|driver version is insufficient"
        r"|CUDA error: (all CUDA-capable devices are busy|invalid device ordinal|device-side)|NVML Shared Library",
        "run `xinf devices`; look at the driver with `nvidia-smi`",
    ),
    _rule(
        "missing_dependency",
        r"ModuleNotFoundError: |ImportError: |error while loading shared libraries",
        "build the engine environment again with `make engine`",
    ),
    _rule("port_in_use", r"Address already in use|EADDRINUSE", "it is tried again on another port by itself"),
    _rule(
        "model_not_found",
        r"not a valid model identifier|RepositoryNotFoundError|LocalEntryNotFoundError|GatedRepoError|401 Client Error"
        r"|Can't load the configuration of|does not appear to have a file named"
        r"|No such file or directory: .*config\.json",
        "check the path or id, and HF_TOKEN for a gated model",
    ),
    _rule(
        "model_unsupported",
        r"[Mm]odel architectures? .*(not supported|failed)|does not recognize this architecture"
        r"|(dtype|quantization|Quantization) .*not supported",
        "use an engine version or a device that supports this model, dtype and quantization",
    ),
    _rule(
        "bad_arguments",
        r"error: unrecognized arguments|error: argument |error: the following arguments|unexpected keyword argument",
        "correct --engine-arg; `xinf describe` shows what was passed",
    ),
)


def classify(evidence: Evidence, *, at_s: float) -> ReplicaFailure:
    """Say why a start ended, as well as the evidence allows."""
    cause, message, remedy = _explain(evidence)
    return ReplicaFailure(
        cause=cause,
        message=message,
        remedy=remedy,
        exit_status=evidence.exit_status,
        log_tail=evidence.log_tail[-SHOWN_LINES:],
        at_s=at_s,
    )


def _explain(evidence: Evidence) -> tuple[str, str, str]:
    status = evidence.exit_status
    was_killed = status in (None, -signal.SIGKILL)
    if was_killed and evidence.oom_kills > 0:
        return (
            "out_of_memory",
            "the kernel killed a process for want of memory while the engine ran, and the engine was killed",
            "free memory on the host, use a smaller model or raise the memory limit of the container",
        )
    if status is not None and status > 0 and (found := _match(evidence.log_tail)):
        return found
    if status is None:
        return "killed", "the engine's processes were killed or the host restarted", "nothing: it is started again"
    if status < 0:
        return "killed", f"the engine was ended by {_signal_name(-status)}", "nothing: it is started again"
    if status == 0:
        return "killed", "the engine was told to stop by somebody else than xinf", "nothing: it is started again"
    last = next((line for line in reversed(evidence.log_tail) if line.strip()), "it wrote nothing")
    return "crashed", f"the engine ended with status {status}: {last.strip()}", "read the whole log with `xinf logs`"


def _match(lines: Sequence[str]) -> tuple[str, str, str] | None:
    for rule in _RULES:
        for line in reversed(lines):
            if rule.pattern.search(line):
                return rule.cause, line.strip(), rule.remedy
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

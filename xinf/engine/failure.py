"""From whatever ended a start to a cause, a sentence and a remedy (docs/reference/errors.md lists the causes)."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator

from xinf.core.errors import EngineDied, EngineStartFailed
from xinf.core.records import ReplicaFailure

# Words in an engine's own errors, most telling first. Seen in: vLLM 0.32, torch 2.13, transformers 5.19.
_SIGNS: dict[str, tuple[str, ...]] = {
    "out_of_memory": (
        "out of memory",
        "no available memory for the cache",
        "(cannot|can't) allocate memory",
        "not enough memory",
        "larger than the available KV cache memory",
        "less than desired gpu memory utilization",
    ),
    "model_not_found": (
        "not a valid model identifier",
        "is not a local folder",
        "repository not found",
        "does not appear to have a file named",
        "cannot find the requested files",
        "couldn't connect to .* to load",
        "gated repo",
    ),
    "device_unavailable": (
        "no (cuda|hip) gpus are available",
        "failed to infer device type",
        "nvidia driver",
        "invalid device ordinal",
        "device.*(busy|unavailable)",
        "cuda.*not available",
    ),
    "model_unsupported": (
        "architectures? .* (are|is) not supported",
        "unsupported (model|quantization|dtype|head)",
        "head size .* not supported",
        "unknown quantization",
        "unrecognized model",
        "model type .* not recognize",
    ),
    "bad_arguments": (
        "unrecognized arguments?",
        "invalid choice",
        "expected one argument",
        "no common block size",
        r"validation errors? for \w*config",
        "must be divisible",
        "greater than the derived max_model_len",
    ),
}
_REMEDIES = {
    "out_of_memory": "choose a smaller model, a lower --max-model-len or a device with more memory",
    "model_not_found": "check the path or hub id; a hub id needs network access or the files in the cache",
    "model_unsupported": "choose another model, dtype, quantization or engine version",
    "bad_arguments": "correct the --engine-arg it names",
    "missing_dependency": "install the engine environment again: xinf engine install",
    "device_unavailable": "check `xinf devices` on the node, and that its driver works",
    "warmup_failed": "see the engine's log",
    "engine_died": "see the engine's log; the replica is restarted",
    "hung": "see the engine's log; the replica is restarted",
    "crashed": "see the engine's log",
}


def failure_of(error: BaseException, *, otherwise: str = "crashed") -> ReplicaFailure:
    """Explain what ended a start. `otherwise`: the cause when nothing in the error tells another."""
    causes = list(_chain(error))
    for one in causes:
        if isinstance(one, EngineStartFailed) and isinstance(one.fields.get("cause"), str):
            cause = str(one.fields["cause"])
            return _failure(cause, one.message, one.remedy)
    cause = next((found for one in causes if (found := _cause(one)) is not None), otherwise)
    return _failure(cause, _sentence(error), None)


def failure_with(cause: str, message: str) -> ReplicaFailure:
    """Give a failure of a known cause with the usual remedy."""
    return _failure(cause, message, None)


def _failure(cause: str, message: str, remedy: str | None) -> ReplicaFailure:
    return ReplicaFailure(
        cause=cause, message=message, remedy=remedy or _REMEDIES.get(cause, "see the engine's log"), at_s=time.time()
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _cause(error: BaseException) -> str | None:
    if isinstance(error, SystemExit):
        # argparse prints what is wrong and exits with 2; anybody else who exits while building has crashed.
        frames = traceback.extract_tb(error.__traceback__)
        return "bad_arguments" if any(frame.filename.endswith("argparse.py") for frame in frames) else None
    if isinstance(error, ImportError):
        return "missing_dependency"
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, EngineDied):
        return "engine_died"
    text = str(error)
    return next(
        (cause for cause, signs in _SIGNS.items() if any(re.search(sign, text, re.IGNORECASE) for sign in signs)), None
    )


def _sentence(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the engine ended its own start with exit status {error.code}; its last lines say why"
    first = str(error).strip().split("\n", 1)[0][:500]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__

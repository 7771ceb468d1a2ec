"""Why vLLM could not be built. Of what went wrong in EngineCore the shim learns "see root cause above": in the log."""

from __future__ import annotations

import re
from pathlib import Path

from xinf.core.errors import EngineStartFailed
from xinf.engine.failure import failure_of

_MAX_LOG_BYTES = 256 << 10

# vLLM 0.32: "(EngineCore pid=7) ERROR 11-24 03:00:00 [core.py:900] ValueError: No available memory for the cache ..."
_ERROR_LINE = re.compile(r"^(?:\(.*?\) )?(?:ERROR [^\]]*\] )?((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (\S.*)$")
_SEE_ABOVE = "Engine core initialization failed"
# Consequences, written by those who met them.
_NO_CAUSE = re.compile(
    _SEE_ABOVE + r"|EngineDeadError|EngineGenerateError|EngineStartFailed|EngineDied|BrokenPipeError"
)
_WRONG_VALUE = re.compile(r"^  (?:Value error|Assertion failed), (.*?)(?: \[type=|$)", re.MULTILINE)
# "gpu_memory_utilization\n  Input should be less than or equal to 1 [type=less_than_equal, input_value=2.0, ..."
_WRONG_FIELD = re.compile(r"^(\w[\w.]*)\n  (\S.*?) \[type=\w+, input_value=(.*?), input_type=", re.MULTILINE)
_CORE_KILLED = re.compile(r"Failed core proc\(s\): \{[^}]*: -9\b")


class EngineLog:
    """The part of the replica's log that this start writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = path.stat().st_size if path.is_file() else 0

    def root_cause(self) -> str | None:
        """The last error that a process of the engine wrote; None if there is none."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._begin, size - _MAX_LOG_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            match = _ERROR_LINE.match(line.strip())
            if match and not _NO_CAUSE.search(line):
                return f"{match[1].rpartition('.')[2]}: {match[2]}"
        return None


def explain(error: BaseException, log: EngineLog) -> EngineStartFailed:
    """Turn whatever ended a build into a typed error with a cause and a remedy."""
    if isinstance(error, EngineStartFailed):
        return error
    if _CORE_KILLED.search(str(error)):
        return EngineStartFailed(
            "the kernel killed the engine's process while it was built, most likely for want of memory",
            remedy="free memory on the host, use a smaller model or a lower --max-model-len",
            cause="out_of_memory",
        )
    if _SEE_ABOVE in str(error) and (cause := log.root_cause()) is not None:
        # Classified by its words, like an error of this process.
        found = failure_of(RuntimeError(cause))
        return EngineStartFailed(f"the engine failed to start: {cause}", remedy=found.remedy, cause=found.cause)
    found = failure_of(error)
    return EngineStartFailed(_wrong_value(str(error)) or found.message, remedy=found.remedy, cause=found.cause)


def _wrong_value(text: str) -> str | None:
    """What pydantic says of the first value that is wrong: its first line tells only how many are."""
    if (wrong := _WRONG_VALUE.search(text)) is not None:
        return wrong[1]
    field = _WRONG_FIELD.search(text)
    return None if field is None else f"{field[1]} = {field[3]}: {field[2]}"

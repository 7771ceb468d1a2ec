"""status.json: where this start stands, for the agent. Written by the main thread and by the watchdog's."""

from __future__ import annotations

import logging
import os
import threading
import time

import msgspec

from xinf.core.records import Phase, ReplicaFailure
from xinf.core.shim import ShimSpec, ShimStatus, read_file, write_file
from xinf.engine.adapter import EngineDescription

_log = logging.getLogger(__name__)


class StatusFile:
    """The status of one start. Failed is final: what is entered after it is not written."""

    def __init__(self, spec: ShimSpec) -> None:
        self._path = spec.status_path
        self._lock = threading.Lock()
        now_s = time.time()
        before = read_file(self._path, ShimStatus)  # the fetcher's: it was this very process
        self._status = ShimStatus(
            start_id=spec.start_id,
            pid=os.getpid(),
            phase=Phase.STARTING,
            phase_since_s={Phase.STARTING.value: now_s},
            fetched_monotonic_s=(
                before.fetched_monotonic_s if before is not None and before.start_id == spec.start_id else None
            ),
        )
        write_file(self._path, self._status)

    @property
    def phase(self) -> Phase:
        return self._status.phase

    @property
    def failure(self) -> ReplicaFailure | None:
        return self._status.failure

    def enter(self, phase: Phase) -> None:
        """Enter a phase; entering the present one again changes nothing."""
        if phase is not self._status.phase:
            self._replace(phase=phase, detail=None, phase_since_s=self._entered(phase))
            _log.info("phase %s", phase.value)

    def detail(self, sentence: str) -> None:
        """Say how the phase is going, for people."""
        self._replace(detail=sentence)

    def describe(self, engine: EngineDescription) -> None:
        """Say what the engine turned out to be."""
        self._replace(
            engine_version=engine.engine_version,
            block_tokens=engine.block_tokens,
            kv_blocks=engine.kv_blocks,
            max_model_len=engine.max_model_len,
        )

    def fail(self, failure: ReplicaFailure) -> None:
        """Enter failed for good; the first failure stays."""
        self._replace(phase=Phase.FAILED, detail=None, phase_since_s=self._entered(Phase.FAILED), failure=failure)
        _log.error("failed: %s", failure.message, extra={"kv": {"cause": failure.cause, "remedy": failure.remedy}})

    def _entered(self, phase: Phase) -> dict[str, float]:
        return {**self._status.phase_since_s, phase.value: time.time()}

    def _replace(self, **changes: object) -> None:
        with self._lock:
            if self._status.failure is None:
                self._status = msgspec.structs.replace(self._status, **changes)
                write_file(self._path, self._status)

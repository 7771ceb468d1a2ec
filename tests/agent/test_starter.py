"""What is left of a start that could not be written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.conftest import Bench
from xinf.agent.custody import Custody, ReplicaDirectory
from xinf.agent.memory import StartMemory
from xinf.agent.process import find_by_argument
from xinf.agent.starter import Starter
from xinf.core.clock import SystemClock
from xinf.core.records import Phase


async def test_process_that_cannot_be_written_down_does_not_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.place("r")
    record = await bench.until_phase("r", Phase.PLACED)
    directory = bench.directory("r")
    write, asked = ReplicaDirectory.write_custody, []

    def fail_with_a_pid(self: ReplicaDirectory, custody: Custody) -> None:
        asked.append(custody.process)
        if custody.process is not None:
            raise OSError(28, "No space left on device")
        write(self, custody)

    monkeypatch.setattr(ReplicaDirectory, "write_custody", fail_with_a_pid)
    with pytest.raises(OSError, match="No space left"):
        Starter(bench.config, SystemClock()).start(record, directory, StartMemory(), bench.node)
    before, process = asked
    assert before is None
    assert process is not None
    assert not Path(f"/proc/{process.pid}").exists()
    assert find_by_argument(str(directory.spec_path)) is None

"""What a fetcher tells while files come: often enough to be followed, seldom enough for the store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import PACKAGE_HOME
from xinf.agent.fetcher import FetchStatus, failure_of
from xinf.core.clock import FakeClock
from xinf.core.config import load
from xinf.core.errors import InvalidRequest, PermissionDenied, Unauthenticated, Unavailable, UnknownModel, XinfError
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec, Phase
from xinf.core.shim import FetchSpec, ShimSpec, ShimStatus, read_file, write_file
from xinf.engine.status import StatusFile
from xinf.registry import Progress


def spec_in(directory: Path) -> ShimSpec:
    return ShimSpec(
        replica=ReplicaId("m-1"),
        start_id="s1",
        engine=EngineSpec(model="org/name"),
        devices=("cpu",),
        fetch=FetchSpec(command=("python",), registry=load(environ={}).registry),
        listen="unix:/s",
        directory=str(directory),
    )


def told(spec: ShimSpec) -> ShimStatus:
    found = read_file(spec.status_path, ShimStatus)
    assert found is not None
    return found


def test_progress_is_told_at_once_and_then_every_two_seconds(tmp_path: Path) -> None:
    spec, clock = spec_in(tmp_path), FakeClock(100.0)
    status = FetchStatus(spec, clock)
    assert (told(spec).phase, told(spec).fetched_monotonic_s) == (Phase.STARTING, None)
    status.show(Progress(10 << 20, 100 << 20, "a"))
    assert (told(spec).detail, told(spec).fetched_monotonic_s) == ("fetching 10 %, 10 MiB of 100 MiB, 0 B/s", 100.0)
    clock.advance(1.9)
    status.show(Progress(20 << 20, 100 << 20, "a"))
    assert told(spec).fetched_monotonic_s == 100.0
    clock.advance(0.1)
    status.show(Progress(20 << 20, 100 << 20, "a"))
    assert (told(spec).detail, told(spec).fetched_monotonic_s) == ("fetching 20 %, 20 MiB of 100 MiB, 5 MiB/s", 102.0)
    status.others(3 << 20)
    assert told(spec).detail == "waiting for another process that fetches it: 3 MiB of this file are here"


def test_wait_for_a_hub_that_wants_to_be_left_alone_is_told_and_counts_as_progress(tmp_path: Path) -> None:
    spec, clock = spec_in(tmp_path), FakeClock(100.0)
    status = FetchStatus(spec, clock)
    status.show(Progress(10 << 20, 100 << 20, "a"))
    clock.advance(0.5)
    status.show(Progress(10 << 20, 100 << 20, "", waits_s=55.0))
    assert (told(spec).detail, told(spec).fetched_monotonic_s) == ("waiting for the hub: next try in 55s", 100.5)


class Jumping(FakeClock):
    """Somebody sets the time of day."""

    def set(self, jump_s: float) -> None:
        self._jump_s = jump_s

    def now_s(self) -> float:
        return super().now_s() + getattr(self, "_jump_s", 0.0)


@pytest.mark.parametrize("jump_s", [-4000.0, 4000.0])
def test_clock_that_is_set_neither_silences_it_nor_makes_it_chatter(jump_s: float, tmp_path: Path) -> None:
    spec, clock = spec_in(tmp_path), Jumping(5000.0)
    status = FetchStatus(spec, clock)
    status.show(Progress(10 << 20, 100 << 20, "a"))
    clock.set(jump_s)
    status.show(Progress(20 << 20, 100 << 20, "a"))
    assert told(spec).detail == "fetching 10 %, 10 MiB of 100 MiB, 0 B/s"
    clock.advance(2.0)
    status.show(Progress(20 << 20, 100 << 20, "a"))
    assert (told(spec).detail, told(spec).fetched_monotonic_s) == ("fetching 20 %, 20 MiB of 100 MiB, 5 MiB/s", 5002.0)


def test_shim_goes_on_with_what_its_fetcher_told(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    FetchStatus(spec, FakeClock(100.0)).show(Progress(1, 2, "a"))
    StatusFile(spec)
    assert (told(spec).fetched_monotonic_s, told(spec).detail) == (100.0, None)
    other = ShimSpec(**{name: getattr(spec, name) for name in spec.__struct_fields__} | {"start_id": "s2"})
    StatusFile(other)
    assert told(spec).fetched_monotonic_s is None, "of an earlier start"


def test_files_take_the_place_of_the_name_and_the_name_stays(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    assert spec.loaded == spec.engine
    fetched = ShimSpec(**{name: getattr(spec, name) for name in spec.__struct_fields__} | {"model_path": "/files"})
    assert (fetched.loaded.model, fetched.loaded.served_names) == ("/files", ("org/name",))
    assert fetched.engine.model == "org/name"


@pytest.mark.parametrize(("error", "cause"), [
    (UnknownModel("x"), "model_not_found"),
    (InvalidRequest("x"), "model_not_found"),
    (PermissionDenied("x"), "model_not_found"),
    (Unauthenticated("x"), "model_not_found"),
    (Unavailable("x"), "fetch_failed"),
    (Unavailable("x", cause="missing_dependency"), "missing_dependency"),
])  # fmt: skip
def test_failure_has_one_of_the_causes(error: XinfError, cause: str) -> None:
    assert failure_of(error).cause == cause


def test_fetcher_whose_engine_is_gone_says_so(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").write_bytes(b"x")
    path = tmp_path / "spec.json"
    write_file(path, msgspec.structs.replace(spec, engine=EngineSpec(model="org/name", commit="a" * 40)))
    command = [sys.executable, "-m", "xinf.agent.fetcher", str(path), str(tmp_path / "no-python")]
    environ = {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(PACKAGE_HOME), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    failure = told(spec).failure
    assert failure is not None
    assert (failure.cause, "no-python" in failure.message) == ("missing_dependency", True)

"""Which loads count as the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.registry.planned_models import GIB, card
from xinf.core.records import EngineSpec
from xinf.registry import fingerprint, identify_model

SPEC = EngineSpec(model="Org/Name", dtype="bf16", engine_args={"max_num_seqs": 8})


def digest(
    spec: EngineSpec = SPEC, identity: str = "Org/Name@abc", version: str = "0.32.0", arch: str = "sm_90"
) -> str:
    return fingerprint(identity, spec, engine_version=version, device=replace(card(), arch=arch))


@pytest.mark.parametrize(
    "same",
    [
        replace(SPEC, max_model_len=4096),
        replace(SPEC, dtype="bfloat16"),
        replace(SPEC, engine_args={"--max-num-seqs": 8, "max-model-len": 99, "gpu_memory_utilization": 0.5}),
        replace(SPEC, served_names=("x",), env={"A": "b"}),
        replace(SPEC, dtype="auto", engine_args={"max_num_seqs": 8, "dtype": "bf16"}),
    ],
)
def test_what_changes_only_the_cache_is_the_same_load(same: EngineSpec) -> None:
    assert digest(same) == digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, dtype="float16"),
        replace(SPEC, quantization="fp8"),
        replace(SPEC, tensor_parallel_size=2),
        replace(SPEC, engine_args={"max_num_seqs": 9}),
        replace(SPEC, engine_args={"max_num_seqs": 8, "enforce_eager": True}),
    ],
)
def test_what_changes_the_rest_is_another(other: EngineSpec) -> None:
    assert digest(other) != digest()


def test_model_version_and_architecture_are_told_apart() -> None:
    others = {digest(identity="Org/Name@abd"), digest(version="0.33.0"), digest(arch="sm_80")}
    assert len(others | {digest()}) == 4


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"memory_bytes": 40 * GIB}, True),  # batches as on 24 GiB
        ({"memory_bytes": 80 * GIB}, False),  # batches four times as large
        ({"memory_bytes": 80 * GIB, "name": "NVIDIA A100"}, False),  # the same batches, larger communicators
        ({"memory_bytes": 180 * GIB}, False),
        ({"driver": "570.86"}, True),
        ({"driver": "535.247.01"}, False),  # keeps three times as much for graphs
    ],
)
def test_card_of_another_size_is_another_only_where_engines_go_by_it(changes: dict[str, object], is_same: bool) -> None:
    """One architecture has cards of 24 and of 96 GiB, and parts of cards."""
    before = replace(card(24), driver="550.54")
    found = {
        fingerprint("Org/Name@abc", EngineSpec(model="Org/Name"), engine_version="0.32.0", device=one)
        for one in (before, replace(before, **changes))
    }
    assert (len(found) == 1) == is_same


def test_directory_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    before = identify_model(str(tmp_path), environ={})
    assert before is not None
    (tmp_path / "notes.txt").write_text("nobody loads this")
    assert identify_model(str(tmp_path), environ={}) == before
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert identify_model(str(tmp_path), environ={}) != before


def test_directory_without_a_model_is_none(tmp_path: Path) -> None:
    assert identify_model(str(tmp_path), environ={}) is None
    assert identify_model(str(tmp_path / "absent"), environ={}) is None


def test_hub_id_is_known_by_its_commit(tmp_path: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    assert identify_model("Org/Name", environ=environ) is None
    assert identify_model("Org/Name", revision="abc", environ=environ) == "Org/Name@abc"
    (tmp_path / "models--Org--Name" / "refs").mkdir(parents=True)
    (tmp_path / "models--Org--Name" / "refs" / "main").write_text("def\n")
    (tmp_path / "models--Org--Name" / "snapshots" / "def").mkdir(parents=True)
    (tmp_path / "models--Org--Name" / "snapshots" / "def" / "config.json").touch()
    assert identify_model("Org/Name", environ=environ) == "Org/Name@def"

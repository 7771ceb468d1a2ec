"""The modules of the request's path run compiled, and as they stand in the source now."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
TYPES = sorted((HERE / "xinf").rglob("*.pxd"))
COMPILED = [types.with_suffix(".py") for types in TYPES if types.with_suffix(".py").exists()]


def test_there_are_compiled_modules() -> None:
    assert HERE / "xinf" / "gateway" / "relay.py" in COMPILED


@pytest.mark.parametrize("source", COMPILED, ids=lambda source: source.stem)
def test_module_is_compiled_from_its_source(source: Path) -> None:
    module = importlib.import_module(".".join(source.relative_to(HERE).with_suffix("").parts))
    built = Path(str(module.__file__))
    assert built.name.endswith(tuple(EXTENSION_SUFFIXES)), f"{source.name} runs as Python: run `make build`"
    for path in (source, source.with_suffix(".pxd")):
        assert built.stat().st_mtime >= path.stat().st_mtime, f"{path.name} is newer than {built.name}: `make build`"

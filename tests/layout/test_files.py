"""File lengths, names that say nothing, generated code that is up to date, and that the project names no machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shares import SHARES, rank, share_of

LIMITS = {".py": 900, ".pyx": 1000}
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


def tracked(checkout: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(checkout), "ls-files"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split("\n")
    return [checkout / name for name in listed if name and (checkout / name).is_file()]


def test_files_are_short_and_called_by_a_noun(checkout: Path) -> None:
    for path in tracked(checkout):
        if path.suffix in LIMITS and "_pb" not in path.parts:
            n_lines = len(path.read_text().splitlines())
            assert n_lines <= LIMITS[path.suffix], f"{path} has {n_lines} lines, the limit is {LIMITS[path.suffix]}"
            assert path.stem not in EMPTY_NAMES, f"{path}: say what is in it"


def test_top_level_is_the_fixed_one(checkout: Path) -> None:
    top = {path.relative_to(checkout).parts[0] for path in tracked(checkout)}
    code = {"pyproject.toml", "setup.py", "xinf", "protos", "configs", "benchmarks", "tests", "docs"}
    words = {"README.md", "Makefile", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore", ".pre-commit-config.yaml"}
    assert top <= code | words


def test_no_path_of_one_machine(checkout: Path) -> None:
    pattern = re.compile(r"/(work|farm|opt/(wheels|pypi))/|/root/")
    for path in tracked(checkout):
        if path.suffix in {".py", ".pyx", ".md", ".toml", ".sh", ".lock", ""} and path.name != "test_files.py":
            assert not pattern.search(path.read_text(errors="replace")), path


def test_our_processes_look_for_modules_where_xinf_is(checkout: Path) -> None:
    """Without `-P`, `-m` looks in the working directory first; only the guard's is ours, not the user's."""
    unsafe = re.compile(r'sys\.executable, "-m"')
    found = {path for path in (checkout / "xinf").rglob("*.py") if unsafe.search(path.read_text())}
    assert found == {checkout / "xinf/engine/guard.py"}


def test_tests_mirror_the_packages(checkout: Path) -> None:
    packages = {path.parent.name.lstrip("_") for path in (checkout / "xinf").glob("*/__init__.py")} - {"pb"}
    missing = {name for name in packages if not list((checkout / "tests" / name).glob("test_*.py"))}
    assert not missing, f"packages without tests: {sorted(missing)}"


def test_shares_of_the_suite_name_what_is_there(checkout: Path) -> None:
    missing = [name for _, beginnings in SHARES for name in beginnings if not (checkout / name).exists()]
    assert not missing, f"tests/shares.py names what is gone: {missing}"


def test_share_is_the_first_that_names_the_file_or_the_file() -> None:
    assert share_of("tests/gateway/fronts/test_load.py::test_a[direct]") == "fronts-load"
    assert share_of("tests/gateway/fronts/test_admin.py::test_b") == "fronts"
    assert share_of("tests/core/test_units.py::test_c[a::b]") == "tests/core/test_units.py"
    assert rank("tests/e2e/test_memory.py::test_d") == 0
    assert rank("tests/core/test_units.py::test_c") == len(SHARES)


def test_generated_code_is_what_the_protos_say(checkout: Path, tmp_path: Path) -> None:
    tools = checkout / ".build" / "proto-tools"
    if not tools.is_dir():
        pytest.fail("run `make build` first: it installs the pinned protoc into .build/proto-tools")
    subprocess.run(
        [str(checkout / "protos" / "generate.sh"), sys.executable, str(tools), str(tmp_path)], check=True, timeout=120
    )
    made = sorted((tmp_path / "xinf" / "_pb").iterdir())
    assert len(made) == 6
    for path in made:
        assert path.read_text() == (checkout / "xinf" / "_pb" / path.name).read_text(), (
            f"run `make proto`: {path.name} is old"
        )

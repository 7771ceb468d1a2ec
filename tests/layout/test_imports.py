"""The import table of the house: who may import whom, parsed from the source, and that the CLI loads light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Package -> packages of xinf that it may import, besides itself and `xinf` alone. docs/reference/layout.md explains it.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "_pb": set(),
    "_fast": set(),
    "link": set(),
    "device": {"core"},
    "registry": {"core"},
    "meta": {"core", "_pb"},
    "router": {"core", "_fast"},
    "sim": {"core", "_fast"},
    "chat": {"core", "registry"},
    "scheduler": {"core", "meta", "registry"},
    "agent": {"core", "meta", "registry", "device", "_pb"},
    "engine": {"core", "chat", "sim", "link", "_fast", "_pb"},
    "gateway": {"core", "meta", "router", "chat", "registry", "link", "_fast", "_pb"},
    "serve": {"core", "meta", "scheduler", "gateway"},
    "bench": {"core", "router", "sim", "_fast"},
}
ALLOWED["cli"] = set(ALLOWED) - {"engine"}
HEAVY = (
    "torch",
    "vllm",
    "grpc",
    "granian",
    "numpy",
    "lmdb",
    "matplotlib",
    "huggingface_hub",
    "modelscope_hub",
    "xinf.bench",
)


def imports_of(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names if node.module == "xinf"]
    return found


def sources(checkout: Path) -> list[Path]:
    return [path for path in sorted((checkout / "xinf").rglob("*.py")) if "_data" not in path.parts]


def test_packages_import_only_what_the_table_allows(checkout: Path) -> None:
    wrong: list[str] = []
    for path in sources(checkout):
        package = path.relative_to(checkout / "xinf").parts[0]
        if package.endswith(".py"):
            continue
        assert package in ALLOWED, f"{package} is not in the import table"
        for line, name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "xinf" and len(parts) > 1 and parts[1] not in ALLOWED[package] | {package, "__version__"}:
                wrong.append(f"{path.relative_to(checkout)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_modules_are_imported_only_by_their_own_package(checkout: Path) -> None:
    """A module is reached through its package; in core, _fast and _pb the modules are the surface."""
    wrong: list[str] = []
    for path in sources(checkout):
        package = path.relative_to(checkout / "xinf").parts[0]
        for line, name in imports_of(path):
            parts = name.split(".")
            if len(parts) > 2 and parts[0] == "xinf" and parts[1] not in {package, "core", "_fast", "_pb"}:
                wrong.append(f"{path.relative_to(checkout)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_vllm_is_imported_by_the_engine_alone(checkout: Path) -> None:
    users = {
        path.relative_to(checkout).as_posix()
        for path in sources(checkout)
        for _, name in imports_of(path)
        if name.split(".")[0] == "vllm"
    }
    assert all(user.startswith("xinf/engine/vllm_") for user in users), users


@pytest.mark.parametrize("module", ["xinf", "xinf.cli"])
def test_import_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_every_package_says_what_it_owns(checkout: Path) -> None:
    for init in sorted((checkout / "xinf").glob("*/__init__.py")):
        tree = ast.parse(init.read_text())
        assert ast.get_docstring(tree), f"{init} has no docstring"
        names = {
            t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
        }
        names |= {
            node.target.id
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        assert "__all__" in names, f"{init} has no __all__"

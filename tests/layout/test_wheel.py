"""The wheel as users install it: not editable, away from the checkout, with its configuration and extensions inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the checkout and unpack it into a directory of its own."""
    checkout = Path(__file__).resolve().parents[2]
    # A copy of what git would hand out: building in the checkout would leave build/ behind and pack what lies there.
    source = tmp_path_factory.mktemp("source") / "xinf"
    ignored = (".git", ".venv", ".engines", ".build", "build", "_data", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(checkout, source, ignore=shutil.ignore_patterns(*ignored))
    take_compiled(source)
    wheels = tmp_path_factory.mktemp("wheel")
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=True, timeout=300
    )
    (wheel,) = wheels.glob("xinf-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=120)
    return target


def take_compiled(source: Path) -> None:
    """Move the extensions to where the build would put them; it compiles those that are older than their source.

    They come from the same setup.py (`make build`), and compiling them once more takes minutes of a processor.
    """
    built = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for extension in sorted((source / "xinf").rglob(f"*{EXTENSION_SUFFIXES[0]}")):
        target = built / extension.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        extension.rename(target)


def run(installed: Path, *args: str) -> str:
    # PYTHONPATH goes before the editable install of the checkout; safe path keeps the current directory out.
    environ = dict(os.environ, PYTHONPATH=str(installed), PYTHONSAFEPATH="1")
    done = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=environ, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_carries_configs_and_extensions(installed: Path) -> None:
    code = """
import xinf, xinf._fast.scan, xinf._fast.prefix
from xinf.core.config import configs_dir, load
print(xinf.__file__); print(xinf._fast.scan.__file__); print(configs_dir())
assert load(environ={}).gateway.port == 8080
assert (configs_dir() / "engines" / "vllm-cpu.lock").is_file()
"""
    assert all(line.startswith(str(installed)) for line in run(installed, "-c", code).splitlines())


def test_wheel_has_each_extension_of_the_source_and_no_other(installed: Path, checkout: Path) -> None:
    package = checkout / "xinf"
    types = [path for path in package.rglob("*.pxd") if path.with_suffix(".py").exists()]
    sources = {path.relative_to(package).with_suffix("") for path in (*package.rglob("*.pyx"), *types)}
    extensions = (installed / "xinf").rglob("*.so")
    assert {
        path.relative_to(installed / "xinf").with_name(path.name.partition(".")[0]) for path in extensions
    } == sources


def test_wheel_declares_the_vllm_plugin_and_the_command(installed: Path) -> None:
    (metadata,) = installed.glob("xinf-*.dist-info")
    text = (metadata / "entry_points.txt").read_text()
    assert "xinf_deathsig = xinf.engine.deathsig:register" in text
    assert "xinf = xinf.cli:main" in text


def test_wheel_passes_the_unit_tests(installed: Path, checkout: Path) -> None:
    tests = [str(checkout / "tests" / name) for name in ("core", "router", "chat")]
    # How well it decides, against the model and in simulations, does not depend on where the package lies.
    for name in ("decisions", "mixed_decisions", "simulated"):
        tests.append(f"--ignore={checkout / 'tests' / 'router' / f'test_{name}.py'}")
    out = run(
        installed,
        "-m",
        "pytest",
        "-q",
        "-o",
        "pythonpath=",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(checkout),
        *tests,
    )
    assert " passed" in out
    assert " failed" not in out

"""Cython extensions and the package's copy of configs/; everything else is in pyproject.toml.

XINF_TRACE=1     line tracing and bounds checks, for coverage
XINF_SANITIZE=1  address and undefined-behaviour sanitizers, for `make fuzz`
Both need a directory of their own, XINF_BUILD_DIR: C sources, objects and lib/xinf/_fast/*.so go there and nowhere
else, so that a plain build is never mixed with one:
    XINF_SANITIZE=1 XINF_BUILD_DIR=.build/sanitize python setup.py build_ext
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
TRACE = os.environ.get("XINF_TRACE") == "1"
SANITIZE = os.environ.get("XINF_SANITIZE") == "1"
BUILD_DIR = os.environ.get("XINF_BUILD_DIR")

if (TRACE or SANITIZE) and not BUILD_DIR:
    raise SystemExit("XINF_TRACE and XINF_SANITIZE need XINF_BUILD_DIR, a directory for that build alone")

# What is not warned of is what Cython makes, not what it is made from.
cflags = ["-O3", "-std=c11", "-Wall", "-Wno-sign-compare", "-Wno-unused-function", "-Wno-unreachable-code"]
ldflags: list[str] = []
macros: list[tuple[str, str | None]] = []
if TRACE:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
if SANITIZE:
    cflags = [
        "-O1",
        "-g",
        "-std=c11",
        "-Wno-unused-function",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ]
    ldflags = ["-fsanitize=address,undefined"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": TRACE,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "linetrace": TRACE,
}

# Python's own meaning: checked indices, negative ones, annotations that are for readers.
AS_PYTHON = {"boundscheck": True, "wraparound": True, "annotation_typing": False, "embedsignature": False}


class BuildWithConfigs(build_py):
    """Copy configs/ into the package, so that a wheel carries what `xinf` reads at run time."""

    def run(self) -> None:
        data = ROOT / "xinf" / "_data"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(ROOT / "configs", data / "configs")
        super().run()


class BuildApart(build_ext):
    """Compile on all cores; keep everything that is built in XINF_BUILD_DIR, if one is given."""

    def finalize_options(self) -> None:
        self.parallel = os.cpu_count()
        if BUILD_DIR:
            self.build_lib, self.build_temp = f"{BUILD_DIR}/lib", f"{BUILD_DIR}/objects"
        super().finalize_options()
        if BUILD_DIR:
            self.inplace = False


def extensions(sources: Iterable[Path], directives: Mapping[str, object]) -> list[Extension]:
    """Make xinf/a/b.pyx, or the module xinf/a/b.py with its types in b.pxd, the extension xinf.a.b."""
    found = [
        Extension(
            ".".join(source.relative_to(ROOT).with_suffix("").parts),
            [str(source.relative_to(ROOT))],
            extra_compile_args=cflags,
            extra_link_args=ldflags,
            define_macros=macros,
        )
        for source in sources
    ]
    return cythonize(
        found,
        compiler_directives={**DIRECTIVES, **directives},
        nthreads=os.cpu_count() or 1,
        build_dir=f"{BUILD_DIR}/c" if BUILD_DIR else None,
    )


leaves = sorted((ROOT / "xinf" / "_fast").glob("*.pyx"))
# The request's path (ADR 0017): Python modules, compiled with the types that stand beside them. Not for the sanitizers,
# which are to look at C of our own.
types = [path for package in ("gateway", "link") for path in sorted((ROOT / "xinf" / package).glob("*.pxd"))]
compiled = [] if SANITIZE else [path.with_suffix(".py") for path in types]

setup(
    ext_modules=[*extensions(leaves, {}), *extensions(compiled, AS_PYTHON)],
    cmdclass={"build_ext": BuildApart, "build_py": BuildWithConfigs},
)

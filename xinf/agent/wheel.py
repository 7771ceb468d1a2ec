"""Packs the xinf that is running into a wheel, for the environments of engines.

Engine environments run the same xinf as the gateway, installed without its dependencies. Packing what is imported here,
instead of building from a checkout, works the same for an installed wheel and an editable checkout, compiles nothing
and can never give engines another version than the one that starts them.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.machinery
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import xinf
from xinf.core.config import configs_dir
from xinf.core.errors import ConfigError

_SOURCES = {".py", ".pyi", ".typed", ".toml", ".lock"}
_EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[0]  # ".cpython-311-x86_64-linux-gnu.so"
# What vLLM must find there. No dependencies and no `xinf` command: the CLI cannot run there.
_ENTRY_POINTS = "[vllm.general_plugins]\nxinf_deathsig = xinf.engine.deathsig:register\n"
# A fixed time makes equal content an equal file; zip knows none before 1980.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def package_digest() -> str:
    """Digest of everything that the wheel would hold; changes when and only when a reinstall is due."""
    digest = hashlib.sha256()
    for name, content in _contents():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def write_wheel(directory: Path) -> Path:
    """Write the wheel into `directory`. Raises: ConfigError when the Cython core is not built."""
    version = xinf.__version__
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    path = directory / f"xinf-{version}-{python}-{python}-{platform}.whl"
    info = f"xinf-{version}.dist-info"
    record: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={sha256},{len(content)}")

        for name, content in _contents():
            add(name if not name.startswith("/") else f"{info}{name}", content)
        tag = f"{python}-{python}-{platform}"
        add(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: xinf\nRoot-Is-Purelib: false\nTag: {tag}\n".encode())
        record.append(f"{info}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", _ZIP_TIME), "\n".join(record) + "\n")
    return path


def _contents() -> Iterator[tuple[str, bytes]]:
    """Names and contents, sorted. A name with a slash in front belongs into the dist-info directory."""
    package = Path(xinf.__file__).parent
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package)
        if path.suffix == ".pyx" and not path.with_name(path.stem + _EXTENSION).exists():
            raise ConfigError(f"{path} is not compiled for this Python", remedy="run `make build`")
        wanted = path.suffix in _SOURCES or path.name.endswith(_EXTENSION)
        if wanted and path.is_file() and relative.parts[0] != "_data":
            yield f"xinf/{relative.as_posix()}", path.read_bytes()
    configs = configs_dir()
    for path in sorted(configs.rglob("*")):
        if path.is_file() and path.suffix in _SOURCES:
            yield f"xinf/_data/configs/{path.relative_to(configs).as_posix()}", path.read_bytes()
    yield "/METADATA", f"Metadata-Version: 2.1\nName: xinf\nVersion: {xinf.__version__}\n".encode()
    yield "/entry_points.txt", _ENTRY_POINTS.encode()

"""What devices and engines can do, as data: the tables of configs/engine_compatibility.toml, read and checked.

    [[dtype]]         vendor x architecture        how its units compute in each data type: facts of the hardware
    [[isa]]           processor flags              raises one level of a [[dtype]] row of processors
    [[quantization]]  method                       what it stores and multiplies in
    [[methods]]       engine x versions            the names of methods that it takes without a plugin
    [[backend]]       engine x vendor              which distribution serves it
    [[feature]]       engine x versions x vendor   what the engine does there: methods, dtypes, features

Hardware and engine are apart on purpose: an engine may list a method that the device has no unit for, and a device may
have units that no engine uses. Every row names its source; what no source says is `unknown`, never `none`. The
[[engine]] table is read by xinf/agent/environment.py.

Which row holds for a device: its architecture is compared, or its name where that is not known; of several patterns
that fit, the most specific is meant. Tables in which that would be open are refused when they are read.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from xinf.core.config import configs_dir
from xinf.core.device import Device, Dtype, Support, Vendor
from xinf.core.errors import ConfigError
from xinf.registry.pattern import is_match, may_meet, weight
from xinf.registry.version import check_range, is_in_range, may_share

FILE = "engine_compatibility.toml"
FEATURES = (
    "serve",  # the engine runs there at all
    "chunked_prefill",
    "prefix_caching",
    "lora",
    "speculative_decoding",
    "fp8_kv_cache",
    "mla",
    "graphs",
    "dtype_fallback",  # takes another type by itself where the device has not the model's
)
_OTHER_TABLES = ("engine",)  # read elsewhere


class DtypeRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one generation of devices computes."""

    vendor: Vendor
    generation: str
    arch: tuple[str, ...]
    fp32: Support
    fp16: Support
    bf16: Support
    int8: Support
    int4: Support
    fp8_e4m3: Support
    fp8_e5m2: Support
    fp4: Support
    source: str
    note: str | None = None

    def level(self, dtype: Dtype) -> Support:
        found: Support = getattr(self, dtype.value)
        return found


class IsaRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a flag of a processor adds. Any one of `flags` will do."""

    arch: tuple[str, ...]
    flags: tuple[str, ...]
    dtype: Dtype
    level: Support
    source: str
    note: str | None = None


class QuantizationRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a method stores weights in and multiplies in; None: each model says."""

    method: str
    aliases: tuple[str, ...] = ()
    weights: Dtype | None = None
    activations: Dtype | None = None
    is_widened: bool = False  # activations are the model's own, for every model
    source: str
    note: str | None = None


class MethodsRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The names of quantization that an engine takes by itself: a closed list, which plugins may add to."""

    engine: str
    versions: str
    names: tuple[str, ...]
    source: str
    note: str | None = None


class BackendRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which distribution makes an engine serve a vendor's devices."""

    engine: str
    vendor: Vendor
    distribution: str
    is_in_tree: bool  # part of the engine; False: a plugin beside it
    install: str
    source: str
    note: str | None = None


class FeatureRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine does on some devices. One of `quantization`, `dtype`, `feature` says of what the row speaks.

    `native`: it does it; `weight_only`: with widened weights; `none`: it refuses or fails.
    """

    engine: str
    versions: str
    vendor: Vendor | None = None  # None: all
    arch: tuple[str, ...] = ("*",)
    quantization: tuple[str, ...] = ()  # methods
    dtype: tuple[Dtype, ...] = ()
    feature: tuple[str, ...] = ()
    # Conditions; a row with more of them beats one with fewer.
    weights: tuple[Dtype, ...] = ()  # only where weights are stored in one of these
    activations: tuple[Dtype, ...] = ()
    models: tuple[str, ...] = ()  # model_type in config.json
    isa: tuple[str, ...] = ()  # any of these processor flags
    level: Support
    source: str
    note: str | None = None
    suggestion: str | None = None

    @property
    def subjects(self) -> frozenset[str]:
        """Of what the row speaks, in one name space."""
        return frozenset(
            (*(f"quantization {name}" for name in self.quantization), *(f"dtype {name.value}" for name in self.dtype))
        ) | {f"feature {name}" for name in self.feature}

    @property
    def n_conditions(self) -> int:
        return sum(map(bool, (self.vendor, self.weights, self.activations, self.models, self.isa)))


class Compatibility(msgspec.Struct, frozen=True, kw_only=True):
    """All tables."""

    dtype: tuple[DtypeRow, ...]
    isa: tuple[IsaRow, ...]
    quantization: tuple[QuantizationRow, ...]
    methods: tuple[MethodsRow, ...]
    backend: tuple[BackendRow, ...]
    feature: tuple[FeatureRow, ...]

    def row_of(self, device: Device) -> DtypeRow | None:
        """Find the row of a device's generation; None: no source says anything of it."""
        # A name may look like that of another generation: an Ascend called 910B is a 910A.
        known_as = device.arch or device.name
        fits = [(best_weight(row.arch, known_as), row) for row in self.dtype if row.vendor is device.vendor]
        known = [(found, row) for found, row in fits if found is not None]
        return max(known, key=lambda fit: fit[0])[1] if known else None

    def method(self, name: str) -> QuantizationRow | None:
        """Find a quantization method by any of its names."""
        return next((row for row in self.quantization if name in (row.method, *row.aliases)), None)

    def methods_of(self, engine: str, version: str | None = None) -> MethodsRow | None:
        """Find the names of methods of an engine version (None: of the newest); None: no row speaks of it."""
        rows = [row for row in self.methods if row.engine == engine and is_in_range(version, row.versions)]
        return rows[-1] if rows else None

    def backend_of(self, engine: str, vendor: Vendor) -> BackendRow | None:
        return next((row for row in self.backend if (row.engine, row.vendor) == (engine, vendor)), None)

    def features_of(self, engine: str, version: str | None, device: Device) -> list[tuple[tuple[int, int], FeatureRow]]:
        """List the rows of an engine on a device, each with its rank. Conditions on models are the caller's."""
        flags = isa_flags(device)
        found: list[tuple[tuple[int, int], FeatureRow]] = []
        for row in self.feature:
            if (
                row.engine != engine
                or row.vendor not in (None, device.vendor)
                or not is_in_range(version, row.versions)
            ):
                continue
            if row.isa and not flags & set(row.isa):
                continue
            weights = (best_weight(row.arch, name) for name in names_of(device))
            heaviest = max((found for found in weights if found is not None), default=None)
            if heaviest is not None:
                found.append(((row.n_conditions, heaviest), row))
        return found


def capabilities(device: Device, table: Compatibility | None = None) -> dict[Dtype, Support]:
    """Say how a device computes in each data type; `unknown` for all of them where no row fits."""
    table = table or shipped()
    row = table.row_of(device)
    levels = {dtype: Support.UNKNOWN if row is None else row.level(dtype) for dtype in Dtype}
    flags = isa_flags(device)
    for raised in table.isa if device.vendor is Vendor.CPU else ():
        if flags & set(raised.flags) and best_weight(raised.arch, device.arch or "") is not None:
            levels[raised.dtype] = raised.level
    return levels


def isa_flags(device: Device) -> frozenset[str]:
    """Instruction sets that the probe found on a processor."""
    return frozenset(str(device.extra.get("isa", "")).split())


def names_of(device: Device) -> tuple[str, ...]:
    """What the patterns of [[feature]] rows are compared with: some speak of one product among its generation."""
    return (device.arch, device.name) if device.arch else (device.name,)


def best_weight(patterns: Iterable[str], name: str) -> int | None:
    """How specific the best pattern is that fits; None: none does."""
    return max((weight(pattern) for pattern in patterns if is_match(pattern, name)), default=None)


@functools.cache
def shipped() -> Compatibility:
    """The tables that came with this xinf, read once. Raises: ConfigError."""
    return read_compatibility(configs_dir() / FILE)


R = TypeVar("R", DtypeRow, IsaRow, QuantizationRow, MethodsRow, BackendRow, FeatureRow)


def read_compatibility(path: Path) -> Compatibility:
    """Read and check the tables of a file.

    Raises: ConfigError naming the row and the field.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is unreadable: {error}", remedy="install xinf again") from error
    known = (*Compatibility.__struct_fields__, *_OTHER_TABLES)
    if unknown := sorted(set(content) - set(known)):
        raise ConfigError(f"{path.name} has no table [[{unknown[0]}]]", remedy=f"use {', '.join(known)}")
    table = Compatibility(
        dtype=_rows(content, "dtype", DtypeRow, path),
        isa=_rows(content, "isa", IsaRow, path),
        quantization=_rows(content, "quantization", QuantizationRow, path),
        methods=_rows(content, "methods", MethodsRow, path),
        backend=_rows(content, "backend", BackendRow, path),
        feature=_rows(content, "feature", FeatureRow, path),
    )
    for named in table.methods:
        _check_versions(named.versions, f"{path.name}: [[methods]] row ({named.engine})")
    for row in table.feature:
        _check_feature(row, table, path)
    _check_meetings(table, path)
    return table


def _rows(content: dict[str, Any], name: str, kind: type[R], path: Path) -> tuple[R, ...]:
    rows = content.get(name, [])
    if not isinstance(rows, list):
        raise ConfigError(f"{path.name}: {name} is no array of tables", remedy=f"write [[{name}]]")
    made: list[R] = []
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}: [[{name}]] row {number} ({_label(row)})"
        try:
            made.append(msgspec.convert(row, kind))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}", remedy="correct that field") from error
        for field in ("source", "arch", "flags", "method", "names", "generation", "distribution"):
            if not getattr(made[-1], field, "-"):
                raise ConfigError(f"{where}: field {field!r} is empty", remedy="say it")
    return tuple(made)


def _label(row: object) -> str:
    """Words by which a reader finds a row in the file."""
    if not isinstance(row, dict):
        return "no table"
    words = [row.get(field) for field in ("engine", "vendor", "generation", "method", "distribution", "flags")]
    words += [row.get(field) for field in ("quantization", "feature", "dtype")]
    return " ".join(" ".join(map(str, word)) if isinstance(word, list) else str(word) for word in words if word)


def _check_feature(row: FeatureRow, table: Compatibility, path: Path) -> None:
    where = f"{path.name}: [[feature]] row ({_label(msgspec.to_builtins(row))})"
    if sum(map(bool, (row.quantization, row.dtype, row.feature))) != 1:
        raise ConfigError(f"{where}: needs one of quantization, dtype, feature", remedy="split the row")
    for feature in row.feature:
        if feature not in FEATURES:
            raise ConfigError(
                f"{where}: field 'feature': {feature!r} is not known", remedy=f"use {', '.join(FEATURES)}"
            )
    methods = {known.method for known in table.quantization}
    for method in row.quantization:
        if method not in methods:
            raise ConfigError(f"{where}: field 'quantization': {method!r} has no [[quantization]] row", remedy="add it")
    if not row.arch:
        raise ConfigError(f"{where}: field 'arch' is empty", remedy='leave it out or write ["*"]')
    _check_versions(row.versions, where)
    if row.level is Support.NONE and row.suggestion is None:
        raise ConfigError(f"{where}: field 'suggestion' is missing", remedy="say what to do instead")


def _check_versions(versions: str, where: str) -> None:
    try:
        check_range(versions)
    except ValueError as error:
        raise ConfigError(f"{where}: field 'versions': {error}", remedy="correct that field") from error


def _check_meetings(table: Compatibility, path: Path) -> None:
    """Refuse tables in which two rows could claim the same with the same right."""
    for a, b in combinations(table.dtype, 2):
        if a.vendor is b.vendor and (met := _meeting(a.arch, b.arch)):
            raise ConfigError(
                f"{path.name}: [[dtype]] rows {_label(msgspec.to_builtins(a))} and {_label(msgspec.to_builtins(b))}: "
                f"patterns {met[0]!r} and {met[1]!r} may fit the same device",
                remedy="make one of them longer",
            )
    names = [name for row in table.quantization for name in (row.method, *row.aliases)]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path.name}: [[quantization]] {twice!r} is there twice", remedy="remove one")
    for old, new in combinations(table.methods, 2):
        if old.engine == new.engine and may_share(old.versions, new.versions):
            raise ConfigError(
                f"{path.name}: [[methods]] {old.engine} {old.versions} and {new.versions} meet", remedy="narrow one"
            )
    for first, second in combinations(table.feature, 2):
        if subject := _clash(first, second):
            raise ConfigError(
                f"{path.name}: two [[feature]] rows of {first.engine} say the same of {subject} on "
                f"{first.vendor or 'all devices'} {'/'.join(first.arch)} and {'/'.join(second.arch)}",
                remedy="narrow one of them by arch, weights, activations, models or isa",
            )


def _clash(first: FeatureRow, second: FeatureRow) -> str | None:
    """Of what two rows speak with equal right; None: nothing."""
    if (first.engine, first.vendor, first.n_conditions) != (second.engine, second.vendor, second.n_conditions):
        return None
    if not first.subjects & second.subjects or not may_share(first.versions, second.versions):
        return None
    for field in ("weights", "activations", "models"):
        ours, theirs = set(getattr(first, field)), set(getattr(second, field))
        if ours and theirs and not ours & theirs:
            return None
    if _meeting(first.arch, second.arch) is None:
        return None
    return min(first.subjects & second.subjects)


def _meeting(first: Sequence[str], second: Sequence[str]) -> tuple[str, str] | None:
    """Two patterns, one of each row, that may fit one name and are equally specific."""
    for a in first:
        for b in second:
            if weight(a) == weight(b) and may_meet(a, b):
                return a, b
    return None

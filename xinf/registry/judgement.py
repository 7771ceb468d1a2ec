"""Whether a device can run what is wished for, and how: facts of the hardware and of the engine against a need.

Each question (runs the engine there? the type it computes in? the packing of its weights? each feature?) gives a
finding; the worst is the verdict: none before unknown before weight_only before native. `none` refuses, `unknown`
warns, `weight_only` is said. Nothing here does I/O beyond reading the shipped tables once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from xinf.core.device import KIND_OF_VENDOR, Device, Dtype, Support
from xinf.core.model import ModelFacts
from xinf.core.records import EngineEnvironment, EngineSpec
from xinf.registry.compatibility import Compatibility, FeatureRow, capabilities, shipped
from xinf.registry.method import advise_method, has_method
from xinf.registry.need import Need, need_of

SEVERITY = (Support.NONE, Support.UNKNOWN, Support.WEIGHT_ONLY, Support.NATIVE)  # the worst first
_WIDE = (Dtype.FP32, Dtype.FP16, Dtype.BF16)
_FALLBACKS = (Dtype.BF16, Dtype.FP16, Dtype.FP32)  # vLLM 0.32, platforms/interface.py `supported_dtypes`
_FLAG_OF = {Dtype.FP32: "float32", Dtype.FP16: "float16", Dtype.BF16: "bfloat16"}
_SIMULATED = "sim"

_Ranked = Sequence[tuple[tuple[int, int], FeatureRow]]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a device would run something."""

    level: Support
    reason: str
    suggestion: str | None = None  # what to do instead, where it is refused
    sources: tuple[str, ...] = ()  # of what the reason says

    @property
    def is_refused(self) -> bool:
        return self.level is Support.NONE

    def __str__(self) -> str:
        return self.reason if self.suggestion is None else f"{self.reason}: {self.suggestion}"


class _Finding(msgspec.Struct, frozen=True):
    level: Support
    text: str = ""
    suggestion: str | None = None
    source: str | None = None
    is_notable: bool = False  # said beside whatever is worse


def judge_spec(
    spec: EngineSpec,
    device: Device,
    environment: EngineEnvironment | None,
    facts: ModelFacts | None = None,
    table: Compatibility | None = None,
) -> Verdict:
    """Judge a specification on one device. Works from the specification alone where the model's facts are not known.

    `environment`: which engine version would run it; None: any that the tables know.
    """
    if spec.engine == _SIMULATED:
        return Verdict(level=Support.NATIVE, reason="the simulated engine computes nothing")
    version = environment.version if environment is not None and spec.engine in environment.engines else None
    return judge(spec.engine, version, device, need_of(spec, facts, table), table)


def refusal_of(
    spec: EngineSpec, device: Device, environment: EngineEnvironment | None, facts: ModelFacts | None = None
) -> str | None:
    """Why a device cannot run a specification, with what to do instead; None: it can, as far as anybody knows."""
    verdict = judge_spec(spec, device, environment, facts)
    return str(verdict) if verdict.is_refused else None


def judge(engine: str, version: str | None, device: Device, need: Need, table: Compatibility | None = None) -> Verdict:
    """Judge a need on one device with an engine of this version (None: any)."""
    table = table or shipped()
    case = _Case(engine, version, device, need, table)
    findings = [*case.serving(), *case.computing(), *case.packing(), *case.features()]
    worst = min((finding.level for finding in findings), key=SEVERITY.index, default=Support.UNKNOWN)
    # What refuses needs no company; otherwise everything that is not plain is said, the worst first.
    said = [
        finding for finding in findings if finding.text and (finding.level is worst or not _is_plain(finding, worst))
    ]
    said.sort(key=lambda finding: SEVERITY.index(finding.level))
    return Verdict(
        level=worst,
        reason="; ".join(_unique(finding.text for finding in said)),
        suggestion=next((finding.suggestion for finding in said if finding.suggestion), None),
        sources=_unique(finding.source for finding in said if finding.source),
    )


class _Case:
    """One judgement under way: every method answers one question with findings."""

    def __init__(self, engine: str, version: str | None, device: Device, need: Need, table: Compatibility) -> None:
        self._engine = f"{engine} {version}" if version else engine
        self._need = need
        self._table = table
        self._name, self._version = engine, version
        self._vendor = device.vendor
        self._arch = device.arch or device.name
        self._kind = KIND_OF_VENDOR[device.vendor]
        self._levels = capabilities(device, table)
        self._rows: _Ranked = table.features_of(engine, version, device)
        row = table.row_of(device)
        self._source = None if row is None else row.source

    def serving(self) -> Iterable[_Finding]:
        """Whether the engine runs there at all."""
        row = self._row("feature serve")
        if row is None:
            yield _Finding(Support.UNKNOWN, f"no source says whether {self._engine} runs on {self._arch}")
        else:
            yield self._of_engine(row, f"{self._engine} does not run on {self._arch}", "runs")

    def computing(self) -> Iterable[_Finding]:
        """Whether the device computes in the type, and whether the engine lets it."""
        dtype = self._need.dtype
        other = next((each for each in _FALLBACKS if self._computes_in(each).level is not Support.NONE), None)
        if dtype is None and not self._need.is_dtype_free:
            yield _Finding(Support.UNKNOWN, "the type that it is to compute in is not known")
            return
        if dtype is None:
            # The model may be in any of them: nothing is refused that only a guess is against.
            yield self._computes_in(other or _FALLBACKS[0])
            return
        finding = self._computes_in(dtype)
        if finding.level is not Support.NONE or other is None:
            yield finding
        elif self._need.is_dtype_free and self._falls_back(dtype):
            text = f"{finding.text}: the engine falls back to {_name(other)}"
            yield msgspec.structs.replace(self._computes_in(other), text=text, is_notable=True)
        else:
            suggestion = finding.suggestion or f"use --dtype {_FLAG_OF[other]}"
            yield msgspec.structs.replace(finding, suggestion=suggestion)

    def _falls_back(self, dtype: Dtype) -> bool:
        """Whether the engine takes another type by itself; not all of its platforms do."""
        refusing = self._row(f"dtype {dtype.value}")
        if refusing is not None and refusing.level is Support.NONE:
            return bool(refusing.models)
        row = self._row("feature dtype_fallback")
        return row is not None and row.level is Support.NATIVE

    def packing(self) -> Iterable[_Finding]:
        """Whether the device takes the packed weights, and whether the engine knows the method there."""
        method = self._need.method
        if method is None:
            return
        row = self._row(f"quantization {method}")
        if (asked := self._need.asked) is not None and not self._takes(asked, row):
            yield _Finding(
                Support.NONE,
                f"{self._engine} has no quantization {asked!r}",
                advise_method(self._name, asked, self._version, self._table),
            )
            return
        yield self._of_weights(method)
        if row is None:
            yield _Finding(Support.UNKNOWN, f"no source says whether {self._engine} runs {method} on {self._kind}")
        else:
            yield self._of_engine(row, f"{self._engine} does not run {method} on {self._arch}", method)

    def _takes(self, asked: str, row: FeatureRow | None) -> bool:
        """Whether the name may be one that the engine knows: its own, or of a plugin that the tables speak of."""
        if has_method(self._name, self._version, asked, self._table) is not False:
            return True
        if row is not None and asked in row.quantization:
            return True
        backend = self._table.backend_of(self._name, self._vendor)
        return backend is None or not backend.is_in_tree

    def features(self) -> Iterable[_Finding]:
        """What the specification asks of the engine by name."""
        for feature in self._need.features:
            row = self._row(f"feature {feature}")
            words = feature.replace("_", " ")
            if row is None:
                yield _Finding(Support.UNKNOWN, f"no source says whether {self._engine} has {words} on {self._kind}")
            else:
                yield self._of_engine(row, f"{self._engine} has no {words} on {self._arch}", words)

    def _computes_in(self, dtype: Dtype) -> _Finding:
        row = self._row(f"dtype {dtype.value}")
        level, name = self._levels[dtype], _name(dtype)
        if level is Support.NONE:
            return _Finding(level, f"{self._arch} has no {name}", source=self._source)
        if row is not None and row.level in (Support.NONE, Support.UNKNOWN):
            return self._of_engine(row, f"{self._engine} does not compute in {name} on {self._arch}", name)
        texts = {
            Support.NATIVE: f"{self._arch} computes in {name}",
            Support.WEIGHT_ONLY: f"{self._arch} keeps {name} and computes in a wider type",
            Support.UNKNOWN: f"no source says whether {self._arch} computes in {name}",
        }
        return _Finding(level, texts[level], source=self._source)

    def _of_weights(self, method: str) -> _Finding:
        stored, multiplied = self._need.weights, self._need.activations
        if stored is None:
            return _Finding(
                Support.UNKNOWN, f"what {method} packs weights in is not known before the model's files are read"
            )
        name, level = _name(stored), self._levels[stored]
        if level is Support.NONE:
            return _Finding(level, f"{self._arch} has no {name}", self._alternative(), self._source)
        if level is Support.UNKNOWN:
            return _Finding(level, f"no source says what {self._arch} does with {name}", source=self._source)
        if self._need.is_widened or multiplied in _WIDE:
            return _Finding(Support.WEIGHT_ONLY, f"{method} keeps weights in {name} and widens them to multiply")
        if multiplied not in (None, stored):
            # Narrow weights widened to a type that is itself narrow (W4A8): the units work in that.
            name, level = _name(multiplied), self._levels[multiplied]
        texts = {
            Support.NATIVE: f"{self._arch} multiplies in {name}",
            Support.WEIGHT_ONLY: f"{name} weights on {self._arch} run weight-only",
            Support.UNKNOWN: f"no source says whether {self._arch} multiplies in {name}",
            Support.NONE: f"{self._arch} has no {name}",
        }
        suggestion = self._alternative() if level is Support.NONE else None
        return _Finding(level, texts[level], suggestion, self._source)

    def _alternative(self) -> str:
        """Types in which models are published and that this device takes."""
        offered = (*_FALLBACKS[:2], Dtype.FP8_E4M3, Dtype.INT8, Dtype.INT4)
        taken = [_name(each) for each in offered if self._levels[each] in (Support.NATIVE, Support.WEIGHT_ONLY)]
        return f"use a version of the model in {' or '.join(taken)}" if taken else "use another device"

    def _of_engine(self, row: FeatureRow, refusal: str, words: str) -> _Finding:
        """What a row of the engine says; silent where it says nothing but yes."""
        text = row.note or (refusal if row.level is Support.NONE else "")
        if row.level is Support.UNKNOWN and not text:
            text = f"no source says whether {self._engine} does {words} on {self._arch}"
        return _Finding(row.level, text, row.suggestion, row.source)

    def _row(self, subject: str) -> FeatureRow | None:
        """The row with most conditions that all hold; of several, that with the most specific architecture."""
        need = self._need
        fits = [
            (rank, row)
            for rank, row in self._rows
            if subject in row.subjects
            and (not row.weights or need.weights in row.weights)
            and (not row.activations or need.activations in row.activations)
            and (not row.models or need.model_type in row.models)
        ]
        return max(fits, key=lambda fit: fit[0])[1] if fits else None


def _is_plain(finding: _Finding, worst: Support) -> bool:
    """Whether a finding need not be said beside the worst one."""
    return worst is Support.NONE or (finding.level is Support.NATIVE and not finding.is_notable)


def _name(dtype: Dtype) -> str:
    return dtype.value.upper().replace("_", " ")


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))

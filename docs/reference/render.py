"""Write the pages that say what the code says: docs/reference/cli.md, metrics.md and dtypes.md (`make docs`).

Run with a directory as argument to write there instead; a test does that and compares.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

from xinf.core.device import Dtype, Support
from xinf.gateway.metrics import FAMILIES
from xinf.registry import Compatibility, shipped
from xinf.registry.compatibility import FeatureRow

_MARKS = {Support.NATIVE: "N", Support.WEIGHT_ONLY: "W", Support.NONE: "-", Support.UNKNOWN: "?"}
_HEADS = {dtype: dtype.value.upper().replace("_", " ") for dtype in Dtype}


def render_commands() -> str:
    """Every command with its options, from typer's own documentation generator."""
    command = [sys.executable, "-W", "ignore", "-m", "typer", "xinf.cli.app", "utils", "docs", "--name", "xinf"]
    done = subprocess.run([*command, "--title", "Commands"], capture_output=True, text=True, check=True, timeout=120)
    text = html.unescape(re.sub(r"\[/?b\]", "", done.stdout))
    intro = "Rendered from the commands' own help by `make docs`; `xinf COMMAND --help` shows the same.\n"
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{intro}{rest.rstrip()}\n"


def render_metrics() -> str:
    """Every metric of `/metrics` with its kind and help text."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` gives Prometheus text, summed over the gateway's processes.",
        "Rendered by `make docs`.",
        "",
        "| name | kind | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {family.kind} | {_cell(family.help)} |" for name, family in FAMILIES.items()),
        "",
        "Labels are bounded: `model` and `replica` are ones that exist, `code` is a status class, `reason`, `view` and",
        "`cause` are closed sets. Times are in seconds.",
        "",
    ]
    return "\n".join(lines)


def render_dtypes() -> str:
    """What devices compute in and what engines do there, from configs/engine_compatibility.toml."""
    tables = shipped()
    lines = [
        "# What devices and engines can do",
        "",
        "Rendered from `configs/engine_compatibility.toml` by `make docs`. `xinf devices` shows each device's row,",
        "`xinf devices --compat MODEL` what follows for a model. A launch is refused where it says *none*, warned of",
        "where it is unknown, and told where weights alone are narrow.",
        "",
        "## Data types",
        "",
        "**N** native: its matrix units take it. **W** weights only: stored in it, widened before they are multiplied.",
        "**-** none. **?** no source says. Architectures that are in no row are **?** throughout.",
        "",
        f"| device | architecture or name | {' | '.join(_HEADS[dtype] for dtype in Dtype)} |",
        f"|---|---|{'---|' * len(Dtype)}",
    ]
    for row in tables.dtype:
        levels = " | ".join(_MARKS[row.level(dtype)] for dtype in Dtype)
        lines.append(f"| {row.vendor} {row.generation} | {_codes(row.arch)} | {levels} |")
    lines += [
        "",
        "Flags of a processor raise its row:",
        "",
        "| architecture | any of | type | level | source |",
        "|---|---|---|---|---|",
    ]
    for flag in tables.isa:
        level = _MARKS[flag.level]
        lines.append(
            f"| {_codes(flag.arch)} | {_codes(flag.flags)} | {_HEADS[flag.dtype]} | {level} | {_cell(flag.source)} |"
        )
    lines += ["", "Where the rows are from:", ""]
    lines += [f"- {row.vendor} {row.generation}: {_said(row.source, row.note)}" for row in tables.dtype]
    lines += _render_engines(tables)
    return "\n".join([*lines, ""])


def _render_engines(tables: Compatibility) -> list[str]:
    lines = [
        "",
        "## Engines",
        "",
        "| engine | device | distribution | how | source |",
        "|---|---|---|---|---|",
    ]
    for backend in tables.backend:
        kind = "part of it" if backend.is_in_tree else "plugin"
        name = f"{backend.distribution} ({kind})"
        source = _cell(_said(backend.source, backend.note))
        lines.append(f"| {backend.engine} | {backend.vendor} | {name} | {_cell(backend.install)} | {source} |")
    lines += ["", "Methods that `--quantization` takes, without what plugins add:", ""]
    lines += [
        f"- {row.engine} {row.versions}: {_codes(row.names)} ({_said(row.source, row.note)})" for row in tables.methods
    ]
    lines += [
        "",
        "Versions are those of vLLM. What has no row is unknown.",
        "",
        "| engine | device | of what | when | level | source |",
        "|---|---|---|---|---|---|",
    ]
    for row in tables.feature:
        device = " ".join(
            [row.vendor.value if row.vendor else "all", *([] if row.arch == ("*",) else [_codes(row.arch)])]
        )
        words = [name.replace("_", " ") for name in row.feature]
        subjects = ", ".join([*row.quantization, *map(_HEADS.__getitem__, row.dtype), *words])
        source = _cell(_said(row.source, row.note))
        engine = f"{row.engine} {row.versions}" if row.versions != "*" else row.engine
        lines.append(
            f"| {_cell(engine)} | {device} | {subjects} | {_conditions(row)} | {_MARKS[row.level]} | {source} |"
        )
    return lines


def _conditions(row: FeatureRow) -> str:
    said = [("weights", row.weights), ("activations", row.activations), ("model", row.models), ("flag", row.isa)]
    return "; ".join(f"{what} {', '.join(map(str, values))}" for what, values in said if values)


def _codes(patterns: tuple[str, ...]) -> str:
    return " ".join(f"`{pattern}`" for pattern in patterns)


def _said(source: str, note: str | None) -> str:
    return source if note is None else f"{source}; {note}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (target / "cli.md").write_text(render_commands())
    (target / "metrics.md").write_text(render_metrics())
    (target / "dtypes.md").write_text(render_dtypes())


if __name__ == "__main__":
    main()

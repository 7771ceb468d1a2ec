"""Write the pages that say what the code says: docs/reference/cli.md and metrics.md (`make docs`).

Run with a directory as argument to write there instead; a test does that and compares.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

from xinf.gateway.metrics import FAMILIES


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


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (target / "cli.md").write_text(render_commands())
    (target / "metrics.md").write_text(render_metrics())


if __name__ == "__main__":
    main()

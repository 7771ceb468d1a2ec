"""Documents that can be wrong are checked: rendered pages, links, and every command line shown to a reader."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer.main

from xinf.cli.app import app

PAGES = ["README.md", "docs/guide", "docs/reference", "docs/adr"]


def pages(checkout: Path) -> list[Path]:
    return [
        page
        for name in PAGES
        for page in ([checkout / name] if name.endswith(".md") else (checkout / name).glob("*.md"))
    ]


def test_rendered_pages_say_what_the_code_says(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "docs" / "reference" / "render.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=120)
    for name in ("cli.md", "metrics.md", "dtypes.md"):
        assert (tmp_path / name).read_text() == (checkout / "docs" / "reference" / name).read_text(), "run `make docs`"


def test_links_lead_somewhere(checkout: Path) -> None:
    for page in pages(checkout):
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def shown_commands(checkout: Path) -> list[tuple[str, str]]:
    """Indented lines and `inline code` that begin with `xinf `, without their comments."""
    found = []
    for page in pages(checkout):
        text = page.read_text()
        lines = re.findall(r"^ {4}(xinf .+)$", text, flags=re.MULTILINE) + re.findall(r"`(xinf [^`\n]+)`", text)
        found += [(page.name, re.split(r"\s{2,}#|\s#\s|\s{3,}", line)[0]) for line in lines]
    return found


def test_every_shown_command_line_exists(checkout: Path) -> None:
    root = typer.main.get_command(app)
    shown = shown_commands(checkout)
    assert len(shown) > 20
    for page, line in shown:
        command = root
        for word in shlex.split(re.sub(r"[\[\]()…,;]", " ", line))[1:]:
            if isinstance(command, click.Group) or hasattr(command, "commands"):
                commands = command.commands
                if word in commands:
                    command = commands[word]
                    continue
                assert word.startswith("-") or word.isupper() or "|" in word, f"{page}: no command {word!r} in {line!r}"
            elif word.startswith("-"):
                known = {
                    option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
                }
                assert word.split("=")[0] in known | {"--help"}, f"{page}: {line!r} has no option {word}"


@pytest.mark.parametrize("target", ["up", "test", "build", "engine", "lint", "proto", "docs", "clean"])
def test_make_targets_exist(checkout: Path, target: str) -> None:
    assert re.search(rf"^{target}:", (checkout / "Makefile").read_text(), flags=re.MULTILINE)

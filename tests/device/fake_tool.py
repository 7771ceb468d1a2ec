"""Makes vendors' tools: real executables on the PATH that answer from texts by their arguments.

They prove which arguments we pass, how an exit status, noise on standard error and a hang are taken, and what is made
of an answer's layout. They cannot prove that a real tool answers so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from tests.device.mutations import Failure


class FakeTools:
    """A directory of fake tools; the fixture `fake_tool` puts it first on the PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)

    def add(
        self,
        name: str,
        answers: Mapping[str, str],
        *,
        failure: Failure | None = None,
        stderr: str = "",
        files: Mapping[str, tuple[str, str]] | None = None,
    ) -> Path:
        """Make the tool `name`, in place of an earlier one; gives its path.

        `answers`: what it prints by its arguments joined with spaces; `*` stands for any others, which without it are
        refused with status 2. `files`: a name and a content that it writes into its working directory, by arguments
        (cnmon does). `stderr`: noise before each answer.
        """
        cases: list[str] = []
        for number, (arguments, text) in enumerate(answers.items()):
            content = self._keep(f"{name}.answer{number}", "" if failure is Failure.EMPTY else text)
            cases.append(_case(arguments, f"cat {content}"))
        for number, (arguments, (written, text)) in enumerate((files or {}).items()):
            content = self._keep(f"{name}.file{number}", "" if failure is Failure.EMPTY else text)
            cases.insert(0, _case(arguments, f"cat {content} > {shlex.quote(written)}"))
        if "*" not in answers:
            cases.append(f'*) echo "{name}: what is $*?" >&2; exit 2 ;;')
        script = ["#!/bin/sh", f'echo "$*" >> {shlex.quote(str(self._calls_path(name)))}']
        if stderr:
            script.append(f"printf '%s\\n' {shlex.quote(stderr)} >&2")
        if failure is Failure.STATUS:
            script.append(f'echo "{name}: cannot open the driver" >&2; exit 1')
        elif failure is Failure.HUNG:
            script.append("exec sleep 120")
        else:
            script += ['case "$*" in', *cases, "esac"]
        path = self.directory / name
        path.write_text("\n".join(script) + "\n")
        path.chmod(0o755)
        return path

    def calls(self, name: str) -> list[str]:
        """List the arguments of each call so far, joined with spaces."""
        path = self._calls_path(name)
        return path.read_text().splitlines() if path.exists() else []

    def _keep(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        return shlex.quote(str(path))

    def _calls_path(self, name: str) -> Path:
        return self.directory / f"{name}.calls"


def _case(arguments: str, command: str) -> str:
    return f"{'*' if arguments == '*' else shlex.quote(arguments)}) {command} ;;"

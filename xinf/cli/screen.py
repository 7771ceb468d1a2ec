"""What a waiting command shows: lines that stay and, on a terminal, one status line that is drawn over.

Into a file or a pipe the status goes sparsely: when it says something new, at most once a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from xinf.core.units import format_seconds

if TYPE_CHECKING:
    from xinf.serve import Applied, Step, Trial

SPARSE_INTERVAL_S = 60.0
_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """Prints to one stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        # A dumb terminal shows escapes as they are.
        self._is_tty = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._status = ""
        self._is_serving = False
        self._last_sparse_s: float | None = None

    def line(self, text: str) -> None:
        """Print a line that stays, above the status."""
        self._write(f"{_CLEAR_LINE}{text}\n{self._cut(self._status)}" if self._is_tty else f"{text}\n")

    def status(self, text: str) -> None:
        """Show what is going on now; "" takes the status away."""
        if text == self._status:
            return
        self._status = text
        if self._is_tty:
            self._write(_CLEAR_LINE + self._cut(text))
        elif self._is_serving and text:
            now_s = time.monotonic()
            if self._last_sparse_s is None or now_s - self._last_sparse_s >= SPARSE_INTERVAL_S:
                self._last_sparse_s = now_s
                self._write(text + "\n")

    def close(self) -> None:
        """Leave the cursor at the start of an empty line."""
        self.status("")

    def applied(self, applied: Applied) -> None:
        """Say what became of a deployment's wish."""
        record = applied.record
        replicas = f"{record.replicas} replica{'s' * (record.replicas != 1)}"
        words = {
            "created": f"created deployment {record.name}: {replicas}, {record.spec.engine} on {record.spec.device}",
            "unchanged": f"deployment {record.name} is wished for like this already",
            "adjusted": f"changed deployment {record.name}: {replicas}, policy {record.policy}; engines stay",
            "updated": f"changed deployment {record.name} to generation {record.generation}: its engines are replaced",
        }
        self.line(words[applied.outcome])

    def step(self, step: Step) -> None:
        """Print one step on the way to ready."""
        text = " ".join(filter(None, (step.replica, step.text)))
        self.line(f"{format_seconds(step.at_s):>7}  {step.title:<11} {text}".rstrip())

    def ready(self, url: str, model: str, trial: Trial) -> None:
        """Print where it serves, how to use it, and what it said."""
        from xinf.serve import PROMPT

        body = _example_body(trial.path, model, PROMPT)
        key = "-H 'authorization: Bearer KEY' " if trial.has_keys else ""
        self.line(f"ready: {url}")
        self.line("")
        self.line(f"curl {url}{trial.path} {key}-H 'content-type: application/json' -d '{json.dumps(body)}'")
        self.line("")
        for line in _openai_snippet(url, model, trial):
            self.line(line)
        self.line("")
        self.line(f"it answered {PROMPT!r} in {trial.took_s:.2f} s: {trial.text}")
        self._is_serving = True

    def _cut(self, text: str) -> str:
        return text[: shutil.get_terminal_size().columns - 1]

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # The terminal was closed or the pipe's reader left: what we look after must still be ended in order.
            pass


def _example_body(path: str, model: str, prompt: str) -> dict[str, object]:
    if path == "/v1/chat/completions":
        return {"model": model, "messages": [{"role": "user", "content": prompt}]}
    return {"model": model, ("input" if path == "/v1/embeddings" else "prompt"): prompt}


def _openai_snippet(url: str, model: str, trial: Trial) -> list[str]:
    call, result = {
        "/v1/chat/completions": (
            "chat.completions.create(model={!r}, messages=[{{'role': 'user', 'content': 'hello'}}])",
            "choices[0].message.content",
        ),
        "/v1/completions": ("completions.create(model={!r}, prompt='hello')", "choices[0].text"),
        "/v1/embeddings": ("embeddings.create(model={!r}, input='hello')", "data[0].embedding"),
    }[trial.path]
    key = "KEY" if trial.has_keys else "unused"
    return [
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="{key}")',
        f"answer = client.{call.format(model)}",
        f"print(answer.{result})",
    ]

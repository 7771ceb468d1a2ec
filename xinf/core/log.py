"""Logging for every xinf process: one line per event on standard error, key=value after the sentence.

    2026-11-24 10:31:07.412 INFO  agent    replica qwen-x7k2p is ready  replica=qwen-x7k2p load_s=8.4

Prompt text, API keys and bodies are never logged; ids are. Call `configure` once per process, at its edge.
"""

from __future__ import annotations

import logging
import sys
import time

_LEVELS = ("debug", "info", "warning", "error")


class KeyValueFormatter(logging.Formatter):
    """Formats `logger.info("sentence", extra={"kv": {"replica": id}})`."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname:<7} {self._component:<9} {record.getMessage()}"
        values: dict[str, object] | None = getattr(record, "kv", None)
        if values:
            line += "  " + " ".join(f"{key}={_quote(value)}" for key, value in values.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _quote(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if any(c in text for c in ' "=\n') else text


def configure(component: str, *, level: str = "info") -> None:
    """Send this process's log lines to standard error under the name `component`. `level`: debug info warning error."""
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter(component))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("xinf").setLevel(level.upper())

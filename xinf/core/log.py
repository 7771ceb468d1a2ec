"""Logging for every xinf process: one line per event on standard error, key=value after the sentence.

    2026-11-24 10:31:07.412 INFO  agent    replica qwen-x7k2p is ready  replica=qwen-x7k2p load_s=8.4

Prompt text, API keys and bodies are never logged; ids are. Call `configure` once per process, at its edge.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

_LEVELS = ("debug", "info", "warning", "error")


class KeyValueFormatter(logging.Formatter):
    """Formats `logger.info("sentence", extra={"kv": {"replica": id}})`."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        line = format_line(
            record.created, record.levelname, self._component, record.getMessage(), getattr(record, "kv", None) or {}
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def format_line(at_s: float, level: str, component: str, sentence: str, values: Mapping[str, object]) -> str:
    """Write one line, without its end. For what does not go through `logging`, whose handlers may block."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    line = f"{stamp}.{int(at_s % 1 * 1000):03d} {level:<7} {component:<9} {sentence}"
    if values:
        line += "  " + " ".join(f"{key}={_quote(value)}" for key, value in values.items())
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

"""What NVML answers: values, strings, and what a device or a driver does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")

# A device may not answer these; it is then an unknown, not an error.
UNKNOWN = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_UNKNOWN,
)


def known(call: Callable[..., T], *args: Any) -> T | None:
    """Call NVML; None when this device or driver has no answer to the question."""
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if error.value in UNKNOWN:
            return None
        raise


def text(value: str | bytes) -> str:
    """NVML strings are bytes in older bindings and str in newer ones."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value

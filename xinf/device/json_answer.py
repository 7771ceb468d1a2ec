"""The JSON in what a vendor's tool printed: tools write warnings before it, some of which begin with brackets too.

    [WARNING] User is missing group membership          no JSON: on to the next line that may begin some
    {"gpu_data": [{"gpu": 0, ...}]}                     what was asked for: it goes on to the end of the text

An answer that is cut off is refused: what is left of it may begin with an object of its own, but either the text does
not end there, or the parser of the tool misses its keys.
"""

from __future__ import annotations

import json

from xinf.device.tool import FormatError

_DECODER = json.JSONDecoder()


def read_json(text: str, tool: str) -> object:
    """Decode the first value that begins a line and ends the text. Raises: FormatError naming the tool."""
    complaint = f"{text.strip()[:120]!r}"
    at = 0
    for line in text.splitlines(keepends=True):
        if line.startswith(("{", "[")):
            try:
                value, end = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                complaint = str(error)
            else:
                if not text[end:].strip():
                    return value
        at += len(line)
    raise FormatError(f"{tool}: not JSON: {complaint}")

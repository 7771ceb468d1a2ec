"""What the gateway's `x-xinf-decision` header says of where a request went."""

from __future__ import annotations


def read_decision(value: bytes) -> tuple[str | None, int | None]:
    """Give the replica and the predicted cached tokens; None for what the header does not say."""
    fields = dict(part.strip().split("=", 1) for part in value.decode("latin-1").split(";") if "=" in part)
    predicted = fields.get("predicted_cached_tokens", "")
    return fields.get("replica"), int(predicted) if predicted.isdecimal() else None

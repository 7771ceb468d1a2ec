"""Names and ids: NewTypes so that one is never passed for another, and how new ones are made."""

from __future__ import annotations

import re
import secrets
from typing import NewType

from xinf.core.errors import InvalidRequest

NodeName = NewType("NodeName", str)
DeploymentName = NewType("DeploymentName", str)
ReplicaId = NewType("ReplicaId", str)
KeyId = NewType("KeyId", str)
LeaseId = NewType("LeaseId", int)
Revision = NewType("Revision", int)

# Crockford's base32 without vowels' look-alikes: readable aloud, no accidental words.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


def random_suffix(length: int = 5) -> str:
    """Make `length` random base32 characters (5 bits each)."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_replica_id(deployment: DeploymentName) -> ReplicaId:
    """Make a replica id that starts with its deployment's name, so that logs and `ps` read by themselves."""
    return ReplicaId(f"{deployment}-{random_suffix()}")


def check_name(name: str, *, what: str) -> str:
    """Return `name` if it can be a key in the store and a part of a file name.

    Raises: InvalidRequest with the rule that it breaks.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{what} {name!r} is no valid name: 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends",
            param=what,
        )
    return name


def name_from_model(model: str) -> DeploymentName:
    """Derive a deployment name from a model id or path: `Qwen/Qwen2.5-7B-Instruct` -> `qwen2.5-7b-instruct`."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    cleaned = re.sub(r"[^a-z0-9.-]+", "-", last).strip("-.")[:63].strip("-.")
    return DeploymentName(cleaned or "model")

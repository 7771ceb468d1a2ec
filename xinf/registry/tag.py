"""What the headers of an answer say of a file's content: its SHA-256, or something that changes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xinf.registry.sources import SHA256


def linked_sha256(answers: Sequence[Mapping[str, str]]) -> str | None:
    """The SHA-256 that a chain of answers names: a hub does where it redirects to its store of large files.

    Source: huggingface_hub 2.4, `file_download.py`; modelscope-hub 0.5, `_download.py`.
    """
    for headers in answers:
        linked = headers.get("X-Linked-ETag", "").strip('"').lower()
        if SHA256.fullmatch(linked):
            return linked
    return None


def strong_tag(headers: Mapping[str, str]) -> str | None:
    """The tag of a content; None for a weak one, which two contents may share."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") and tag.isprintable() else None

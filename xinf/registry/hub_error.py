"""How what a hub answers is worded: the same sentences and remedies for all hubs, with each one's own names."""

from __future__ import annotations

import msgspec

from xinf.core.errors import PermissionDenied, Unauthenticated, Unavailable, UnknownModel
from xinf.registry.sources import without_password

_TOO_MANY = 429


class HubSays(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one repository of a hub. Never with a token or a password in them."""

    repository: str
    endpoint: str
    page: str  # where a person asks for access
    token_variable: str
    endpoint_settings: str

    def gated(self) -> PermissionDenied:
        return PermissionDenied(
            f"{self.repository} is gated: its owner lets in those who accept its terms",
            remedy=f"accept them at {self.page} and set {self.token_variable} to a token of that account",
            param="model",
        )

    def absent(self, what: str) -> UnknownModel:
        """`what`: "there is no x/y", "there is no x/y, or no such revision of it"."""
        return UnknownModel(
            f"{what} at {self.endpoint}, or it is private",
            remedy=f"check the spelling; set {self.token_variable} for a private repository",
            param="model",
        )

    def unauthenticated(self) -> Unauthenticated:
        return Unauthenticated(
            f"{self.endpoint} wants a token for {self.repository}",
            remedy=f"set {self.token_variable} to a token that is valid",
            param="model",
        )

    def denied(self) -> PermissionDenied:
        return PermissionDenied(
            f"{self.endpoint} does not give {self.repository} to this token",
            remedy=f"ask for access at {self.page}; check what {self.token_variable} may read",
            param="model",
        )

    def broken(self, status: int | None, retry_after_s: float | None = None) -> Unavailable:
        """`retry_after_s`: for how long the hub wants to be left alone."""
        what = "with an error" if status is None else str(status)
        remedy = "check the name, and the address of the hub" if status == 404 else "try again later"
        if status == _TOO_MANY:
            remedy = f"try again later; with {self.token_variable} set a hub allows more"
        return Unavailable(
            f"{self.endpoint} answered {what} for {self.repository}",
            remedy=remedy,
            status=status,
            retry_after_s=retry_after_s,
        )

    def unreachable(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self.endpoint} cannot be reached: {why}",
            remedy=f"check the network, or set a mirror ({self.endpoint_settings})",
        )

    def cut(self) -> Unavailable:
        return Unavailable(
            f"{self.endpoint} does not list all files of {self.repository}: a directory of it has too many",
            remedy="use another mirror, or fetch the files by hand and give their directory (./name)",
        )

    def no_hub(self) -> Unavailable:
        """A page of a proxy, a login of a hotel; for a file too."""
        return Unavailable(
            f"{self.endpoint} does not answer as a hub",
            remedy=f"check the address ({self.endpoint_settings}), and what is between here and there",
        )


def is_page(content_type: str | None, name: str) -> bool:
    """Whether an answer is a page for people where a file was asked for.

    A server that tells types by content takes a README that begins with `<p align="center">` for a page: of texts for
    people, size and sum must tell.
    """
    last = name.rpartition("/")[2].lower()
    may_look_so = "." not in last or last.endswith((".html", ".htm", ".md"))
    return (content_type or "").startswith("text/html") and not may_look_so


def first_line(error: BaseException) -> str:
    """What a client's error says, short enough for a sentence."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]

"""One way to ask a vendor for its cards; the ways are its library, then the forms of its tool.

The first way that lists cards has the word, and what the others said is kept for people. Each question starts from the
first way again: a library that failed in mid-life may answer the next time. A card has one name whichever way it was
read (see roster).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from xinf.device.library import LibraryError
from xinf.device.roster import Listing
from xinf.device.tool import ToolError


class Way(msgspec.Struct, frozen=True):
    """A name and a question, which may raise LibraryError or ToolError."""

    name: str  # "libefml", "efsmi -q"
    ask: Callable[[], Listing]


def ask_in_turn(ways: Sequence[Way], said: list[str]) -> Listing:
    """List the cards by the first way that lists any; `said` gets why those before it did not, and its name."""
    for way in ways:
        try:
            listing = way.ask()
        except (LibraryError, ToolError) as error:
            said.append(str(error))
            continue
        said += listing.complaints
        said.append(f"{way.name} does not list it" if listing.cards else f"{way.name} lists no card")
        if listing.cards:
            return listing
    return Listing(())

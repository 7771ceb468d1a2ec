"""A vendor's command-line tool: where it lies, and which forms of its answers are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from xinf.device.roster import Card, Listing
from xinf.device.tool import ToolError, find_tool, run_tool
from xinf.device.way import Way


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """One form of a tool's answer: the arguments that give it, and who reads it."""

    arguments: tuple[str, ...] = ()
    parse: Callable[[str], Sequence[Card]]
    output: str | None = None  # a file that the tool writes in its working directory
    may_be_cut: bool = True  # False: its parser refuses an answer that ends between two cards


class VendorTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool by its names, the first that is found being taken."""

    names: tuple[str, ...]
    directories: tuple[str, ...]
    remedy: str  # what to install where it is not there
    timeout_s: float

    def run(self, root: Path, *arguments: str, output: str | None = None) -> str:
        """Find and run it. Raises: ToolError, with the remedy where it is not there."""
        tool = find_tool(*self.names, directories=self.directories, root=root)
        if tool is None:
            raise ToolError(f"{self.names[-1]} is not there: {self.remedy}")
        return run_tool([tool, *arguments], timeout_s=self.timeout_s, output=output)

    def ways(self, root: Path, *forms: Form) -> list[Way]:
        """Make a way of each form; only one, which says so, where the tool is not there."""
        is_there = find_tool(*self.names, directories=self.directories, root=root) is not None
        found = [Way(" ".join((self.names[-1], *form.arguments)), partial(self._read, root, form)) for form in forms]
        return found if is_there else found[:1]

    def _read(self, root: Path, form: Form) -> Listing:
        cards = tuple(form.parse(self.run(root, *form.arguments, output=form.output)))
        return Listing(cards, may_be_cut=form.may_be_cut)

"""What the models say: which token follows which.

A token leads to one other (a link of a chain), or belongs to a group whose followers are equally likely:

    any ordinary token ──▶ The router keeps blocks ──┬▶ "," ──▶ which every engine ... ──▶ "."
                                                     ├▶ ".\\n\\n" ──▶ (ordinary)
                                                     └▶ "." ──┬▶ Each replica ...
                                                              └▶ end

So answers are made of the same chains in ever new order, 5 to 90 tokens and more of them; the sampler chooses, by the
engine's seed.
Every chain is made of tokens of its own. All but one are what their text is made into again; that one is not
(`SPLIT`), as it happens to real models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import pairwise

import msgspec

from benchmarks.exact.vocabulary import Vocabulary, read_vocabulary

TOOL_NAMES = ("search_documents", "get_weather", "run_query", "read_file")
SPLIT = (" Re", "turn")
_SEED = 7


class Group(IntEnum):
    """Tokens with the same followers."""

    ORDINARY = 0  # all that is in no chain
    TO_COMMA = 1
    TO_STOP = 2
    TO_PARAGRAPH = 3
    STOP = 4
    COMMA = 5
    THINK = 6
    TO_THOUGHT_END = 7
    TOOL_OPEN = 8
    TOOL_NAME = 9
    TOOL_QUERY = 10
    TO_TOOL_END = 11


class Style(msgspec.Struct, frozen=True):
    """How a family of models writes tool calls and thoughts."""

    end: str
    thinks: bool
    tool_begin: str  # the first token of a call
    tool_open: str  # up to the name; the same token where the call begins with it
    tool_query: str
    tool_end: str
    tool_last: str | None  # closes the call


HERMES = Style(
    "<|im_end|>", False, "<tool_call>", '\n{"name": "', '", "arguments": {"query": "', '", "limit": 10}}\n',
    "</tool_call>",
)  # fmt: skip
QWEN3 = msgspec.structs.replace(HERMES, thinks=True)
LLAMA = Style("<|eot_id|>", False, '{"name": "', '{"name": "', '", "parameters": {"query": "', '", "limit": 10}}', None)


class Script(msgspec.Struct, frozen=True):
    """By token id."""

    vocabulary: Vocabulary
    end: int
    links: dict[int, int]  # token -> the one that follows
    groups: dict[int, Group]  # token -> its group; ordinary ones are left out
    followers: dict[Group, tuple[int, ...]]


def write_script(style: Style) -> Script:
    """Make the script of one family."""
    pieces = (style.tool_begin, style.tool_open, style.tool_query, style.tool_end, style.tool_last or "", *TOOL_NAMES)
    return _Writer(style, read_vocabulary(piece for piece in pieces if piece)).write()


class _Writer:
    def __init__(self, style: Style, vocabulary: Vocabulary) -> None:
        self._style = style
        self._vocabulary = vocabulary
        self._rng = random.Random(_SEED)
        self._links: dict[int, int] = {}
        self._groups: dict[int, Group] = {}
        self._followers: dict[Group, list[int]] = {group: [] for group in Group}
        self._words = self._unused(r" [a-z]{4,9}")
        self._russian = self._unused(r" [а-яё]{4,12}")

    def write(self) -> Script:
        self._write_text()
        self._write_tools()
        if self._style.thinks:
            self._write_thoughts()
        followers = {group: tuple(numbers) for group, numbers in self._followers.items()}
        end = self._id(self._style.end)
        return Script(self._vocabulary, end, self._links, self._groups, followers)

    def _write_text(self) -> None:
        first = self._unused(r"[A-Z][a-z]{2,7}")
        later = self._unused(r" [A-Z][a-z]{2,7}")
        ends = (Group.TO_STOP, Group.TO_COMMA, Group.TO_STOP, Group.TO_PARAGRAPH, Group.TO_STOP)
        for number in range(10):
            self._chain([next(first), *self._some(4, 11)], Group.ORDINARY, ends[number % len(ends)])
            self._chain([next(later), *self._some(4, 11)], Group.STOP, ends[number % len(ends)])
        for _ in range(6):
            self._chain(self._some(3, 9), Group.COMMA, Group.TO_STOP)
        self._chain([next(later), *(next(self._russian) for _ in range(6))], Group.STOP, Group.TO_STOP)
        self._chain([*SPLIT, *self._some(3, 5)], Group.STOP, Group.TO_STOP)
        self._lead(Group.TO_COMMA, ",", Group.COMMA)
        self._lead(Group.TO_STOP, ".", Group.STOP)
        self._followers[Group.TO_PARAGRAPH].append(self._id(".\n\n"))
        self._followers[Group.STOP].append(self._id(self._style.end))

    def _write_tools(self) -> None:
        style = self._style
        self._followers[Group.ORDINARY].append(self._id(style.tool_begin))
        if style.tool_begin != style.tool_open:
            self._link(style.tool_begin, style.tool_open)
        self._groups[self._id(style.tool_open)] = Group.TOOL_OPEN
        for name in TOOL_NAMES:
            self._lead(Group.TOOL_OPEN, name, Group.TOOL_NAME)
        self._lead(Group.TOOL_NAME, style.tool_query, Group.TOOL_QUERY)
        unspaced = self._unused(r"[a-z]{4,9}")
        for _ in range(4):
            self._chain([next(unspaced), *self._some(2, 7)], Group.TOOL_QUERY, Group.TO_TOOL_END)
        self._followers[Group.TO_TOOL_END].append(self._id(style.tool_end))
        if style.tool_last is not None:
            self._link(style.tool_end, style.tool_last)
        self._link(style.tool_last or style.tool_end, style.end)

    def _write_thoughts(self) -> None:
        unspaced = self._unused(r"[A-Z][a-z]{2,7}")
        # What a prompt ends with that lets the model think; one that does not ends with an empty thought and "\n\n".
        self._link("\n", "<think>")
        self._groups[self._id("<think>")] = Group.THINK
        for _ in range(4):
            self._chain([next(unspaced), *self._some(4, 30)], Group.THINK, Group.TO_THOUGHT_END)
        self._followers[Group.TO_THOUGHT_END].append(self._id("</think>"))
        self._link("</think>", "\n\n")

    def _chain(self, texts: Sequence[str], after: Group, leads_to: Group) -> None:
        numbers = [self._id(text) for text in texts]
        self._followers[after].append(numbers[0])
        for current, following in pairwise(numbers):
            assert current not in self._links, f"{current} is in two chains"
            self._links[current] = following
        self._groups[numbers[-1]] = leads_to

    def _link(self, current: str, following: str) -> None:
        self._links[self._id(current)] = self._id(following)

    def _lead(self, group: Group, text: str, belongs_to: Group) -> None:
        self._followers[group].append(self._id(text))
        self._groups[self._id(text)] = belongs_to

    def _some(self, least: int, most: int) -> list[str]:
        return [next(self._words) for _ in range(self._rng.randint(least, most))]

    def _id(self, text: str) -> int:
        return self._vocabulary.id_of(text)

    def _unused(self, pattern: str) -> Iterator[str]:
        """Words that are one token and in no chain yet."""
        words = self._vocabulary.words(pattern)
        self._rng.shuffle(words)
        return (word for word in words if word not in SPLIT and self._is_free(word) and self._vocabulary.is_whole(word))

    def _is_free(self, text: str) -> bool:
        number = self._id(text)
        return number not in self._links and number not in self._groups

"""What is asked: sessions of one turn or more, each made from the seed and its number alone."""

from __future__ import annotations

import enum
import random
from pathlib import Path
from typing import Protocol

import msgspec

from xinf.bench.words import Words
from xinf.core.errors import InvalidRequest, NotFound


class WorkloadKind(enum.Enum):
    """Where prompts come from."""

    RANDOM = "random"
    SHARED_PREFIX = "shared-prefix"
    CONVERSATION = "conversation"
    FILE = "file"


class WorkloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are in tokens, as far as words are tokens (see words.py)."""

    kind: WorkloadKind = WorkloadKind.RANDOM
    input_tokens: int = 1024
    output_tokens: int = 128
    range_ratio: float = 0.0  # lengths are uniform in [(1 - r) x, (1 + r) x]
    n_prefixes: int = 10
    prefix_tokens: int = 1024
    prefix_share: float = 1.0  # of the sessions that begin with a shared prefix; the others have one of their own
    n_turns: int = 1
    think_time_s: float = 0.0
    file: str | None = None

    def __post_init__(self) -> None:
        _check("input length", self.input_tokens, 1, 10_000_000)
        _check("output length", self.output_tokens, 1, 10_000_000)
        _check("prefix length", self.prefix_tokens, 1, 10_000_000)
        _check("number of prefixes", self.n_prefixes, 1, 1_000_000)
        _check("number of turns", self.n_turns, 1, 10_000)
        _check("range ratio", self.range_ratio, 0.0, 0.999)
        _check("prefix share", self.prefix_share, 0.0, 1.0)
        if self.kind is WorkloadKind.FILE and self.file is None:
            raise InvalidRequest("the workload `file` needs a file of prompts")


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Exactly one of `prompt` and `fields` is given; `fields` are a body's own, as JSON."""

    prompt: str | None = None
    fields: bytes | None = None
    max_tokens: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that follow each other: a turn is sent when the one before it was answered."""

    name: str | None  # goes into `user`, for session affinity
    turns: tuple[Turn, ...]


class Workload(Protocol):
    """Gives session number n, the same each time it is asked."""

    n_turns: int

    def session(self, number: int) -> Session: ...


def make_workload(settings: WorkloadSettings, seed: int) -> Workload:
    """Raises: NotFound, InvalidRequest for a file that is not there or not right."""
    if settings.kind is WorkloadKind.FILE:
        return FileWorkload(settings)
    return WordWorkload(settings, seed)


class WordWorkload:
    """Random text, alone, behind shared prefixes, or as conversations."""

    def __init__(self, settings: WorkloadSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._words = Words(seed)
        self._is_conversation = settings.kind is WorkloadKind.CONVERSATION
        self._prefixes: list[str] = []
        if settings.kind is WorkloadKind.SHARED_PREFIX:
            self._prefixes = [self._prefix(f"prefix {n}") for n in range(settings.n_prefixes)]
        self.n_turns = settings.n_turns if self._is_conversation else 1

    def session(self, number: int) -> Session:
        """Give the session of this number."""
        draw = random.Random(f"session {number} {self._seed}")
        turns = tuple(self._turn(number, turn, draw) for turn in range(self.n_turns))
        return Session(name=f"bench-{self._seed}-{number}" if self._is_conversation else None, turns=turns)

    def _turn(self, number: int, turn: int, draw: random.Random) -> Turn:
        n_input = self._length(self._settings.input_tokens, draw)
        n_output = self._length(self._settings.output_tokens, draw)
        text = self._words.text(f"{number}.{turn}", n_input)
        if self._prefixes:
            is_shared = draw.random() < self._settings.prefix_share
            prefix = draw.choice(self._prefixes) if is_shared else self._prefix(f"own prefix {number}")
            text = f"{prefix} {text}"
        return Turn(prompt=text, max_tokens=n_output)

    def _prefix(self, name: str) -> str:
        return self._words.text(name, self._settings.prefix_tokens)

    def _length(self, mean: int, draw: random.Random) -> int:
        ratio = self._settings.range_ratio
        if ratio == 0.0:
            return mean
        return max(1, draw.randint(round(mean * (1 - ratio)), round(mean * (1 + ratio))))


class FileWorkload:
    """Requests from a JSONL file, in its order, from the start again when it is through.

    A line is a string or an object: `{"prompt": ...}`, `{"messages": [...]}` or any body of a request. `output_tokens`
    (as in vLLM's custom data sets) is the length of its answer; without it and without a `max_tokens` of its own the
    run's setting holds.
    """

    n_turns = 1

    def __init__(self, settings: WorkloadSettings) -> None:
        path = Path(settings.file or "")
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise NotFound(f"cannot read the prompts of {path}: {error.strerror}") from error
        self._turns = [
            _read_line(line, f"{path}:{number}", settings.output_tokens)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        if not self._turns:
            raise InvalidRequest(f"{path} holds no prompts", remedy='write one JSON per line: {"prompt": "hello"}')

    def __len__(self) -> int:
        return len(self._turns)

    def session(self, number: int) -> Session:
        """Give the session of this number."""
        return Session(name=None, turns=(self._turns[number % len(self._turns)],))


def _read_line(line: bytes, where: str, default_output_tokens: int) -> Turn:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from error
    if isinstance(found, str):
        return Turn(prompt=found, max_tokens=default_output_tokens)
    if not isinstance(found, dict) or not {"prompt", "messages", "input"} & found.keys():
        raise InvalidRequest(f"{where} is neither a string nor an object with `prompt`, `messages` or `input`")
    max_tokens = found.pop("output_tokens", None)
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise InvalidRequest(f"{where}: output_tokens is {max_tokens!r}, must be a whole number above 0")
    if max_tokens is None and not {"max_tokens", "max_completion_tokens"} & found.keys():
        max_tokens = default_output_tokens
    if found.keys() == {"prompt"} and isinstance(found["prompt"], str):
        return Turn(prompt=found["prompt"], max_tokens=max_tokens)
    return Turn(fields=msgspec.json.encode(found), max_tokens=max_tokens)


def _check(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidRequest(f"the {what} is {value:g}, must be {least:g} to {most:g}")

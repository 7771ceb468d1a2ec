"""The name of a quantization method as somebody typed it: whether an engine has it, and what to type instead.

An engine takes a closed list of names ([[methods]] of configs/engine_compatibility.toml) and those that plugins in its
environment register. The lists of plugins are not known here: a name that a table knows from one is judged by its rows,
and any other goes to the engine, unseen, as `--engine-arg quantization=NAME`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from xinf.core.errors import InvalidRequest
from xinf.registry.compatibility import Compatibility, shipped

_N_NEAR = 3


def check_method(engine: str, name: str, table: Compatibility | None = None) -> str:
    """Return a method's name as engines compare it: in lower case.

    Raises: InvalidRequest for one that no table knows, of any version or plugin.
    """
    table = table or shipped()
    name = name.lower()  # vLLM 0.32, config/model.py: `validate_quantization_before`
    row = table.methods_of(engine)
    if row is None or table.method(name) is not None or any(name in each.names for each in table.methods):
        return name
    near = _nearest(name, row.names, table)
    instead = _meant(near) if near else f"use one of {', '.join(row.names)}."
    raise InvalidRequest(
        f"--quantization {name[:100]!r} is no method that {engine} is known to have",
        remedy=f"{instead} {_way_around(name)}",
        param="quantization",
    )


def has_method(engine: str, version: str | None, name: str, table: Compatibility | None = None) -> bool | None:
    """Whether an engine version takes a name without a plugin; None: no row speaks of that version."""
    row = (table or shipped()).methods_of(engine, version)
    return None if row is None else name in row.names


def advise_method(engine: str, name: str, version: str | None = None, table: Compatibility | None = None) -> str:
    """What to type instead of a name that an engine version has not."""
    table = table or shipped()
    row = table.methods_of(engine, version)
    near = () if row is None else _nearest(name, row.names, table)
    meant = _meant(near) if near else "leave it out if the model's files name its method."
    return f"{meant} {_way_around(name)}"


def _nearest(name: str, names: Sequence[str], table: Compatibility) -> list[str]:
    """Other names of the same method first, then those that are spelt alike."""
    row = table.method(name)
    same = [] if row is None else [each for each in (row.method, *row.aliases) if each in names]
    return list(dict.fromkeys([*same, *difflib.get_close_matches(name, names, n=_N_NEAR)]))[:_N_NEAR]


def _meant(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"


def _way_around(name: str) -> str:
    return f"What a plugin brings is passed on by --engine-arg quantization={name[:100] or 'NAME'}"

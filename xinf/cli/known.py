"""What is known of the model that somebody wishes for, read once for all who judge and plan it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from xinf.core.config import Config
from xinf.core.errors import XinfError
from xinf.core.records import EngineSpec

if TYPE_CHECKING:
    from xinf.registry import ModelFacts

SIMULATED = "sim"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """`why`: there are no facts; None where they are there, or where nobody needs any."""

    facts: ModelFacts | None = None
    why: str | None = None


def read_facts_of(config: Config, spec: EngineSpec) -> ModelFacts:
    """Read the model's facts, from this host or from the headers at its hub. Raises: what `read_model` raises."""
    from xinf.registry import read_model

    return read_model(spec.model, environ={**os.environ, **spec.env}, config=config.registry)


def find_known(config: Config, spec: EngineSpec) -> Known:
    """The same, but what cannot be read is no error: one file, a private model, no network. The engine will say."""
    if spec.engine == SIMULATED:
        return Known()  # it has no weights
    try:
        return Known(facts=read_facts_of(config, spec))
    except XinfError as error:
        return Known(why=error.message)

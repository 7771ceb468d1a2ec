"""What is known of the model that somebody wishes for, read once for all who judge and plan it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import msgspec

from xinf.core.config import Config
from xinf.core.errors import XinfError
from xinf.core.records import EngineSpec
from xinf.core.units import format_seconds

if TYPE_CHECKING:
    from xinf.registry import ModelFacts

SIMULATED = "sim"
# A hub is waited for as often as it may take `registry.timeout` for one answer: its name may have a dozen addresses,
# and each of them is tried for that long.
_ANSWERS = 3


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """`why`: there are no facts; None where they are there, or where nobody needs any."""

    facts: ModelFacts | None = None
    why: str | None = None


def read_facts_of(config: Config, spec: EngineSpec, *, offline: bool | None = None) -> ModelFacts:
    """Read the model's facts, from this host or from the headers at its hub. Raises: what `read_model` raises."""
    from xinf.registry import read_model, reference_of

    # In a spec a bare id is one of Hugging Face, whatever `registry.source` says.
    reference = reference_of(spec)
    return read_model(
        spec.model if reference is None else str(reference),
        environ={**os.environ, **spec.env},
        config=config.registry,
        offline=offline,
    )


async def find_known(config: Config, spec: EngineSpec) -> Known:
    """The same, but what cannot be read is no error: one file, a private model, no network. The engine will say.

    Ends in time, and at once when it is cancelled, whatever the network does.
    """
    if spec.engine == SIMULATED:
        return Known()  # it has no weights
    patience_s = _ANSWERS * config.registry.timeout
    try:
        async with asyncio.timeout(patience_s):
            return Known(facts=await _in_thread(lambda: read_facts_of(config, spec)))
    except TimeoutError:
        why = f"nothing came of reading {spec.model} within {format_seconds(patience_s)}"
    except XinfError as error:
        return Known(why=error.message)
    try:
        return Known(facts=read_facts_of(config, spec, offline=True))  # it may be in the cache
    except XinfError:
        return Known(why=why)


async def _in_thread(read: Callable[[], ModelFacts]) -> ModelFacts:
    """As `asyncio.to_thread`, but nobody waits for a thread that is given up: neither the loop nor the process."""
    done: Future[ModelFacts] = Future()
    done.set_running_or_notify_cancel()  # who stops waiting does not cancel it: it is settled all the same

    def work() -> None:
        try:
            done.set_result(read())
        except BaseException as error:  # whatever it is, it is raised where the facts are waited for
            done.set_exception(error)

    threading.Thread(target=work, name="facts", daemon=True).start()
    return await asyncio.wrap_future(done)

"""What is known of the model that somebody wishes for, read once for all who judge and plan it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

import msgspec

from xinf.core.config import Config
from xinf.core.errors import XinfError
from xinf.core.model import ModelFacts
from xinf.core.records import DeploymentRecord, EngineSpec
from xinf.core.units import format_seconds

SIMULATED = "sim"
# A hub is waited for as often as it may take `registry.timeout` for one answer: its name may have a dozen addresses,
# and each of them is tried for that long.
_ANSWERS = 3


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """`why`: there are no facts; None where they are there, or where nobody needs any."""

    facts: ModelFacts | None = None
    identity: str | None = None  # of its files, for what earlier loads took; None: they cannot be told
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
            return known_of(spec, await _in_thread(lambda: read_facts_of(config, spec)))
    except TimeoutError:
        why = f"nothing came of reading {spec.model} within {format_seconds(patience_s)}"
    except XinfError as error:
        return Known(why=error.message)
    cached = find_cached(config, spec)
    return cached if cached.facts is not None else Known(why=why)


def find_cached(config: Config, spec: EngineSpec) -> Known:
    """The same from what this host has, without asking a hub."""
    if spec.engine == SIMULATED:
        return Known()
    try:
        return known_of(spec, read_facts_of(config, spec, offline=True))
    except XinfError:
        return Known()


def known_of(spec: EngineSpec, facts: ModelFacts) -> Known:
    """What facts that were read are, with the identity of the files they were read from."""
    from xinf.registry import identify_model

    environ = {**os.environ, **spec.env}
    return Known(facts=facts, identity=identify_model(spec.model, revision=facts.revision, environ=environ))


def known_before(known: Known, spec: EngineSpec, present: DeploymentRecord | None) -> Known:
    """What could not be read this time is as it was read before, if the deployment is for the same."""
    if known.facts is not None or present is None or present.model is None:
        return known
    if spec.held_as(present.spec) != present.spec:
        return known
    return Known(facts=present.model, identity=present.model_identity)


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

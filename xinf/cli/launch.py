"""`xinf launch`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from xinf.cli.failure import INTERRUPTED
from xinf.cli.known import known_before
from xinf.cli.need import add_model, find_known_for
from xinf.cli.options import (
    ConfigFile,
    DataDir,
    DeviceOption,
    DtypeOption,
    Engine,
    EngineArgs,
    EngineEnv,
    Force,
    Json,
    Labels,
    MaxModelLen,
    Name,
    PlacementOption,
    Policy,
    Priority,
    Quantization,
    Replicas,
    ServedNames,
    Server,
    Settings,
    Share,
    TensorParallelSize,
    Timeout,
    TrustRemoteCode,
)
from xinf.cli.pin import pin_model
from xinf.cli.screen import Screen
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json
from xinf.cli.verdict import check_wish
from xinf.cli.wish import choose_name, make_deployment, make_spec
from xinf.core.errors import EngineStartFailed
from xinf.core.records import DeploymentRecord, ReplicaRecord
from xinf.core.units import parse_seconds

if TYPE_CHECKING:
    from xinf.serve import Applied


def launch(
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Hub id, directory, or `scripted`: a small model made here.")
    ],
    engine: Engine = "vllm",
    device: DeviceOption = "auto",
    replicas: Replicas = 1,
    name: Name = None,
    served_name: ServedNames = None,
    max_model_len: MaxModelLen = None,
    dtype: DtypeOption = "auto",
    quantization: Quantization = None,
    tensor_parallel_size: TensorParallelSize = 1,
    trust_remote_code: TrustRemoteCode = False,
    engine_arg: EngineArgs = None,
    env: EngineEnv = None,
    policy: Policy = "auto",
    force: Force = False,
    label: Labels = None,
    placement: PlacementOption = "spread",
    priority: Priority = 0,
    share: Share = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only write the deployment.")] = False,
    timeout: Timeout = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Deploy a model and watch it become ready.

    Launching the same again changes nothing; launching it differently replaces its engines without a gap. Ctrl-C ends
    the watching, not the deployment. What no connected device can run is refused before anything is written:
    `xinf devices --compat MODEL` says why.
    """
    session = open_session(config, data_dir, server, settings=settings)
    chosen = choose_name(name, model)
    timeout_s = parse_seconds(timeout) if timeout else None
    spec = make_spec(
        session.config,
        model=model,
        engine=engine,
        name=chosen,
        served_names=served_name or (),
        device=device,
        dtype=dtype,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        trust_remote_code=trust_remote_code,
        engine_args=engine_arg or (),
        env=env or (),
    )
    wish = make_deployment(
        spec,
        name=chosen,
        replicas=replicas,
        policy=policy,
        labels=label or (),
        placement=placement,
        priority=priority,
        shares=share,
    )
    screen = Screen(typer.get_text_stream("stderr") if json else None)
    try:
        applied, made = run(
            _launch(session, wish, screen, must_fit=not force, must_wait=not no_wait, timeout_s=timeout_s)
        )
    except EngineStartFailed as error:
        stays = f"it is tried again until `xinf stop {chosen}`"
        error.remedy = stays if error.remedy is None else f"{error.remedy}; {stays}"
        raise
    except KeyboardInterrupt:
        screen.line(f"the deployment stays: `xinf ps` shows it, `xinf stop {chosen}` removes it")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        screen.close()
    if json:
        print_json({"outcome": applied.outcome, "deployment": applied.record, "replicas": made})


async def _launch(
    session: Session,
    wish: DeploymentRecord,
    screen: Screen,
    *,
    must_fit: bool,
    must_wait: bool,
    timeout_s: float | None,
) -> tuple[Applied, list[ReplicaRecord]]:
    from xinf.core.records import MeasuredRecord, NodeRecord
    from xinf.meta import Records
    from xinf.scheduler import rules_of
    from xinf.serve import Follower, apply_deployment

    rules = rules_of(session.config)
    async with session.store() as store:
        records = Records(store)
        nodes = [record for record, _ in await records.list(NodeRecord)]
        # What other nodes could do is of no use to it.
        meant = [node for node in nodes if wish.labels.items() <= node.labels.items()]
        screen.status(f"reading what {wish.spec.model} needs")
        known = await find_known_for(session.config, wish.spec, meant)
        wish = msgspec.structs.replace(wish, spec=await pin_model(session.config, wish.spec, known))
        screen.status("")
        present = await records.get(DeploymentRecord, wish.name)
        known = known_before(known, wish.spec, None if present is None else present[0])
        check_wish(wish.spec, known.facts, meant, screen.line)
        since_s = time.time()
        measured = [record for record, _ in await records.list(MeasuredRecord)]
        wish, told = add_model(wish, known, meant, measured, must_fit=must_fit, rules=rules)
        applied = await apply_deployment(records, wish, since_s)
        screen.applied(applied)
        for line in told:
            screen.line(line)
        if not must_wait:
            if not nodes:
                screen.line("no worker is connected: start one with `xinf worker`")
            return applied, []
        async with Follower(store, applied.record, since_s=since_s, rules=rules) as follower:
            async for step in follower.until_ready(timeout_s, screen.status):
                screen.step(step)
            screen.status("")
            url = (await store.status()).gateway_url
            screen.line(f"{wish.name} is ready at {url}/v1: `xinf chat {wish.name}` talks to it")
            return applied, follower.replicas

"""`xinf up`: serve, worker and launch in one."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from xinf.cli.known import SIMULATED, known_before
from xinf.cli.need import add_model, find_known_for, read_measured, read_present
from xinf.cli.options import (
    ConfigFile,
    DataDir,
    DeviceOption,
    DtypeOption,
    Engine,
    EngineArgs,
    EngineEnv,
    Force,
    Front,
    MaxModelLen,
    Name,
    Policy,
    Quantization,
    Replicas,
    ServedNames,
    Settings,
    TensorParallelSize,
    Timeout,
    TrustRemoteCode,
)
from xinf.cli.pin import pin_model
from xinf.cli.screen import Screen
from xinf.cli.session import Session, open_session, run
from xinf.cli.verdict import check_wish
from xinf.cli.wish import choose_name, make_deployment, make_spec
from xinf.core.errors import InvalidRequest
from xinf.core.records import DeploymentRecord
from xinf.core.units import parse_seconds


def up(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or directory (default: a small scripted model).")
    ] = "scripted",
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
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on (default: 127.0.0.1).")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", metavar="PORT", help="Port (default: 8080).")] = None,
    front: Front = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Gateway processes (default: by cores).")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Serve without API keys where others can reach it.")
    ] = None,
    engines_dir: Annotated[
        str | None, typer.Option("--engines-dir", metavar="DIR", help="Where the engine environments are.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the deployment in the store at the end.")] = False,
    timeout: Timeout = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what every process logs.")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Serve one model from nothing: gateway, control process, agent and engine in one process tree.

    Prints `ready: URL`, how to use it and one real reply. Ctrl-C stops all of it, engines too.
    """
    from xinf.core import log
    from xinf.serve import Up

    flags = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.front": front,
        "gateway.workers": workers,
        "gateway.insecure": insecure,
        "agent.engines_dir": engines_dir,
        # What was started here ends here.
        "agent.stop_engines": True,
        "log_level": None if verbose else "error",
    }
    session = open_session(config, data_dir, settings=settings, flags=flags)
    log.configure("up", level=session.config.log_level if verbose else "warning")
    if replicas == 0:
        raise InvalidRequest("nothing would be served: up needs a replica", param="replicas")
    timeout_s = parse_seconds(timeout) if timeout else None
    chosen = choose_name(name, model)
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
    wish = make_deployment(spec, name=chosen, replicas=replicas, policy=policy)
    screen = Screen()
    if spec.engine != SIMULATED:
        wish = _plan_here(session, wish, screen, must_fit=not force)
    try:
        run(Up(session.config, wish, screen, agent_module="xinf.cli.worker", keep=keep).run(timeout_s))
    finally:
        screen.close()


def _plan_here(session: Session, wish: DeploymentRecord, screen: Screen, *, must_fit: bool) -> DeploymentRecord:
    """Judge and plan a wish on the only node that there will be. Raises: PlacementFailed."""
    from xinf.agent import describe_node
    from xinf.scheduler import rules_of

    node = run(describe_node(session.config))
    screen.status(f"reading what {wish.spec.model} needs")
    known = run(find_known_for(session.config, wish.spec, (node,)))
    wish = msgspec.structs.replace(wish, spec=run(pin_model(session.config, wish.spec, known)))
    screen.status("")
    known = known_before(known, wish.spec, run(read_present(session, wish.name)))
    check_wish(wish.spec, known.facts, (node,), screen.line)
    measured, rules = run(read_measured(session)), rules_of(session.config)
    wish, told = add_model(wish, known, (node,), measured, must_fit=must_fit, rules=rules)
    for line in told:
        screen.line(line)
    return wish

"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xinf.cli.names import complete_deployments

_WHERE = "Which installation"
_ENGINE = "Engine"
_PLACE = "Where it runs"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Configuration file (TOML).", envvar="XINF_CONFIG", rich_help_panel=_WHERE
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Where all state lives (default: $DATA_DIR or ~/.local/state/xinf).",
        rich_help_panel=_WHERE,
    ),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="Control process on another host, host:port.",
        envvar="XINF_SERVER",
        rich_help_panel=_WHERE,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any configuration key: --set gateway.max_waiting=64.",
        rich_help_panel=_WHERE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
GatewayUrl = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Gateway (default: of this installation).", rich_help_panel=_WHERE),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        "--admin-key",
        metavar="KEY",
        help="Key of the gateway's admin routes (default: this installation's own).",
        envvar="XINF_ADMIN_KEY",
        rich_help_panel=_WHERE,
    ),
]
DeploymentArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a deployment.", autocompletion=complete_deployments)
]
EngineArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Name of a deployment, or the id of a replica.", autocompletion=complete_deployments
    ),
]

Engine = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="vllm, or sim: a simulated engine.", rich_help_panel=_ENGINE)
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cuda:0, cuda, cpu, a UUID, several with commas, or auto.",
        rich_help_panel=_ENGINE,
    ),
]
Replicas = Annotated[
    int, typer.Option("--replicas", min=0, metavar="N", help="How many engines.", rich_help_panel=_ENGINE)
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", help="Name of the deployment (default: from the model).", rich_help_panel=_ENGINE
    ),
]
ServedNames = Annotated[
    list[str] | None,
    typer.Option(
        "--served-name",
        metavar="NAME",
        help="Name that clients use; may be repeated (default: the deployment's, and a hub id).",
        rich_help_panel=_ENGINE,
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option("--max-model-len", min=1, metavar="N", help="Longest context, in tokens.", rich_help_panel=_ENGINE),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="What to compute in: auto, bfloat16, float16 or float32.",
        rich_help_panel=_ENGINE,
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        metavar="METHOD",
        help="How weights are packed, if the model does not say: fp8, awq, gptq, ...",
        rich_help_panel=_ENGINE,
    ),
]
TensorParallelSize = Annotated[
    int, typer.Option("--tensor-parallel-size", min=1, metavar="N", help="Devices per engine.", rich_help_panel=_ENGINE)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model.", rich_help_panel=_ENGINE),
]
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg", metavar="KEY=VALUE", help="Passed to the engine as it is; repeatable.", rich_help_panel=_ENGINE
    ),
]
EngineEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--env", metavar="KEY=VALUE", help="Environment variable of the engine; repeatable.", rich_help_panel=_ENGINE
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Deploy it even if its memory fits no device.", rich_help_panel=_ENGINE),
]
Policy = Annotated[
    str,
    typer.Option(
        "--policy", metavar="POLICY", help="auto, least_load, round_robin, session or prefix.", rich_help_panel=_ENGINE
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="Only on nodes with this label; repeatable.", rich_help_panel=_PLACE
    ),
]
PlacementOption = Annotated[
    str,
    typer.Option(
        "--placement",
        metavar="HOW",
        help="spread: away from each other; pack: where least is left over.",
        rich_help_panel=_PLACE,
    ),
]
Priority = Annotated[
    int,
    typer.Option(
        "--priority",
        metavar="N",
        help="May stop engines of a lower priority where there is no room.",
        rich_help_panel=_PLACE,
    ),
]
Share = Annotated[
    bool,
    typer.Option(
        "--share", help="May share devices with others that may, each within its memory plan.", rich_help_panel=_PLACE
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="Give up waiting after this time: 90s, 10m.", show_default="wait on"
    ),
]
Front = Annotated[
    str | None,
    typer.Option(
        "--front", metavar="FRONT", help="What speaks HTTP: granian, granian-rsgi or direct (default: granian)."
    ),
]

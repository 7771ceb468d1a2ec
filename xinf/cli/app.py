"""The command line as a whole: which commands there are, in which order and under which heading."""

from __future__ import annotations

import typer

from xinf.cli import (
    bench,
    chat,
    configuration,
    deployments,
    describe,
    devices,
    dry_run,
    engine,
    events,
    key,
    launch,
    logs,
    meta,
    node_list,
    nodes,
    plan,
    ps,
    pull,
    route,
    serve,
    sim,
    up,
    version,
    why,
    worker,
)
from xinf.cli.failure import Commands
from xinf.cli.page import lay_out

_RUN = "Run"
_DEPLOY = "Models"
_LOOK = "Look"
_ADMIN = "Administer"

app = typer.Typer(
    cls=Commands,
    help="Serve language models: an OpenAI-compatible gateway, engines behind it, one machine or many.",
    epilog="Start with `xinf up MODEL`, or with `xinf serve`, `xinf worker` and `xinf launch` in three terminals.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(version.root)
app.command(rich_help_panel=_RUN, epilog="Example: [b]xinf up Qwen/Qwen2.5-0.5B-Instruct --port 9000[/b]")(up.up)
app.command(rich_help_panel=_RUN, epilog="Example: [b]xinf serve --port 8080[/b]")(serve.serve)
app.command(rich_help_panel=_RUN, epilog="Example: [b]xinf worker[/b]")(worker.worker)
app.command(rich_help_panel=_RUN, epilog="Example: [b]xinf sim --http --port 8001 --engine-arg step_ms=10[/b]")(sim.sim)
app.command(
    rich_help_panel=_DEPLOY,
    epilog="Example: [b]xinf launch --model Qwen/Qwen2.5-7B-Instruct --device cuda:0[/b]",
)(launch.launch)
app.command(rich_help_panel=_DEPLOY, epilog="Example: [b]xinf pull Qwen/Qwen2.5-7B-Instruct --revision main[/b]")(
    pull.pull
)
app.command(rich_help_panel=_DEPLOY, epilog="Example: [b]xinf ps[/b]")(ps.ps)
app.command(rich_help_panel=_DEPLOY, epilog="Example: [b]xinf scale qwen2.5-7b-instruct 2[/b]")(deployments.scale)
app.command(rich_help_panel=_DEPLOY, epilog="Example: [b]xinf stop qwen2.5-7b-instruct[/b]")(deployments.stop)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf describe qwen2.5-7b-instruct[/b]")(describe.describe)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf logs qwen2.5-7b-instruct -f[/b]")(logs.logs)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf events qwen2.5-7b-instruct --follow[/b]")(events.events)
app.command(rich_help_panel=_LOOK, epilog='Example: [b]xinf chat qwen2.5-7b-instruct -m "hello"[/b]')(chat.chat)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf why req-0-5c2e11-42[/b]")(why.why)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf route --explain request.json[/b]")(dry_run.route)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf devices --json[/b]")(devices.devices)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf nodes[/b]")(node_list.nodes)
app.command(rich_help_panel=_LOOK, epilog="Example: [b]xinf plan Qwen/Qwen2.5-7B-Instruct --max-model-len 8192[/b]")(
    plan.plan
)
app.add_typer(bench.app, name="bench", rich_help_panel=_LOOK)
app.command(
    rich_help_panel=_LOOK, epilog="Example: [b]xinf simulate --workload chat,agents --pool 7,50 --replicas 64[/b]"
)(route.simulate)
app.command(rich_help_panel=_ADMIN, epilog="Example: [b]xinf cordon node-a --reason 'new driver'[/b]")(nodes.cordon)
app.command(rich_help_panel=_ADMIN, epilog="Example: [b]xinf uncordon node-a[/b]")(nodes.uncordon)
app.command(rich_help_panel=_ADMIN, epilog="Example: [b]xinf drain node-a[/b]")(nodes.drain)
app.add_typer(key.app, name="key", rich_help_panel=_ADMIN)
app.add_typer(meta.app, name="meta", rich_help_panel=_ADMIN)
app.add_typer(engine.app, name="engine", rich_help_panel=_ADMIN)
app.add_typer(configuration.app, name="config", rich_help_panel=_ADMIN)
app.command(rich_help_panel=_ADMIN, epilog="Example: [b]xinf version --json[/b]")(version.version)
lay_out(app)

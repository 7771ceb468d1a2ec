"""Describes this host as a node: its name, devices, engine environments and labels."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path

import xinf
from xinf.agent.chart import read_chart
from xinf.agent.environment import find_environments
from xinf.agent.models import find_models
from xinf.agent.succession import resume
from xinf.core.config import AgentConfig, Config
from xinf.core.errors import ConfigError
from xinf.core.ids import NodeName, check_name
from xinf.core.records import NodeRecord
from xinf.device import read_host


async def describe_node(config: Config) -> NodeRecord:
    """Probe this host. Takes seconds where a driver is slow. Raises: ConfigError, InvalidRequest for a bad name."""
    settings = config.agent
    host = await read_host()
    # Without samples nothing would end what an earlier agent said.
    chart = read_chart(config.paths.devices_file) if settings.sample_interval else None
    return NodeRecord(
        name=node_name(settings),
        address=settings.address,
        devices=host.devices if chart is None else resume(chart.devices, host),
        topology=host.topology,
        environments=find_environments(engines_dir(settings)),
        labels=parse_labels(settings.labels),
        models=find_models(config.paths.models_dir, os.environ),
        version=xinf.__version__,
        agent_pid=os.getpid(),
        started_s=time.time(),
    )


def engines_dir(settings: AgentConfig) -> Path:
    """Where the engine environments of this host are."""
    if settings.engines_dir:
        return Path(settings.engines_dir).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "xinf" / "engines"


def node_name(settings: AgentConfig) -> NodeName:
    """The configured name, else the host's, made fit to be a key."""
    if settings.node:
        return NodeName(check_name(settings.node, what="node"))
    host = re.sub(r"[^a-z0-9.-]+", "-", platform.node().lower()).strip("-.")[:63].strip("-.")
    return NodeName(host or "localhost")


def parse_labels(text: str) -> dict[str, str]:
    """Read `zone=a,disk=ssd`. Raises: ConfigError."""
    labels: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"agent.labels: {part!r} is not key=value")
        labels[key.strip()] = value.strip()
    return labels

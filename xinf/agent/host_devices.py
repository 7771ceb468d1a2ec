"""The devices of this host as a worker that starts now would tell them, for commands that ask without one."""

from __future__ import annotations

import time
from pathlib import Path

from xinf.agent.chart import read_chart
from xinf.agent.condition import Condition, dated
from xinf.agent.succession import resume
from xinf.core.config import Config
from xinf.core.device import Device
from xinf.device import read_host


async def list_devices(config: Config, root: Path = Path("/")) -> tuple[Device, ...]:
    """List them anew, with what the worker here says of them, or said last since the host was booted.

    Never raises because of a device. What a worker notices from now on is not seen: `xinf devices --all` asks it.
    """
    host = await read_host(root=root)
    chart = read_chart(config.paths.devices_file) if config.agent.sample_interval else None
    if chart is None:
        return host.devices
    condition = Condition(resume(chart.devices, host), chart.spells, chart.occupants)
    return dated(chart.devices, condition.mark(time.monotonic()), time.time())

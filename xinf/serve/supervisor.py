"""`xinf serve`: a supervisor and its two children.

    supervisor                    hears the terminal; imports neither gRPC nor Granian
    ├─ control process            store, metastore service, scheduler         first up, last down
    └─ gateway                    Granian's master and its workers

Ready means that the gateway answers. The end drains the gateway first, because a request that is still open may need
what the control process knows of its replica.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import msgspec

from xinf.core.config import Config, to_environ
from xinf.core.errors import Unavailable
from xinf.serve.address import answers, check_port_is_free, gateway_url, pick_port
from xinf.serve.child import Child, ChildSpec
from xinf.serve.interrupts import Interrupts

START_TIMEOUT_S = 60.0
CONTROL_STOP_TIMEOUT_S = 15.0
GATEWAY_STOP_MARGIN_S = 10.0  # above its own drain timeout
AGENT_STOP_MARGIN_S = 40.0  # above the drain timeout of its engines
AGENT_HURRY_S = 10.0  # to clean up after engines that were killed
_POLL_S = 0.05


class Supervisor:
    """The tree of one `xinf serve`. `start`, then `stop` in any case."""

    def __init__(self, config: Config) -> None:
        if config.gateway.port == 0:
            gateway = msgspec.structs.replace(config.gateway, port=pick_port(config.gateway.host))
            config = msgspec.structs.replace(config, gateway=gateway)
        # Children see the directory that we see, whatever their working directory.
        self.config = msgspec.structs.replace(config, data_dir=str(config.paths.data_dir))
        self.url = gateway_url(self.config.gateway)
        self.meta_target = f"unix:{self.config.paths.control_socket}"
        self.environ = {
            **os.environ,
            "XINF_EFFECTIVE_CONFIG": to_environ(self.config),
            "XINF_META_TARGET": self.meta_target,
        }
        self._children: list[Child] = []
        self._is_owner = False

    async def start(self) -> None:
        """Start everything and return when the gateway answers.

        Raises: StoreHeld, ConfigError, Unavailable, StoreError; `stop` is still due.
        """
        control = self._add(
            ChildSpec(
                name="control process",
                module="xinf.serve.control",
                first_arguments=("--first",),
                environ=self.environ,
                stop_timeout_s=CONTROL_STOP_TIMEOUT_S,
                hurry_timeout_s=CONTROL_STOP_TIMEOUT_S,  # it has nothing to wait for
                has_report=True,
            )
        )
        await control.start(START_TIMEOUT_S)
        self._is_owner = True
        check_port_is_free(self.config.gateway.host, self.config.gateway.port)
        gateway = self._add(
            ChildSpec(
                name="gateway",
                module="xinf.gateway",
                environ=self.environ,
                stop_timeout_s=self.config.gateway.drain_timeout + GATEWAY_STOP_MARGIN_S,
            )
        )
        await gateway.start(START_TIMEOUT_S)
        await self._wait_for_gateway(gateway)

    async def start_agent(self, module: str) -> None:
        """Add the agent of this node to the tree; it ends its engines when it is stopped in order."""
        agent = self._add(
            ChildSpec(
                name="agent",
                module=module,
                environ=self.environ,
                # Engines outlive an agent that is killed, as they do elsewhere; TERM would end them here.
                death_signal="KILL",
                stop_timeout_s=self.config.agent.drain_timeout + AGENT_STOP_MARGIN_S,
                hurry_timeout_s=AGENT_HURRY_S,
            )
        )
        await agent.start(START_TIMEOUT_S)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all children, the last first, and remove what they leave in the runtime directory."""
        while self._children:
            await self._children.pop().stop(hurry)
        if self._is_owner:
            self._tidy()

    def _add(self, spec: ChildSpec) -> Child:
        child = Child(spec)
        self._children.append(child)
        return child

    async def _wait_for_gateway(self, gateway: Child) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await answers(self.config.gateway):
                    if gateway.restarts:
                        raise Unavailable("the gateway ended before it was ready", remedy="its output is above")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Unavailable(
                f"the gateway did not answer on {self.url} within {START_TIMEOUT_S:g} s", remedy="its output is above"
            ) from None

    def _tidy(self) -> None:
        """Sockets and lock files of processes that are gone. Engines that go on have theirs there too, which stay."""
        paths = self.config.paths
        ours = (paths.control_socket, paths.admin_key_file)
        for path in (*ours, *paths.runtime_dir.glob("gw*.sock"), *paths.runtime_dir.glob("gw*.lock")):
            path.unlink(missing_ok=True)
        try:
            paths.runtime_dir.rmdir()
        except OSError:  # not empty
            pass


async def serve(config: Config, on_ready: Callable[[str], None]) -> None:
    """Serve until INT or TERM. `on_ready` gets the gateway's URL.

    Raises: what `Supervisor.start` raises, after everything is stopped again.
    """
    interrupts = Interrupts()
    supervisor = Supervisor(config)

    async def work() -> None:
        await supervisor.start()
        on_ready(supervisor.url)
        await asyncio.Event().wait()

    try:
        await interrupts.cut(work())
    finally:
        await supervisor.stop(interrupts.again)

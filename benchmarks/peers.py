"""The other gateways: how each is installed, into an environment of its own, and how each is started.

Each gets what its documentation recommends for production, logs at warning level and no limit that the cells would
meet. What is set, and why, is in `settings` and goes into the report. `python -m benchmarks.peers` installs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from benchmarks.contestant import Family, Site, trial_body
from benchmarks.engines import MODEL
from benchmarks.loadgen import ROOT
from benchmarks.pin import GATEWAY_CPU
from benchmarks.service import Service, free_port

HOME = ROOT / ".build" / "peers"
# The versions that were newest when the suite was made; pip refuses what does not exist, nothing is picked silently.
REQUIREMENTS: dict[str, str] = {
    "sglang-router": "sglang-router==0.3.2",
    "vllm-router": "vllm-router==0.1.17",
    "smg": "smg==1.13.0",
    "litellm": "litellm[proxy]==1.106.2",
}


class Command(msgspec.Struct, frozen=True):
    """A command line and what its environment needs."""

    words: tuple[str, ...]
    environ: dict[str, str] = {}


class Peer:
    """A gateway of somebody else in one mode, in front of the HTTP engines."""

    def __init__(
        self,
        name: str,
        family: Family,
        build: Callable[[Peer, Site], Command],
        *,
        package: str | None,
        settings: str,
    ) -> None:
        self.name = name
        self.family = family
        self.package = package
        self.settings = settings
        self.port = 0
        self.build = build
        self._service: Service | None = None
        self._site: Site | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.port,)

    def version(self) -> str:
        if self.package == "nginx":
            shown = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
            return shown.stderr.strip().rpartition("/")[2]
        if self.package is None:
            return ""
        python = sys.executable if self.package == "granian" else str(HOME / self.package / "bin" / "python")
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def binary(self, name: str) -> str:
        """A program of this peer's own environment."""
        assert self.package is not None
        return str(HOME / self.package / "bin" / name)

    def start(self, site: Site) -> None:
        self.port = free_port()
        self._site = site
        command = self.build(self, site)
        log = site.directory / f"{self.name.replace(' ', '-')}.log"
        self._service = Service(self.name, command.words, cpus=GATEWAY_CPU, log=log, environ=command.environ)
        self._service.wait_http(f"http://127.0.0.1:{self.port}/v1/chat/completions", body=trial_body(MODEL))

    def gateway_pids(self) -> tuple[int, ...]:
        assert self._service is not None
        return self._service.tree()

    def engine_pids(self) -> tuple[int, ...]:
        assert self._site is not None
        return self._site.engines.pids()

    def close(self) -> None:
        if self._service is not None:
            self._service.stop()
        self._service = None


class Direct:
    """The load generator against the engines themselves: what everything else adds to."""

    name = "no gateway"
    family = Family.NONE
    settings = "the load generator's connections are dealt over the engines"
    package = None

    def __init__(self) -> None:
        self._site: Site | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        assert self._site is not None
        return self._site.engines.ports

    def version(self) -> str:
        return ""

    def start(self, site: Site) -> None:
        self._site = site

    def gateway_pids(self) -> tuple[int, ...]:
        return ()

    def engine_pids(self) -> tuple[int, ...]:
        assert self._site is not None
        return self._site.engines.pids()

    def close(self) -> None:
        self._site = None


def _workers(site: Site) -> tuple[str, ...]:
    return ("--worker-urls", *site.engines.urls)


def _listen(peer: Peer, log_level: str) -> tuple[str, ...]:
    return (
        *("--host", "127.0.0.1", "--port", str(peer.port), "--log-level", log_level),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        *("--worker-startup-check-interval", "1"),  # seconds until it notices its workers; nothing after that
    )


def sglang(policy: str) -> Callable[[Peer, Site], Command]:
    def build(peer: Peer, site: Site) -> Command:
        launch = (peer.binary("python"), "-m", "sglang_router.launch_router")
        return Command((*launch, *_listen(peer, "warn"), "--policy", policy, *_workers(site)))

    return build


def vllm(policy: str) -> Callable[[Peer, Site], Command]:
    def build(peer: Peer, site: Site) -> Command:
        return Command((peer.binary("vllm-router"), *_listen(peer, "warning"), "--policy", policy, *_workers(site)))

    return build


def smg(policy: str) -> Callable[[Peer, Site], Command]:
    def build(peer: Peer, site: Site) -> Command:
        launch = (peer.binary("smg"), "launch", *_listen(peer, "warn"), "--backend", "vllm")
        return Command((*launch, "--max-concurrent-requests", "0", "--policy", policy, *_workers(site)))

    return build


_LITELLM = """\
model_list:
{models}
litellm_settings: {{telemetry: false, set_verbose: false, request_timeout: 600}}
router_settings: {{routing_strategy: simple-shuffle, num_retries: 0}}
"""
_LITELLM_MODEL = """\
  - model_name: {name}
    litellm_params: {{model: openai/{name}, api_base: "{url}/v1", api_key: none}}"""


def _litellm(peer: Peer, site: Site) -> Command:
    config = site.directory / "litellm.yaml"
    models = "\n".join(_LITELLM_MODEL.format(name=MODEL, url=url) for url in site.engines.urls)
    config.write_text(_LITELLM.format(models=models))
    listen = ("--host", "127.0.0.1", "--port", str(peer.port), "--num_workers", "1")
    environ = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # nobody here checks a key
    }
    return Command((peer.binary("litellm"), "--config", str(config), *listen), environ)


_NGINX = """\
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_body_buffer_size 256k;
    client_max_body_size 32m;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    upstream engines {{
{servers}
        keepalive 2048;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engines;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


def _nginx(peer: Peer, site: Site) -> Command:
    config = site.directory / "nginx.conf"
    servers = "\n".join(f"        server {url.removeprefix('http://')};" for url in site.engines.urls)
    config.write_text(_NGINX.format(dir=site.directory, port=peer.port, servers=servers))
    return Command(("nginx", "-p", str(site.directory), "-c", str(config), "-e", str(site.directory / "nginx.start")))


def _granian(target: str) -> Callable[[Peer, Site], Command]:
    def build(peer: Peer, site: Site) -> Command:
        run = (str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--loop", "uvloop", "--http", "1")
        listen = ("--host", "127.0.0.1", "--port", str(peer.port), "--workers", "1", "--no-ws", "--log-level", "error")
        environ = {"NAIVE_PROXY_UPSTREAMS": ",".join(site.engines.urls), "PYTHONPATH": _python_path()}
        return Command((*run, *listen, target), environ)

    return build


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def peers() -> list[Peer | Direct]:
    """All of them, whether they are installed or not."""
    rust = "log level warning, Prometheus on loopback, everything else as it comes; one Tokio worker on its one core"
    return [
        *(
            Peer(f"{package} {policy}", family, build(policy), package=package, settings=f"--policy {policy}; {more}")
            for package, build, more in (
                ("sglang-router", sglang, rust),
                ("vllm-router", vllm, rust),
                ("smg", smg, f"{rust}; --backend vllm, --max-concurrent-requests 0 (no limit)"),
            )
            for policy, family in (("cache_aware", Family.CACHE_AWARE), ("round_robin", Family.ROUND_ROBIN))
        ),
        Peer(
            "nginx",
            Family.PROXY,
            _nginx,
            package="nginx",
            settings="one worker, upstream keep-alive, answers not buffered, request bodies in memory, no access log",
        ),
        Peer(
            "litellm",
            Family.PROXY,
            _litellm,
            package="litellm",
            settings="one worker, simple-shuffle, no retries, no key, log level error, LITELLM_MODE=PRODUCTION",
        ),
        Peer(
            "naive ASGI proxy",
            Family.NAIVE,
            _granian("benchmarks.naive_proxy:app"),
            package="granian",
            settings="httpx behind Granian's ASGI interface, uvloop, round robin",
        ),
        Peer(
            "Granian hello",
            Family.FLOOR,
            _granian("benchmarks.hello:app"),
            package="granian",
            settings="ASGI on uvloop, reads the body and answers a constant",
        ),
        Direct(),
    ]


def is_installed(package: str | None) -> bool:
    """Whether a peer's programs are there."""
    if package is None or package == "granian":
        return True
    if package == "nginx":
        return shutil.which("nginx") is not None
    marker = HOME / package / "installed"
    return marker.exists() and marker.read_text() == REQUIREMENTS[package]


def install(package: str) -> None:
    """Make a peer's environment. Raises: CalledProcessError; RuntimeError when nginx cannot be installed."""
    if is_installed(package):
        return
    if package == "nginx":
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise RuntimeError("nginx is not installed and apt-get needs root: install it, or leave it out with --only")
        subprocess.run(["apt-get", "install", "-y", "-q", "nginx-light"], check=True)
        return
    directory = HOME / package
    if not (directory / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    subprocess.run([str(directory / "bin" / "python"), "-m", "pip", "install", "-q", REQUIREMENTS[package]], check=True)
    (directory / "installed").write_text(REQUIREMENTS[package])


if __name__ == "__main__":
    for each in [*REQUIREMENTS, "nginx"]:
        install(each)
        print(f"{each}: installed")

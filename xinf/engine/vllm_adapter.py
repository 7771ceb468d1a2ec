"""The real vLLM behind the adapter interface: its own engine and its own OpenAI server, driven inside this process.

    handle ──▶ Exchange ──▶ vLLM's ASGI app ──▶ EngineProxy ──▶ AsyncLLM ══ZMQ══▶ EngineCore (process of its own)
                  │                                │               │
                  ▼                                ▼               ▼
                Reply                        RequestRecord     StepMonitor ──▶ load, watchdog

Every route of vLLM works, with its own status codes and bodies; nothing of the protocol is written here a second time.
Written against vLLM 0.32; 0.33 moved one module (vllm_args.py). vLLM is imported in `build` and not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from xinf.core.errors import EngineDied, EngineError, EngineStartFailed, InvalidRequest, NotFound, Unavailable
from xinf.core.records import EngineSpec
from xinf.core.shim import ShimSpec
from xinf.engine import vllm_args, vllm_cpu, vllm_hub, vllm_numa
from xinf.engine.adapter import EngineDescription, LoadReport, Reply, Request, Usage
from xinf.engine.residency import Residency
from xinf.engine.vllm_app import AsgiApp, CollectedReply, Exchange
from xinf.engine.vllm_failure import EngineLog, explain
from xinf.engine.vllm_load import StepMonitor
from xinf.engine.vllm_residency import VllmResidency, event_arguments
from xinf.engine.vllm_scratch import Scratch
from xinf.engine.vllm_segments import segment_order
from xinf.engine.vllm_usage import EngineProxy, RequestRecord

_log = logging.getLogger(__name__)

# How long the application may take to let go of a request whose client left, before it is cancelled, and after.
_LET_GO_S = 2.0
_SHUTDOWN_S = 2.0
_DEATHSIG_PLUGIN = "xinf_deathsig"
# Its answers are messages that a next prompt may have.
_CHAT = "/v1/chat/completions"
_DOCUMENTATION = {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}

# One request that makes one token, or one vector, for each kind of task; the first that the model can do is used.
_WARM_UPS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("generate", "/v1/completions", {"prompt": "Hello", "max_tokens": 1, "temperature": 0}),
    ("embed", "/v1/embeddings", {"input": "Hello"}),
    ("classify", "/classify", {"input": "Hello"}),
    ("token_embed", "/pooling", {"input": "Hello"}),
)


class VllmAdapter:
    """One vLLM engine."""

    def __init__(self, spec: ShimSpec) -> None:
        self._spec = spec
        self._is_cpu = (spec.devices or ("cpu",))[0].partition(":")[0] == "cpu"
        self._monitor = StepMonitor()
        self._log: EngineLog
        self._scratch: Scratch
        self._args: Any
        self._llm: Any
        self._proxy: EngineProxy
        self._app: AsgiApp
        self._models: Any  # vLLM's OpenAIServingModels: names, LoRA adapters
        self._tasks: tuple[str, ...] = ()
        self._has_priorities = False
        self._residency: VllmResidency
        self._death: str | None = None
        self._is_closed = False

    # ---- life -----------------------------------------------------------------------------------------------------

    def build(self, progress: Callable[[str], None]) -> None:
        self._log = EngineLog(Path(self._spec.directory) / "engine.log")
        try:
            self._set_variables()
            self._build(progress)
        except (Exception, SystemExit) as error:
            explained = explain(error, self._log)
            if explained is error:
                raise
            raise explained from error

    def _set_variables(self) -> None:
        """Set what vLLM reads from the environment, before it is imported."""
        self._scratch = Scratch(Path(self._spec.directory))
        self._scratch.use()
        if self._is_cpu:
            vllm_cpu.set_variables(os.environ)
            vllm_numa.bind_to_nodes(os.environ)
            if self._spec.kv_cache_bytes is not None:
                vllm_cpu.hold_to_grant(os.environ, self._spec.engine.env)
        why = vllm_hub.seal(os.environ, self._spec.loaded)
        _log.info("no hub is asked" if why is None else "a hub may be asked: %s", *filter(None, [why]))
        os.environ.update({"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
        os.environ.setdefault("VLLM_LOGGING_LEVEL", self._spec.log_level.upper())
        # Keys are the gateway's business; vLLM would ask for this one as well.
        os.environ.pop("VLLM_API_KEY", None)
        # Where only some plugins are allowed, ours must be one of them.
        if (plugins := os.environ.get("VLLM_PLUGINS")) is not None and _DEATHSIG_PLUGIN not in plugins.split(","):
            os.environ["VLLM_PLUGINS"] = f"{plugins},{_DEATHSIG_PLUGIN}".lstrip(",")

    def _build(self, progress: Callable[[str], None]) -> None:
        start_method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD")
        progress("importing vLLM")
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError
        from vllm.v1.metrics.loggers import StatLoggerBase

        progress("reading the model's configuration")
        loaded = self._spec.loaded
        _check_path(loaded.model)
        family = _read_family(loaded)
        more = event_arguments(self._scratch.path) | vllm_args.memory_arguments(self._spec.memory_share)
        more |= vllm_args.revision_arguments(loaded)
        arguments = vllm_args.choose_arguments(loaded, is_cpu=self._is_cpu, family=family, more=more)
        self._args = vllm_args.parse(loaded, arguments)
        context = UsageContext.OPENAI_API_SERVER
        config = AsyncEngineArgs.from_cli_args(self._args).create_engine_config(context)
        if config.device_config.device_type == "cpu":
            self._fit_to_cpu(config)
            # vLLM's CPU platform always sets "spawn"; what somebody chose (tests: "fork") is respected.
            if start_method is not None:
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = start_method
        progress("loading the model")
        self._llm = AsyncLLM.from_vllm_config(
            config,
            usage_context=context,
            stat_loggers=[self._monitor.logger_factory(StatLoggerBase)],
            enable_log_requests=self._args.enable_log_requests,
            disable_log_stats=self._args.disable_log_stats,
        )
        # vLLM 0.32 on CPU dies of a request with a seed whose prompt is computed in parts: "CPU Generator does not use
        # offset", v1/worker/gpu_model_runner.py.
        self._proxy = EngineProxy(self._llm, EngineDeadError, drops_seeds=self._is_cpu)
        self._has_priorities = config.scheduler_config.policy == "priority"

    def _fit_to_cpu(self, config: Any) -> None:
        is_sized = config.cache_config.kv_cache_memory_bytes is not None or os.environ.get("VLLM_CPU_KVCACHE_SPACE")
        if is_sized:
            return
        # Each rank makes a cache of its own in the one memory that they share.
        n_ranks = config.parallel_config.world_size
        granted = self._spec.kv_cache_bytes
        if granted is not None:
            config.cache_config.kv_cache_memory_bytes = granted // n_ranks
        else:
            free_bytes = vllm_cpu.free_memory_bytes() // n_ranks
            config.cache_config.kv_cache_memory_bytes = vllm_cpu.kv_cache_bytes(config, free_bytes)

    async def open(self) -> EngineDescription:
        import vllm
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        self._tasks = tuple(await self._llm.get_supported_tasks())
        app = build_app(self._args, self._tasks, self._llm.model_config)
        # vLLM's error handlers tell its HTTP server to exit when the engine is dead; there is none here.
        app.state.server = SimpleNamespace(should_exit=False)
        await init_app_state(self._proxy, app.state, self._args, self._tasks)
        self._app = app
        self._models = app.state.openai_serving_models
        # What start-up made stays for good; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        config = self._llm.vllm_config
        segments = segment_order(self._render) if "generate" in self._tasks else ()
        if segments and not self._knows_developer():
            segments += ("developer",)
        self._open_residency(config, segments)
        canon = self._residency.canon
        return EngineDescription(
            engine="vllm",
            engine_version=vllm.__version__,
            model=self._spec.engine.model,
            served_names=tuple(self._args.served_model_name),
            block_tokens=config.cache_config.block_size,
            kv_blocks=config.cache_config.num_gpu_blocks or 0,
            max_model_len=config.model_config.max_model_len,
            max_running=config.scheduler_config.max_num_seqs,
            segment_order=segments,
            routes=_routes(app),
            tasks=self._tasks,
            residency=self._residency.residency.state.value,
            chunk_bytes=canon.chunk_bytes,
            chain_seed=canon.seed(""),
            loras=self._lora_names(),
        )

    def _open_residency(self, config: Any, segments: Sequence[str]) -> None:
        generates = "generate" in self._tasks
        self._residency = VllmResidency(config, model=self._spec.engine.model, segments=segments, generates=generates)
        if generates:
            self._residency.open(self._llm.get_tokenizer(), self._render_with_header)
            self._proxy.prompts = self._residency.prompts

    def residency(self) -> Residency:
        return self._residency.residency

    def _render_with_header(self, messages: Sequence[dict[str, Any]], has_header: bool) -> str:
        return self._apply_template(messages, None, add_generation_prompt=has_header)

    def _lora_names(self) -> tuple[str, ...]:
        return tuple(self._models.lora_requests)

    def _knows_developer(self) -> bool:
        """Whether the template has the role; if not, vLLM makes one system message of all such and puts it first.

        Source: vLLM 0.32, renderers/hf.py, `_detect_developer_role_support`, `_consolidate_system_messages`.
        """
        from vllm.renderers.chat_utils import load_chat_template

        given = load_chat_template(self._args.chat_template) or self._llm.get_tokenizer().chat_template
        return '"developer"' in str(given) or "'developer'" in str(given)

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, **options: Any
    ) -> str:
        return self._apply_template(messages, tools, **options)

    def _apply_template(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, **options: Any
    ) -> str:
        from vllm.renderers.chat_utils import load_chat_template

        tokenizer = self._llm.get_tokenizer()
        template = load_chat_template(self._args.chat_template)
        options = (self._args.default_chat_template_kwargs or {}) | options
        return str(
            tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, **options)
        )

    async def warm_up(self) -> None:
        warm_up = next((found for found in _WARM_UPS if found[0] in self._tasks), None)
        if warm_up is None:
            _log.warning("no warm-up is known for tasks %s", ", ".join(self._tasks))
            return
        _, path, fields = warm_up
        body = msgspec.json.encode({"model": self._args.served_model_name[0], **fields})
        reply = CollectedReply()
        try:
            await self.handle(Request(method="POST", path=path, body=body, request_id="warm-up"), reply)
        except EngineError as error:
            cause = self._log.root_cause() or error.message
            raise EngineStartFailed(
                f"the engine was built but its first request failed: {cause}",
                remedy="see the engine's log; a head size that vLLM's attention does not know does this",
                cause="warmup_failed",
            ) from error
        if reply.status != 200:
            answer = reply.body[:500].decode(errors="replace")
            raise EngineStartFailed(
                f"the engine answered its first request with {reply.status}: {answer}",
                remedy="see the engine's log",
                cause="warmup_failed",
            )

    async def close(self) -> None:
        self._is_closed = True
        if hasattr(self, "_residency"):
            await self._residency.close()
        if hasattr(self, "_llm"):
            self._llm.shutdown(timeout=_SHUTDOWN_S)
        self._scratch.remove()

    # ---- requests -------------------------------------------------------------------------------------------------

    async def handle(self, request: Request, reply: Reply) -> Usage:
        record = RequestRecord(request.body, is_chat=request.path.startswith(_CHAT))
        exchange = Exchange(request, reply, record)
        if not self._llm.get_num_unfinished_requests():
            self._monitor.wake()
        answering = asyncio.create_task(self._answer(exchange, record))
        try:
            await asyncio.wait({answering})
        except asyncio.CancelledError:
            exchange.leave()
            await self._let_go(answering, record)
            raise
        finally:
            self._monitor.note_prompt(prompt_tokens=record.prompt_tokens, cached_tokens=record.cached_tokens)
            self._monitor.tell()
        error = answering.exception()
        if record.death is not None:
            raise EngineDied("the engine's process ended under the request") from record.death
        if not exchange.has_answered:
            if error is not None:
                raise EngineError(f"vLLM failed on the request: {type(error).__name__}") from error
            raise EngineError("vLLM ended the request without an answer")
        if error is not None:
            # Starlette raises again what it has answered with a 500.
            _log.error("vLLM failed on request %s", request.request_id, exc_info=error)
        return record.usage()

    async def _answer(self, exchange: Exchange, record: RequestRecord) -> None:
        record.enter()
        scope = exchange.scope(self._app, has_priorities=self._has_priorities)
        await self._app(scope, exchange.receive, exchange.send)

    async def _let_go(self, answering: asyncio.Task[None], record: RequestRecord) -> None:
        """Wait until the engine works no more on a request whose client is gone."""
        # vLLM notices by the disconnect that the exchange tells; a handler that does not look is cancelled.
        await asyncio.wait({answering}, timeout=_LET_GO_S)
        if not answering.done():
            answering.cancel()
            await asyncio.wait({answering}, timeout=_LET_GO_S)
        # Handlers may leave the abort to tasks of their own.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LET_GO_S):
                await record.wait_idle()
        if answering.done() and not answering.cancelled() and (error := answering.exception()) is not None:
            _log.debug("a cancelled request ended with %r", error)

    # ---- state ----------------------------------------------------------------------------------------------------

    def load(self) -> LoadReport:
        return self._monitor.report(
            n_unfinished=self._llm.get_num_unfinished_requests(),
            queued_prefill_tokens=self._llm.get_num_queued_tokens(),
            kv_blocks_total=self._llm.vllm_config.cache_config.num_gpu_blocks or 0,
        )

    def on_step(self, listener: Callable[[], None]) -> None:
        self._monitor.on_step(listener)

    def last_step_age_s(self) -> float | None:
        return self._monitor.age_s() if self._llm.get_num_unfinished_requests() else None

    def dead_reason(self) -> str | None:
        if self._is_closed:
            return None  # it ends because it was told to
        if self._death is None and self._llm.errored:
            cause = self._log.root_cause()
            self._death = f"vLLM's EngineCore process ended: {cause or 'it wrote no error, so it was killed'}"
        return self._death

    # ---- control --------------------------------------------------------------------------------------------------

    async def load_lora(self, name: str, path: str) -> None:
        if self._llm.vllm_config.lora_config is None:
            raise InvalidRequest(
                "the engine was started without LoRA", remedy="launch it with --engine-arg enable-lora=true"
            )
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=path)
        _raise_error(await self._models.load_lora_adapter(request))

    async def unload_lora(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        loaded = self._models.lora_requests.get(name)
        _raise_error(await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name)))
        # vLLM only forgets the name; the adapter would keep its place in the engine.
        if loaded is not None:
            await self._llm.remove_lora(loaded.lora_int_id)

    async def sleep(self, level: int) -> None:
        if not self._llm.vllm_config.model_config.enable_sleep_mode:
            raise Unavailable(
                "the engine was started without sleep mode",
                remedy="launch it with --engine-arg enable-sleep-mode=true (not on CPU)",
            )
        await self._llm.sleep(level)
        if self._proxy.prompts is not None:
            self._proxy.prompts.clear()

    async def wake(self) -> None:
        await self._llm.wake_up()


def _check_path(model: str) -> None:
    """Refuse a path that is not there; vLLM would take it for a hub id and say that it is none."""
    if model.startswith(("/", ".", "~")) and not Path(model).exists():
        raise EngineStartFailed(
            f"there is no model at {model} on this host",
            remedy="check the path; it must exist on the host that runs the engine",
            cause="model_not_found",
        )


def _raise_error(answer: Any) -> None:
    """Raise what vLLM answered if it is an error. It answers with a sentence when all went well."""
    if isinstance(answer, str):
        return
    message = str(answer.error.message)
    match int(answer.error.code):
        case 404:
            raise NotFound(message)
        case 400:
            raise InvalidRequest(message)
    raise EngineError(message)


def _routes(app: Any) -> tuple[str, ...]:
    found = {
        f"{method} {route.path}"
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if method not in ("HEAD", "OPTIONS") and route.path not in _DOCUMENTATION
    }
    return tuple(sorted(found))


def _read_family(spec: EngineSpec) -> vllm_args.ModelFamily:
    """Read the model's type and chat template, from its directory or with vLLM's hub client. Unknown: an empty one."""
    repository = importlib.import_module("vllm.transformers_utils.repo_utils")
    revision = spec.engine_args.get("revision") or vllm_args.revision_arguments(spec).get("revision")

    def read(name: str) -> bytes:
        try:
            return repository.get_hf_file_bytes(name, spec.model, revision) or b""
        except (OSError, ValueError) as error:
            # Loading the model fails with the whole story if it is not there at all.
            _log.info("cannot read %s of the model: %s", name, error)
            return b""

    def read_json(name: str) -> dict[str, Any]:
        try:
            content = json.loads(read(name) or b"{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    template = read("chat_template.jinja").decode(errors="replace")
    if not template:
        given = read_json("tokenizer_config.json").get("chat_template", "")
        # Several named templates, or one.
        template = given if isinstance(given, str) else json.dumps(given)
    return vllm_args.ModelFamily(model_type=str(read_json("config.json").get("model_type", "")), chat_template=template)

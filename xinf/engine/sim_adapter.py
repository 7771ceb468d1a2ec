"""The `sim` engine behind the adapter interface: OpenAI's routes over a SimEngine driven by the event loop.

Engine arguments are the fields of SimSettings (rates, sizes, seed), of SimFaults (for tests of whoever watches
engines) and of SimSays. An answer has exactly `max_tokens` tokens, and ANSWER_TOKENS without one; `stop` cuts it.
Prompts are rendered with the model's own chat template if `model` is a directory that has one, else with ChatML.
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from xinf import __version__
from xinf.chat import ChatMl, Template, resolve_template
from xinf.core.errors import (
    EngineDied,
    EngineStartFailed,
    InvalidRequest,
    NotFound,
    Unavailable,
    UnknownModel,
    XinfError,
)
from xinf.core.shim import ShimSpec
from xinf.engine.adapter import EngineDescription, FinalReply, LoadReport, RawHeader, Reply, Request, Usage
from xinf.engine.prompts import Registered
from xinf.engine.residency import Residency, State
from xinf.engine.sim_answer import (
    PREFILL_ONLY,
    Answer,
    EmbeddingAnswer,
    Header,
    Part,
    Planned,
    StreamAnswer,
    WholeAnswer,
    send_error,
    send_json,
    send_whole,
    sum_usage,
)
from xinf.engine.sim_request import (
    GenerationCall,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_embedding,
    parse_tokenize,
    token_ids,
)
from xinf.engine.sim_residency import SimResidency
from xinf.sim import BYTES_PER_TOKEN, SimEngine, SimSettings, TextSource, count_tokens

ANSWER_TOKENS = 64  # of an answer to a request that names no limit
EMBEDDING_DIMENSIONS = 64
MAX_MODEL_LEN = 32768  # unless given; never more than the cache holds
# Steps run in one turn of the event loop when they take no time: more costs latency of everything else on the loop,
# fewer costs a turn of the loop per step.
_STEPS_PER_TURN = 8

_ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
}


class SimFaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Things that go wrong on purpose. Tokens are counted from readiness on."""

    build_s: float = 0.0  # building takes this long, and blocks as building does
    build_failure: str | None = None  # building fails with this cause
    die_after_tokens: int | None = None  # then the engine is dead
    hang_after_tokens: int | None = None  # then it makes no more steps


class SimSays(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What gateways are told of the cache."""

    residency: State = State.EXACT


class SimAdapter:
    """A simulated engine with one model."""

    def __init__(self, spec: ShimSpec) -> None:
        self._spec = spec.engine
        self._names = spec.engine.served_names or (spec.engine.model,)
        self._loras: dict[str, str] = {}
        self._listeners: list[Callable[[], None]] = []
        self._answers: dict[Answer, None] = {}  # that are not complete
        self._dead_reason: str | None = None
        self._is_asleep = False
        self._answers_at_once = False
        self._timer: asyncio.Handle | None = None
        self._last_step_s = 0.0
        self._n_warm_up_tokens = 0
        self._id_prefix = secrets.token_hex(4)
        self._id_numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop
        self._settings: SimSettings
        self._faults: SimFaults
        self._says: SimSays
        self._residency: SimResidency
        self._engine: SimEngine
        self._text: TextSource
        self._template: Template
        self._max_model_len = 0

    # ---- life -----------------------------------------------------------------------------------------------------

    def build(self, progress: Callable[[str], None]) -> None:
        """Read the engine arguments and the template. Raises: EngineStartFailed."""
        self._settings, self._faults, self._says = _read_arguments(self._spec.engine_args)
        if self._faults.build_s:
            progress(f"building for {self._faults.build_s} s, as asked")
            time.sleep(self._faults.build_s)
        if self._faults.build_failure is not None:
            raise EngineStartFailed(
                "the simulated engine failed to build, as asked",
                remedy="leave out --engine-arg build_failure",
                cause=self._faults.build_failure,
            )
        kv_tokens = self._settings.kv_tokens
        self._max_model_len = self._spec.max_model_len or min(MAX_MODEL_LEN, kv_tokens)
        if self._max_model_len > kv_tokens:
            raise _bad_arguments(
                f"max_model_len is {self._max_model_len}, but the cache of {self._settings.kv_blocks} blocks of "
                f"{self._settings.block_tokens} tokens holds {kv_tokens}",
                "raise kv_blocks or lower max_model_len",
            )
        found = resolve_template(Path(self._spec.model)) if Path(self._spec.model).is_dir() else None
        self._template = found or ChatMl(source_name="sim")
        has_token_fault = self._faults.die_after_tokens is not None or self._faults.hang_after_tokens is not None
        self._answers_at_once = self._settings.is_instant and not has_token_fault
        self._text = TextSource(self._settings.seed)
        self._engine = SimEngine(self._settings)
        self._residency = SimResidency(
            self._engine, self._settings, self._says.residency, model=self._spec.model, template=self._template
        )

    async def open(self) -> EngineDescription:
        self._loop = asyncio.get_running_loop()
        canon = self._residency.canon
        return EngineDescription(
            engine="sim",
            engine_version=__version__,
            model=self._spec.model,
            served_names=tuple(self._names),
            block_tokens=self._settings.block_tokens,
            kv_blocks=self._settings.kv_blocks,
            max_model_len=self._max_model_len,
            max_running=self._settings.max_running,
            segment_order=("tools", "messages"),
            routes=tuple(f"{method} {path}" for path, method in _ROUTES.items()),
            tasks=("generate", "embed"),
            residency=self._residency.residency.state.value,
            chunk_bytes=canon.chunk_bytes,
            chain_seed=canon.seed(""),
        )

    async def warm_up(self) -> None:
        reply = _Answered()
        body = msgspec.json.encode({"prompt": "warm", "max_tokens": 1})
        try:
            await self.handle(Request(method="POST", path="/v1/completions", body=body), reply)
        except EngineDied as error:
            raise EngineStartFailed(str(error), remedy="see the engine's log", cause="warmup_failed") from error
        if reply.status != 200:
            raise EngineStartFailed(
                f"the warm-up request was answered with {reply.status}: {reply.data!r}",
                remedy="see the engine's log",
                cause="warmup_failed",
            )
        self._n_warm_up_tokens = self._engine.n_tokens

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fail("the engine was closed")
        self._residency.close()

    # ---- requests -------------------------------------------------------------------------------------------------

    def begin(self, request: Request, reply: FinalReply) -> Answer | None:
        """Begin to answer; gives what to cancel, None when it is answered. The callback interface of adapters."""
        try:
            return self._begin(request, reply)
        except EngineDied as error:
            reply.failed(error)
        except XinfError as error:
            send_error(reply, error)
        return None

    async def handle(self, request: Request, reply: Reply) -> Usage:
        ending = _Ending(reply, asyncio.get_running_loop().create_future())
        answer = SimAdapter.begin(self, request, ending)  # also where a subclass takes the callbacks away
        try:
            return await ending.over
        except asyncio.CancelledError:
            if answer is not None:
                answer.cancel()
            raise

    def _begin(self, request: Request, reply: FinalReply) -> Answer | None:
        """Answer at once, or submit to the engine and give what to wait for. Raises: XinfError for the client."""
        path = request.path
        is_chat = path == "/v1/chat/completions"
        if not is_chat and "?" in path:
            path = path.partition("?")[0]
            is_chat = path == "/v1/chat/completions"
        method = _ROUTES.get(path)
        if method is None:
            raise NotFound(f"the simulated engine has no route {path[:200]}")
        if method != request.method:
            raise InvalidRequest(f"{path} takes {method}, not {request.method[:20]}")
        if path == "/v1/models":
            send_json(reply, 200, self._models())
            return None
        if path == "/tokenize":
            tokenize = parse_tokenize(request.body, self._template)
            self._served_name(tokenize.model)
            tokens = token_ids(tokenize.prompt)
            send_json(reply, 200, {"count": len(tokens), "max_model_len": self._max_model_len, "tokens": tokens})
            return None
        if path == "/detokenize":
            detokenize = parse_detokenize(request.body)
            self._served_name(detokenize.model)
            send_json(reply, 200, {"prompt": detokenize.data.rstrip(b"\0").decode("utf-8", "replace")})
            return None
        if self._is_asleep:
            raise Unavailable("the engine is asleep", remedy="wake it")
        if path == "/v1/embeddings":
            return self._begin_embedding(request, reply)
        call = parse_chat(request.body, self._template) if is_chat else parse_completion(request.body)
        return self._begin_generation(request, call, reply)

    def _begin_generation(self, request: Request, call: GenerationCall, reply: FinalReply) -> Answer | None:
        name = self._served_name(call.model)
        salt = call.salt if name not in self._loras else f"{name}\0{call.salt or ''}"
        now_s = self._loop.time()
        parts: list[Part] = []
        for prompt in call.prompts:
            for choice in range(call.n):
                planned = self._plan_answer(call, prompt, choice)
                parts.append(Part(len(parts), prompt, planned, arrived_s=now_s, salt=salt))
        header = self._header(request, "chatcmpl" if call.is_chat else "cmpl", name)
        registered: Registered | None = None
        if len(call.prompts) == 1:
            lora = name if name in self._loras else ""
            registered = self._residency.begin(request.body, call.prompts[0], lora=lora, salt=salt)
        if self._answers_at_once and not call.is_stream and not self._engine.n_unfinished:
            self._answer_at_once(call, header, reply, parts)
            self._let_go(registered, parts, is_whole=call.is_chat)
            return None
        kind = StreamAnswer if call.is_stream else WholeAnswer
        answer = kind(call, header, reply, parts, self._cancel)
        answer.registered = registered
        answer.goes_on = call.is_chat
        return self._submit(answer, now_s)

    def _let_go(self, registered: Registered | None, parts: Sequence[Part], *, is_whole: bool) -> None:
        """The engine is done with a prompt. `is_whole`: its answer is a message that a next prompt may have."""
        if registered is not None:
            part = parts[0]
            self._residency.end(registered, part.prompt, part.text if is_whole and len(parts) == 1 else b"")

    def _answer_at_once(self, call: GenerationCall, header: Header, reply: FinalReply, parts: list[Part]) -> None:
        """Take the short way of an engine that has nothing else to do and takes no time, for what is not streamed."""
        if self._dead_reason is not None:
            raise EngineDied(self._dead_reason)
        for part in parts:
            self._engine.run_at_once(part, part.arrived_s)
        send_whole(reply, header, parts, sum_usage(parts, call.n), is_chat=call.is_chat)
        self._tell()

    def _plan_answer(self, call: GenerationCall, prompt: bytes, choice: int) -> Planned:
        """Decide one answer and why it ends."""
        room = self._room(prompt, call.max_tokens, "messages" if call.is_chat else "prompt")
        n_tokens = min(ANSWER_TOKENS, room) if call.max_tokens is None else call.max_tokens
        reason = "stop" if call.max_tokens is None and n_tokens == ANSWER_TOKENS else "length"
        answer = self._text.answer(prompt, n_tokens, choice=choice)
        ends = [(at, at + len(stop)) for stop in call.stops if (at := answer.find(stop)) >= 0]
        if not ends:
            return Planned(answer, answer, reason)
        # The engine notices a stop string when the token that completes it is there.
        at, end = min(ends, key=lambda found: (count_tokens(found[1]), found[0]))
        return Planned(answer[:at], answer[: count_tokens(end) * BYTES_PER_TOKEN], "stop")

    def _begin_embedding(self, request: Request, reply: FinalReply) -> Answer | None:
        call = parse_embedding(request.body, max_dimensions=EMBEDDING_DIMENSIONS)
        name = self._served_name(call.model)
        for prompt in call.prompts:
            self._room(prompt, None, "input")
        now_s = self._loop.time()
        parts = [
            Part(index, prompt, PREFILL_ONLY, arrived_s=now_s, salt=None) for index, prompt in enumerate(call.prompts)
        ]
        header = self._header(request, "embd", name)
        return self._submit(EmbeddingAnswer(call, header, reply, parts, self._cancel), now_s)

    def _room(self, prompt: bytes, max_tokens: int | None, param: str) -> int:
        """Give how many tokens an answer may have. Raises: InvalidRequest when prompt and answer are too long."""
        n_prompt = count_tokens(len(prompt))
        if n_prompt + (max_tokens or 1) > self._max_model_len:
            raise InvalidRequest(
                f"the model's context is {self._max_model_len} tokens, the request needs "
                f"{n_prompt + (max_tokens or 1)}: {n_prompt} of prompt and {max_tokens or 'at least 1'} of answer",
                remedy="shorten the prompt or lower max_tokens",
                param=param if n_prompt >= self._max_model_len else "max_tokens",
            )
        return self._max_model_len - n_prompt

    def _served_name(self, model: str | None) -> str:
        if model is None:
            return self._names[0]
        if model not in self._names and model not in self._loras:
            raise UnknownModel(
                f"there is no model {model[:200]!r} here, only {', '.join([*self._names, *self._loras])}", param="model"
            )
        return model

    def _header(self, request: Request, kind: str, name: str) -> Header:
        request_id = request.request_id or f"{self._id_prefix}{next(self._id_numbers):08x}"
        return Header(f"{kind}-{request_id}", name, int(time.time()))

    def _models(self) -> dict[str, Any]:
        entry = {
            "object": "model",
            "created": int(time.time()),
            "owned_by": "xinf",
            "max_model_len": self._max_model_len,
        }
        return {"object": "list", "data": [{"id": name, **entry} for name in [*self._names, *self._loras]]}

    # ---- the engine's time ----------------------------------------------------------------------------------------

    def _submit(self, answer: Answer, now_s: float) -> Answer:
        """Give the engine what an answer needs."""
        if self._dead_reason is not None:
            raise EngineDied(self._dead_reason)
        engine = self._engine
        if not engine.n_unfinished:
            self._last_step_s = now_s
        for part in answer.parts:
            engine.submit(part, now_s)
        self._answers[answer] = None
        self._arm(now_s)
        self._tell()
        return answer

    def _cancel(self, answer: Answer) -> None:
        if self._answers.pop(answer, answer) is None:
            for part in answer.parts:
                self._engine.cancel(part)
            self._let_go(answer.registered, answer.parts, is_whole=False)
            answer.release()
            self._tell()

    def _arm(self, now_s: float) -> None:
        due_s = self._engine.due_s()
        if self._timer is not None or due_s is None or self._dead_reason is not None:
            return
        if due_s > now_s:
            self._timer = self._loop.call_at(due_s, self._turn)
        else:
            self._timer = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Run the steps that are due, a few at most, and come back for the rest."""
        self._timer = None
        engine = self._engine
        now_s = self._loop.time()
        n_steps = 0
        while n_steps < _STEPS_PER_TURN:
            due_s = engine.due_s()
            if due_s is None or due_s > now_s:
                break
            n_tokens = engine.n_tokens - self._n_warm_up_tokens
            if self._faults.hang_after_tokens is not None and n_tokens >= self._faults.hang_after_tokens:
                return
            if self._faults.die_after_tokens is not None and n_tokens >= self._faults.die_after_tokens:
                self._fail(f"the simulated engine died after {n_tokens} tokens, as asked")
                return
            for part in engine.run_step():
                assert isinstance(part, Part)
                answer = part.answer
                parts = answer.parts
                if answer.on_token(part):
                    del self._answers[answer]
                    self._let_go(answer.registered, parts, is_whole=answer.goes_on)
            n_steps += 1
        if n_steps:
            self._last_step_s = now_s
            self._tell()
        self._arm(now_s)

    def _fail(self, reason: str) -> None:
        self._dead_reason = reason
        answers, self._answers = self._answers, {}
        for answer in answers:
            for part in answer.parts:
                self._engine.cancel(part)
            self._let_go(answer.registered, answer.parts, is_whole=False)
            answer.release()
            answer.reply.failed(EngineDied(reason))
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # ---- what the shim asks ---------------------------------------------------------------------------------------

    def load(self) -> LoadReport:
        load = self._engine.load()
        return LoadReport(
            running=load.running,
            waiting=load.waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            kv_blocks_used=load.kv_blocks_used,
            kv_blocks_total=load.kv_blocks_total,
        )

    def residency(self) -> Residency:
        return self._residency.residency

    def on_step(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def last_step_age_s(self) -> float | None:
        return self._loop.time() - self._last_step_s if self._engine.n_unfinished else None

    def dead_reason(self) -> str | None:
        return self._dead_reason

    async def load_lora(self, name: str, path: str) -> None:
        if name in self._names:
            raise InvalidRequest(f"{name} is the name of the model itself", param="name")
        self._loras[name] = path

    async def unload_lora(self, name: str) -> None:
        if self._loras.pop(name, None) is None:
            raise NotFound(f"no LoRA {name!r} is loaded")

    async def sleep(self, level: int) -> None:
        self._is_asleep = True
        if level > 0:
            self._engine.cache.clear()
            self._residency.clear()

    async def wake(self) -> None:
        self._is_asleep = False


class _Ending:
    """A reply whose end somebody awaits."""

    def __init__(self, reply: Reply, over: asyncio.Future[Usage]) -> None:
        self.start = reply.start
        self.chunk = reply.chunk
        self.over = over

    def done(self, usage: Usage) -> None:
        if not self.over.done():
            self.over.set_result(usage)

    def failed(self, error: XinfError) -> None:
        if not self.over.done():
            self.over.set_exception(error)


class _Answered:
    """A reply that is kept instead of sent."""

    def __init__(self) -> None:
        self.status = 0
        self.data = b""

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:  # noqa: ARG002
        self.status = status

    def chunk(self, data: bytes) -> None:
        self.data += data


def _read_arguments(engine_args: dict[str, Any]) -> tuple[SimSettings, SimFaults, SimSays]:
    """Split the arguments by what they are about. Raises: EngineStartFailed (cause bad_arguments)."""
    known = {kind: set(kind.__struct_fields__) for kind in (SimSettings, SimFaults, SimSays)}
    chosen: dict[type, dict[str, Any]] = {kind: {} for kind in known}
    for given, value in engine_args.items():
        name = given.replace("-", "_")
        kind = next((kind for kind, names in known.items() if name in names), None)
        if kind is None:
            names = sorted(set().union(*known.values()))
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(names)}"
            raise _bad_arguments(f"the simulated engine has no argument {given!r}", hint)
        chosen[kind][name] = value
    try:
        return (
            msgspec.convert(chosen[SimSettings], SimSettings, strict=False),
            msgspec.convert(chosen[SimFaults], SimFaults, strict=False),
            msgspec.convert(chosen[SimSays], SimSays, strict=False),
        )
    except msgspec.ValidationError as error:
        raise _bad_arguments(f"an argument of the simulated engine is not valid: {error}", "correct it") from error


def _bad_arguments(message: str, remedy: str) -> EngineStartFailed:
    return EngineStartFailed(message, remedy=remedy, cause="bad_arguments")

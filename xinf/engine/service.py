"""EngineService: what gateways and agents call. Thin: Links do the work, errors are mapped to gRPC status here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio

from xinf._fast.frame import WireError, decode_submit
from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc
from xinf.core.errors import EngineError, Overloaded, XinfError, to_wire
from xinf.core.records import Phase
from xinf.engine.adapter import Adapter, EngineDescription
from xinf.engine.call import Outbox
from xinf.engine.contextstream import Context, ContextStream
from xinf.engine.intake import Intake
from xinf.engine.link import FRAME_BYTES, OUTBOX_BYTES, PROTOCOL, Link, Stream
from xinf.engine.status import StatusFile

_log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EngineService"].full_name
ERROR_METADATA_KEY = "xinf-error-bin"

AnyContext = grpc.aio.ServicerContext[Any, Any]


# Refuses new requests, waits for the open ones at most so many seconds, tells how many are left.
Drain = Callable[[float], Awaitable[int]]


class EngineService(pb_grpc.EngineServiceServicer):
    """One engine, served."""

    def __init__(self, info: pb.EngineInfo, adapter: Adapter, intake: Intake, status: StatusFile, drain: Drain) -> None:
        self._info = info
        self._hello = info.SerializeToString()
        self._adapter = adapter
        self._intake = intake
        self._status = status
        self._drain = drain
        self._links: set[Link] = set()
        adapter.on_step(self._load_changed)

    def set_loras(self, names: Iterable[str]) -> None:
        """Say which adapters can be asked for, to every gateway."""
        del self._info.loras[:]
        self._info.loras.extend(sorted(names))
        self._hello = self._info.SerializeToString()
        for link in self._links:
            link.say_hello(self._hello)

    def repeat_load(self) -> None:
        """Tell every Link the load, changed or not."""
        for link in self._links:
            link.repeat_load()

    async def close_links(self, timeout_s: float) -> None:
        """Send what waits on the Links, then end them."""
        over = [link.over for link in self._links]
        for link in list(self._links):
            link.close()
        if over:
            await asyncio.wait(over, timeout=timeout_s)

    def _load_changed(self) -> None:
        for link in self._links:
            link.load_changed()

    def open_link(self, stream: Stream) -> Link:
        """Serve a gateway on a stream that it has opened."""
        link = Link(self._intake, self._adapter, self._hello, stream)
        self._links.add(link)
        link.over.add_done_callback(lambda _: self._links.discard(link))
        return link

    # ---- requests -------------------------------------------------------------------------------------------------

    async def Link(self, request_iterator: object, context: Context) -> None:  # noqa: ARG002, N802
        stream = ContextStream(context)
        await stream.run(self.open_link(stream))

    async def Generate(self, request: bytes, context: AnyContext) -> None:  # noqa: N802
        try:
            submit = decode_submit(request)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"that is no request: {error}")
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        woken = asyncio.Event()
        outbox = Outbox(OUTBOX_BYTES, on_over=lambda: None if over.done() else over.set_result(None), wake=woken.set)
        call = self._intake.begin(submit, outbox)
        writer = asyncio.create_task(_write_events(outbox, woken, context))
        try:
            await asyncio.wait({writer, over}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise Overloaded(f"the client does not read: more than {OUTBOX_BYTES >> 20} MiB wait for it")
        except XinfError as error:
            await _abort(context, error)
        finally:
            writer.cancel()
            call.abandon()

    # ---- what it is and how it is ---------------------------------------------------------------------------------

    async def GetInfo(self, request: pb.GetInfoRequest, context: AnyContext) -> pb.EngineInfo:  # noqa: ARG002, N802
        return self._info

    async def Health(self, request: pb.HealthRequest, context: AnyContext) -> pb.HealthResponse:  # noqa: ARG002, N802
        phase = self._status.phase
        failure = self._status.failure
        dead = self._adapter.dead_reason()
        return pb.HealthResponse(
            phase=phase.value,
            is_serving=phase is Phase.READY and dead is None,
            reason=failure.message if failure is not None else dead or "",
            inflight=len(self._intake),
            last_step_age_s=self._adapter.last_step_age_s() or 0.0,
        )

    async def Drain(self, request: pb.DrainRequest, context: AnyContext) -> pb.DrainResponse:  # noqa: ARG002, N802
        return pb.DrainResponse(unfinished=await self._drain(request.timeout_s))

    async def LoadLora(self, request: pb.LoadLoraRequest, context: AnyContext) -> pb.LoadLoraResponse:  # noqa: N802
        await _or_abort(context, self._adapter.load_lora(request.name, request.path))
        self.set_loras({*self._info.loras, request.name})
        return pb.LoadLoraResponse()

    async def UnloadLora(self, request: pb.UnloadLoraRequest, context: AnyContext) -> pb.UnloadLoraResponse:  # noqa: N802
        await _or_abort(context, self._adapter.unload_lora(request.name))
        self.set_loras({*self._info.loras} - {request.name})
        return pb.UnloadLoraResponse()

    async def Sleep(self, request: pb.SleepRequest, context: AnyContext) -> pb.SleepResponse:  # noqa: N802
        await _or_abort(context, self._adapter.sleep(request.level))
        return pb.SleepResponse()

    async def Wake(self, request: pb.WakeRequest, context: AnyContext) -> pb.WakeResponse:  # noqa: ARG002, N802
        await _or_abort(context, self._adapter.wake())
        return pb.WakeResponse()


def add_service(service: EngineService, server: grpc.aio.Server) -> None:
    """Register all calls. Link and Generate carry bytes, which our own codec reads and writes.

    The generated function is of no use here: what it registers goes before any other handler of a call.
    """
    handlers = {
        "Link": grpc.stream_stream_rpc_method_handler(service.Link),
        "Generate": grpc.unary_stream_rpc_method_handler(service.Generate),
    }
    for method in pb.DESCRIPTOR.services_by_name["EngineService"].methods:
        if method.name not in handlers:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                getattr(service, method.name),
                request_deserializer=getattr(pb, method.input_type.name).FromString,
                response_serializer=getattr(pb, method.output_type.name).SerializeToString,
            )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def engine_info(replica: str, engine: EngineDescription) -> pb.EngineInfo:
    """Put the description of an engine on the wire."""
    return pb.EngineInfo(
        replica=replica,
        engine=engine.engine,
        engine_version=engine.engine_version,
        model=engine.model,
        served_names=engine.served_names,
        block_tokens=engine.block_tokens,
        kv_blocks=engine.kv_blocks,
        max_model_len=engine.max_model_len,
        max_running=engine.max_running,
        segment_order=engine.segment_order,
        routes=engine.routes,
        tasks=engine.tasks,
        protocol=PROTOCOL,
        residency=engine.residency,
        chunk_bytes=engine.chunk_bytes,
        chain_seed=engine.chain_seed,
        loras=sorted(engine.loras),
    )


class _Events:
    """The messages of one call, each an event of its Generate."""

    def __init__(self) -> None:
        self._events: list[pb.GenerateEvent] = []
        self.has_end = False

    def start(self, id: int, status: int, headers_block: bytes) -> None:  # noqa: A002
        start = pb.Start(id=id, status=status)
        start.MergeFromString(headers_block)
        self._events.append(pb.GenerateEvent(start=start))

    def chunk(self, id: int, data: bytes) -> None:  # noqa: A002, ARG002
        self._events.append(pb.GenerateEvent(chunk=data))

    def end(
        self,
        id: int,  # noqa: A002
        prompt: int,
        cached: int,
        completion: int,
        error: str,
        message: str,
        retryable: bool,
        queued_s: float,
    ) -> None:
        end = pb.End(
            id=id,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            error=error,
            message=message,
            retryable=retryable,
            queued_s=queued_s,
        )
        self._events.append(pb.GenerateEvent(end=end))
        self.has_end = True

    def take(self) -> list[bytes]:
        events, self._events = self._events, []
        return [event.SerializeToString() for event in events]


async def _write_events(outbox: Outbox, woken: asyncio.Event, context: AnyContext) -> None:
    """Send what one call says, as it says it, until its end."""
    events = _Events()
    while not events.has_end:
        await woken.wait()
        woken.clear()
        while outbox.put(events, FRAME_BYTES, lambda _: None):
            for event in events.take():
                await context.write(event)


async def _or_abort(context: AnyContext, action: Awaitable[None]) -> None:
    """Run an administrative action; its errors become the status of the call."""
    try:
        await action
    except XinfError as error:
        await _abort(context, error)
    except Exception as error:
        _log.exception("administrative call failed")
        await _abort(context, EngineError(f"the engine failed: {type(error).__name__}: {error}"))


async def _abort(context: AnyContext, error: XinfError) -> NoReturn:
    await context.abort(
        grpc.StatusCode[error.grpc_status], str(error), trailing_metadata=((ERROR_METADATA_KEY, to_wire(error)),)
    )

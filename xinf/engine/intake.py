"""Which requests the shim works on: admission, the work for each, deadlines, draining.

An adapter that offers `begin` answers by callbacks; for any other, each request has a task of its own.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable

from xinf.core.errors import DeadlineExceeded, EngineDied, EngineError, Unavailable, XinfError
from xinf.engine.adapter import Adapter, CallbackAdapter, RawHeader, Request
from xinf.engine.call import Call, Outbox

_log = logging.getLogger(__name__)

# As the codec gives it: id, method, path, headers, body, priority, timeout_ms, trace, request_id.
Submit = tuple[int, str, str, list[RawHeader], bytes, int, int, str, str]


class Intake:
    """All requests in flight, of all Links and Generate calls.

    `on_death` is called when a request found the engine dead, so that the process need not wait to notice.
    """

    def __init__(self, adapter: Adapter, on_death: Callable[[], None]) -> None:
        self._adapter = adapter
        self._callback_adapter = adapter if isinstance(adapter, CallbackAdapter) else None
        self._on_death = on_death
        self._calls: dict[Call, None] = {}  # whose work is not over, in order
        self._emptied: asyncio.Future[None] | None = None  # of those who wait for that
        self._refusal: XinfError | None = Unavailable("the engine is not ready yet")

    def __len__(self) -> int:
        return len(self._calls)

    def open(self) -> None:
        """Take requests from now on."""
        self._refusal = None

    def refuse(self, error: XinfError) -> None:
        """Answer new requests with `error` from now on."""
        self._refusal = error

    def begin(self, submit: Submit, outbox: Outbox) -> Call:
        """Start working on a request. It ends through its call, whatever happens."""
        call_id, method, path, headers, body, priority, timeout_ms, trace, request_id = submit
        call = Call(call_id, request_id, outbox)
        if self._refusal is not None:
            call.fail(self._refusal)
            return call
        request = Request(
            method=method,
            path=path,
            headers=headers,
            body=body,
            priority=priority,
            timeout_s=timeout_ms / 1000.0 if timeout_ms else None,
            trace=trace,
            request_id=request_id,
        )
        self._calls[call] = None
        if timeout_ms:
            call.timer = asyncio.get_running_loop().call_later(timeout_ms / 1000.0, self._expire, call, timeout_ms)
        if self._callback_adapter is not None:
            self._begin_work(self._callback_adapter, call, request)
        else:
            task = asyncio.get_running_loop().create_task(self._serve(call, request))
            call.work = task
            task.add_done_callback(lambda _: self._task_over(call))
        return call

    def fail_all(self, error: XinfError) -> None:
        """End every request with `error` and stop the work for it."""
        for call in list(self._calls):
            call.fail(error)
            call.stop()

    async def wait_empty(self, timeout_s: float) -> int:
        """Wait until no request is left or the time is over. Returns how many are left."""
        if self._calls:
            if self._emptied is None:
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._emptied}, timeout=max(0.0, timeout_s))
        return len(self._calls)

    # ---- by callbacks ---------------------------------------------------------------------------------------------

    def _begin_work(self, adapter: CallbackAdapter, call: Call, request: Request) -> None:
        call.on_over = self._call_over
        call.begin()
        try:
            call.work = adapter.begin(request, call)
        except Exception as error:
            self._report(call, error)
            self._forget(call)

    def _call_over(self, call: Call, error: XinfError | None) -> None:
        """The adapter said the last word on a call, or the call was stopped."""
        self._forget(call)
        if isinstance(error, EngineDied):
            self._on_death()

    # ---- by a task ------------------------------------------------------------------------------------------------

    async def _serve(self, call: Call, request: Request) -> None:
        call.begin()
        try:
            call.done(await self._adapter.handle(request, call))
        except asyncio.CancelledError:
            # Whoever cancelled has said how it ends; if nobody did, the loop is being torn down.
            if not call.is_finished:
                call.fail(Unavailable("the engine is stopping"))
        except EngineDied as error:
            call.fail(error)
            self._on_death()
        except XinfError as error:
            call.fail(error)
        except Exception as error:
            self._report(call, error)

    def _task_over(self, call: Call) -> None:
        self._forget(call)
        if not call.is_finished:  # cancelled before its first step: `_serve` never ran
            call.fail(Unavailable("the engine is stopping"))

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _report(self, call: Call, error: Exception) -> None:
        # Neither message nor traceback: they can hold the prompt.
        where = traceback.extract_tb(error.__traceback__)[-1]
        _log.error(
            "request failed: %s at %s:%d",
            type(error).__name__,
            where.filename,
            where.lineno or 0,
            extra={"kv": {"request": call.request_id or call.id}},
        )
        _log.debug("request failed", exc_info=error)
        call.fail(EngineError(f"the engine failed on this request: {type(error).__name__}"))

    def _expire(self, call: Call, timeout_ms: int) -> None:
        call.fail(DeadlineExceeded(f"the answer was not complete after {timeout_ms / 1000:g} s"))
        call.stop()

    def _forget(self, call: Call) -> None:
        self._calls.pop(call, None)
        if call.timer is not None:
            call.timer.cancel()
        if self._emptied is not None and not self._calls:
            self._emptied.set_result(None)
            self._emptied = None

"""Wakes the event loop at a point in time, to microseconds.

uvloop's and asyncio's own timers are whole milliseconds, which would be an error of the size of what is measured. A
timerfd on the loop is as exact as the kernel. Where there is none (macOS) the loop's timers have to do.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time

_NANO = 1_000_000_000
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
# The same values as O_NONBLOCK and O_CLOEXEC of the platform, by definition of timerfd_create(2).
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Alarm:
    """For one waiter at a time. `with Alarm() as alarm: await alarm.until(at_s)`; times are time.monotonic()'s."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = None
        self._waiter: asyncio.Future[None] | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create failed")
            self._fd = fd
            self._loop.add_reader(fd, self._ring)

    def __enter__(self) -> Alarm:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    async def until(self, at_s: float) -> None:
        """Wait until `at_s`; a time that has passed only gives the loop a turn."""
        now_s = time.monotonic()
        if at_s <= now_s or self._fd is None:
            await asyncio.sleep(max(0.0, at_s - now_s))
            return
        at_ns = round(at_s * _NANO)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(at_ns // _NANO, at_ns % _NANO))
        self._waiter = self._loop.create_future()
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        await self._waiter

    def _ring(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

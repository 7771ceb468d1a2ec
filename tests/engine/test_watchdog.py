from __future__ import annotations

import threading

from xinf.engine.watchdog import Pulse, Watchdog


def test_pulse_complains_of_an_old_step_only_when_there_is_work() -> None:
    pulse = Pulse(0.0)
    pulse.beat(100.0, None)
    assert pulse.complaint(100.5, 10.0) is None
    pulse.beat(100.0, 9.0)
    assert pulse.complaint(100.5, 10.0) is None
    pulse.beat(101.0, 10.0)
    assert "no step for 10.5 s" in (pulse.complaint(101.5, 10.0) or "")


def test_pulse_complains_of_a_loop_that_does_not_beat() -> None:
    pulse = Pulse(100.0)
    assert pulse.complaint(110.0, 10.0) is None
    assert "event loop has been blocked for 10.5 s" in (pulse.complaint(110.5, 10.0) or "")


def test_watchdog_calls_once_after_two_complaints() -> None:
    complaints: list[str] = []
    heard = threading.Event()

    def on_hung(complaint: str) -> None:
        complaints.append(complaint)
        heard.set()

    watchdog = Watchdog(Pulse(-1000.0), timeout_s=0.02, on_hung=on_hung)
    watchdog.start()
    assert heard.wait(30)
    watchdog.join(30)
    assert not watchdog.is_alive()
    assert len(complaints) == 1


def test_watchdog_forgives_a_complaint_that_was_answered() -> None:
    class Once(Pulse):
        """Complains at the first look and never again, as after a process was stopped and went on."""

        looks = 0

        def complaint(self, now_s: float, timeout_s: float) -> str | None:
            self.looks += 1
            if self.looks == 10:
                enough.set()
            return "stopped" if self.looks == 1 else None

    enough = threading.Event()
    watchdog = Watchdog(Once(0.0), timeout_s=0.02, on_hung=lambda _: hung.set())
    hung = threading.Event()
    watchdog.start()
    assert enough.wait(30)
    watchdog.stop()
    watchdog.join(30)
    assert not hung.is_set()

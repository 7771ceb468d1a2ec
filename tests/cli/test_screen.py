"""What waiting commands draw, on a terminal and into a file."""

from __future__ import annotations

import io

import pytest

from xinf.cli.screen import Screen
from xinf.serve import Step, Trial


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TRIAL = Trial(path="/v1/chat/completions", text="Hello!", took_s=0.25, has_keys=False)


def test_status_is_drawn_over_on_a_terminal() -> None:
    stream = Terminal()
    screen = Screen(stream)
    screen.status("one")
    screen.status("two")
    screen.line("kept")
    assert stream.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[Kkept\ntwo"


def test_dumb_terminal_gets_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    screen = Screen(stream)
    screen.status("one")
    screen.line("kept")
    assert stream.getvalue() == "kept\n"


def test_status_is_silent_in_a_file_until_it_serves() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.status("starting")
    assert stream.getvalue() == ""
    screen.ready("http://127.0.0.1:1", "m", TRIAL)
    screen.status("1 of 1 ready")
    screen.status("1 of 1 ready, still")
    assert stream.getvalue().endswith("Hello!\n1 of 1 ready\n")


def test_terminal_that_was_closed_ends_nothing() -> None:
    class Closed(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    screen = Screen(Closed())
    screen.status("stopping")
    screen.line("stopped")
    screen.close()


def test_ready_stands_on_a_line_of_its_own() -> None:
    stream = io.StringIO()
    Screen(stream).ready("http://127.0.0.1:1", "m", TRIAL)
    lines = stream.getvalue().splitlines()
    assert "ready: http://127.0.0.1:1" in lines
    assert any(line.startswith("curl http://127.0.0.1:1/v1/chat/completions ") for line in lines)
    assert 'client = OpenAI(base_url="http://127.0.0.1:1/v1", api_key="unused")' in lines


def test_embedding_model_gets_an_example_that_works() -> None:
    stream = io.StringIO()
    Screen(stream).ready("http://h:1", "m", Trial(path="/v1/embeddings", text="", took_s=0.1, has_keys=True))
    said = stream.getvalue()
    assert '"input": "hello"' in said
    assert "embeddings.create(model='m', input='hello')" in said
    assert "authorization: Bearer KEY" in said


def test_step_shows_time_phase_and_replica() -> None:
    stream = io.StringIO()
    Screen(stream).step(Step(at_s=9.1, title="warming up", replica="m-x7k2p"))  # type: ignore[arg-type]
    assert stream.getvalue() == "   9.1s  warming up  m-x7k2p\n"

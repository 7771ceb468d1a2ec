"""`xinf chat` at a gateway that refuses; talking itself is in test_terminals.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from typer.testing import Result

from tests.cli.test_why import Gateway


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


@pytest.mark.parametrize(("status", "is_about_keys"), [(401, True), (503, False)])
def test_refusal_says_what_to_do_where_a_key_is_wanted(
    xinf: Callable[..., Result], gateway: Gateway, status: int, is_about_keys: bool
) -> None:
    gateway.status, gateway.answer = status, {"error": {"message": "no"}}
    done = xinf("chat", "demo", "-m", "hello", "--url", gateway.url)
    assert done.exit_code == 1
    assert f"the gateway answered {status}: no" in done.stderr
    assert ("give a key with --api-key or XINF_API_KEY" in done.stderr) is is_about_keys

"""API keys: shown once, hashed in the store, made with and without a running control process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.cli.conftest import Control
from xinf.core.records import KeyRecord


def test_created_key_is_in_the_store_as_its_digest(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf("key", "create", "--label", "laptop", "--model", "demo", "--expires", "30d")
    assert done.exit_code == 0
    secret = done.stdout.strip()  # alone on standard output, for $(...)
    assert secret.startswith("sk-xinf-")
    assert len(secret) == len("sk-xinf-") + 32
    ((record, _),) = control.run(control.records.list(KeyRecord))
    assert record.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert (record.label, record.models) == ("laptop", ("demo",))
    assert record.expires_s is not None
    assert record.expires_s - record.created_s == 30 * 86400
    assert record.id in done.stderr


def test_listed_keys_tell_neither_key_nor_digest(control: Control, xinf: Callable[..., Result]) -> None:
    secret = xinf("key", "create", "--label", "laptop").stdout.strip()
    for said in (xinf("key", "ls").stdout, xinf("key", "ls", "--json").stdout):
        assert "laptop" in said
        assert secret not in said
        assert hashlib.sha256(secret.encode()).hexdigest() not in said


def test_removed_key_is_gone_and_an_unknown_one_is_an_error(
    control: Control, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    made = xinf_json("key", "create")
    assert xinf("key", "rm", made["id"]).exit_code == 0
    assert xinf_json("key", "ls") == []
    done = xinf("key", "rm", made["id"])
    assert done.exit_code == 1
    assert "there is no key" in done.stderr


def test_keys_are_made_without_a_control_process(xinf: Callable[..., Result], xinf_json: Callable[..., Any]) -> None:
    xinf_json("key", "create", "--label", "early")
    assert [key["label"] for key in xinf_json("key", "ls")] == ["early"]


def test_expiry_that_is_no_time_is_refused(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf("key", "create", "--expires", "soon")
    assert done.exit_code == 1
    assert "'soon' is not a duration" in done.stderr

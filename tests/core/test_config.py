"""Configuration: layers, units, unknown keys, and that the shipped file and the structs say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.core import config
from xinf.core.errors import ConfigError
from xinf.registry import read_compatibility
from xinf.registry.cards import read_cards


def test_load_defaults_are_complete_and_in_base_units() -> None:
    loaded = config.load(environ={})
    assert loaded.gateway.port == 8080
    assert loaded.gateway.max_body_bytes == 32 << 20
    assert loaded.gateway.request_timeout == 1800.0


def test_load_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[gateway]\nport = 1\nworkers = 1\nhost = '127.0.0.9'\n")
    loaded = config.load(
        file,
        environ={"XINF_GATEWAY_PORT": "2", "XINF_GATEWAY_WORKERS": "2"},
        overrides={"gateway.port": 3, "gateway.backlog": None},
    )
    assert (loaded.gateway.port, loaded.gateway.workers, loaded.gateway.host) == (3, 2, "127.0.0.9")
    assert loaded.gateway.backlog == 1024


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("[gateway]\nprot = 1\n", "gateway.port"),
        ("[gatewy]\nport = 1\n", "gateway.port"),
        ("datadir = ''\n", "data_dir"),
    ],
)
def test_load_unknown_key_names_the_nearest(tmp_path: Path, text: str, nearest: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file, environ={})
    assert caught.value.fields["nearest"] == nearest
    assert str(file) in str(caught.value)


def test_load_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="XINF_GATEWAY_PORT"):
        config.load(environ={"XINF_GATEWAY_PROT": "1"})


def test_load_ignores_variables_that_are_no_section() -> None:
    config.load(environ={"XINF_DEBUG": "1", "XINF_EFFECTIVE_CONFIG": "{}", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gateway.port", 70000),
        ("gateway.port", "http"),
        ("gateway.max_body_bytes", "many"),
        ("gateway.request_timeout", "soon"),
        ("gateway.access_log_sample", 2.0),
        ("log_level", "loud"),
        ("gateway.tls_cert", "cert.pem"),
    ],
)
def test_load_bad_value_names_the_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        config.load(environ={}, overrides={key: value})


def test_load_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        config.load(Path("nowhere.toml"), environ={})


def test_environ_round_trip() -> None:
    loaded = config.load(environ={}, overrides={"gateway.port": 9000, "store.max_bytes": "1GiB"})
    assert config.from_environ(config.to_environ(loaded)) == loaded


def test_every_shipped_config_loads(checkout: Path) -> None:
    files = sorted((checkout / "configs").rglob("*.toml"))
    assert checkout / "configs" / "default.toml" in files
    for file in files:
        if file.name == "engine_compatibility.toml":
            read_compatibility(file)
        elif file.name == "cards.toml":
            assert read_cards(file)
        else:
            config.load(file, environ={})


def test_every_default_key_is_explained(checkout: Path) -> None:
    lines = (checkout / "configs" / "default.toml").read_text().splitlines()
    grouped = {"backoff_max", "history_age", "port", "workers", "tls_key"}
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith(("#", "[")):
            explained = lines[number - 1].startswith("#")
            assert explained or line.split("=")[0].strip() in grouped, f"line {number + 1}: {line}"

"""The allow-list of paths."""

from __future__ import annotations

import pytest

from xinf.core.errors import NotFound, PermissionDenied
from xinf.gateway.routes import Route, match


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/rerank",
        "/v1/score",
    ],
)
def test_match_takes_engine_routes(path: str) -> None:
    assert match("POST", path) == Route(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/m/v1/chat/completions", Route("/v1/chat/completions", model="m")),
        ("/models/Qwen/Qwen2.5-7B/v1/completions", Route("/v1/completions", model="Qwen/Qwen2.5-7B")),
        ("/models/m/v1/rerank", Route("/v1/rerank", model="m")),
        ("/models/m/rerank", Route("/rerank", model="m")),
        ("/models/w/v1/audio/transcriptions", Route("/v1/audio/transcriptions", model="w", is_json=False)),
        ("/v1/audio/transcriptions", Route("/v1/audio/transcriptions", is_json=False)),
    ],
)
def test_match_finds_the_model_in_the_path(path: str, expected: Route) -> None:
    assert match("POST", path) == expected


@pytest.mark.parametrize("path", ["/sleep", "/v1/load_lora_adapter", "/reset_prefix_cache", "/models/m/start_profile"])
def test_match_closes_control_routes(path: str) -> None:
    with pytest.raises(PermissionDenied):
        match("POST", path)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/models/", "/models//rerank", "/models/v1/chat", "/v1/audio/../../sleep"]
)
def test_match_knows_nothing_else(path: str) -> None:
    with pytest.raises(NotFound):
        match("POST", path)


def test_match_names_the_method_to_use() -> None:
    with pytest.raises(NotFound, match="use POST"):
        match("GET", "/v1/chat/completions")

"""Which paths clients may use. An allow-list: whatever an engine can do besides is an admin matter or closed.

POST /v1/chat/completions ...     the model stands in the body
POST /v1/audio/...                the body is no JSON: model by `x-xinf-model`
POST /models/<name>/v1/...        the model stands in the path, which reaches the engine without its prefix
"""

from __future__ import annotations

import msgspec

from xinf.core.errors import NotFound, PermissionDenied

_ENGINE_ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
)
_AUDIO = "/v1/audio/"
# vLLM's control routes; named so that the refusal says why rather than "no such route".
_CLOSED = (
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/start_profile",
    "/stop_profile",
    "/collective_rpc",
    "/scale_elastic_ep",
    "/server_info",
    "/invocations",
)
_PREFIX = "/models/"
_EVENT_ROUTES = ("/v1/responses", "/v1/messages")


class Route(msgspec.Struct, frozen=True):
    """A path of an engine. `model` is set when the path names it; `is_json` when the body must be JSON."""

    path: str
    model: str | None = None
    is_json: bool = True

    @property
    def dialect(self) -> str:
        """How this route's streams end: see `answers.error_events`."""
        return "events" if self.path in _EVENT_ROUTES else "openai"


# The body of a request, to be told who would get it: an admin route, so `match` does not know it.
DRY_RUN = Route("/admin/route")

_PLAIN = {path: Route(path) for path in _ENGINE_ROUTES}


def is_engine_path(path: str) -> bool:
    """Whether clients may reach this path of an engine, if the engine has it."""
    return path in _PLAIN or path.startswith(_AUDIO)


def match(method: str, path: str) -> Route:
    """Find the engine route of a request.

    Raises: NotFound, PermissionDenied for a control route.
    """
    route = _PLAIN.get(path) or _match_rest(path)
    if route is None:
        raise NotFound(f"there is no route {method} {path[:200]}")
    if method != "POST":
        raise NotFound(f"there is no route {method} {path[:200]}", remedy="use POST")
    return route


def _match_rest(path: str) -> Route | None:
    if path in _CLOSED or path.startswith("/v1/responses/"):
        raise PermissionDenied(f"{path[:200]} is not open to clients")
    if path.startswith(_AUDIO) and "/../" not in path:
        return Route(path, is_json=False)
    if path.startswith(_PREFIX):
        return _match_named(path[len(_PREFIX) - 1 :])
    return None


def _match_named(rest: str) -> Route | None:
    """`rest` is /<name>/<engine path>; names may hold slashes, so the path is looked for from its end."""
    # The longest first: "/v1/rerank" before "/rerank".
    for path in sorted(_ENGINE_ROUTES, key=len, reverse=True):
        if rest.endswith(path) and len(rest) > len(path) + 1:
            return Route(path, model=rest[1 : -len(path)])
    name, separator, tail = rest.partition(_AUDIO)
    if separator and len(name) > 1:
        return Route(_AUDIO + tail, model=name[1:], is_json=False)
    for path in _CLOSED:
        if rest.endswith(path):
            raise PermissionDenied(f"{path} is not open to clients")
    return None

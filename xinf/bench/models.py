"""What models a server names at /v1/models."""

from __future__ import annotations

import msgspec

from xinf.bench.target import Target
from xinf.core.errors import EngineError, InvalidRequest, Unavailable

_TIMEOUT_S = 10.0


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def list_models(target: Target) -> tuple[str, ...]:
    """Ask for the models; () if the server does not say. Raises: Unavailable if nothing answers."""
    import httpx

    # Proxies are for other hosts' services; what is measured is the server itself.
    verify = target.tls() or False
    try:
        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False, verify=verify, headers=list(target.headers)) as client:
            answer = client.get(f"{target.url}/v1/models")
    except httpx.HTTPError as error:
        raise Unavailable(
            f"nothing answers at {target.url}: {error or type(error).__name__}",
            remedy="start the server, or name another one with --url",
        ) from error
    if answer.status_code == 401:
        raise EngineError(f"{target.url} answered 401 when asked for its models", remedy="give a key with --api-key")
    try:
        return tuple(model.id for model in msgspec.json.decode(answer.content, type=_Models).data)
    except msgspec.DecodeError:
        return ()


def find_model(target: Target) -> str:
    """Give the server's only model. Raises: InvalidRequest if it has none or several, Unavailable, EngineError."""
    models = list_models(target)
    if len(models) == 1:
        return models[0]
    if not models:
        raise InvalidRequest(f"{target.url} names no models", remedy="name one with --model")
    raise InvalidRequest(f"{target.url} has several models: {', '.join(models)}", remedy="choose one with --model")

"""Arguments of vLLM that xinf sets itself: refused where they are typed, and once more where the engine is built."""

from __future__ import annotations

# What would listen, authenticate or name the model in another way than the gateway expects.
OWN_ARGUMENTS = frozenset({
    "model", "model-tag", "served-model-name", "host", "port", "uds", "api-key", "root-path", "api-server-count",
    "headless", "grpc", "grpc-port", "config", "ssl-keyfile", "ssl-certfile", "ssl-ca-certs",
})  # fmt: skip
# What does the same here.
INSTEAD = {
    "model": "name the model with --model",
    "model-tag": "name the model with --model",
    "served-model-name": "use --served-name",
    "api-key": "make keys with `xinf key create`",
}


def own_argument(name: str) -> str | None:
    """The argument of xinf's own that a name means, as vLLM compares names; None: it is the user's to give."""
    written = name.removeprefix("--").replace("_", "-")
    return written if written in OWN_ARGUMENTS else None

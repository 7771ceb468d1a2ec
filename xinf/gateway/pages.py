"""The pages of the gateway itself: health, readiness, the models that a key may see, metrics."""

from __future__ import annotations

import time
from typing import Any

from xinf.core.errors import Unavailable, UnknownModel, XinfError
from xinf.core.records import KeyRecord
from xinf.gateway.answers import Answer, json_answer
from xinf.gateway.client import Head
from xinf.gateway.core import Core
from xinf.gateway.keys import check_model
from xinf.gateway.metrics import render


class Pages:
    """Answers without an engine."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def health(self, head: Head) -> Answer:
        """/healthz, /readyz, /readyz/<model>. Raises: Unavailable with the reasons, UnknownModel."""
        core = self._core
        if head.path == "/healthz":
            return json_answer({"status": "ok"})
        if core.is_draining:
            raise Unavailable("the gateway stops")
        table = core.table
        table.check_read()
        try:
            core.keys.check(head.headers, time.time())
            may_see = True
        except XinfError:
            may_see = False  # an anonymous probe gets the status without names and reasons
        name = head.path.removeprefix("/readyz").strip("/")
        models = [table.find(name)] if name else table.models()
        waiting = [model.deployment for model in models if not table.ready(model.deployment)]
        if waiting:
            reasons = "; ".join(table.why_not_ready(deployment) for deployment in waiting[:8])
            raise Unavailable(f"not ready: {reasons}" if may_see else "not ready")
        ready = {model.deployment: len(table.ready(model.deployment)) for model in models}
        return json_answer({"status": "ready", "replicas": ready} if may_see else {"status": "ready"})

    def models(self, key: KeyRecord | None) -> Answer:
        """/v1/models."""
        return json_answer({"object": "list", "data": self._list(key)})

    def model(self, name: str, key: KeyRecord | None) -> Answer:
        """/v1/models/<name>. Raises: UnknownModel, Unavailable."""
        for entry in self._list(key):
            if entry["id"] == name:
                return json_answer(entry)
        self._core.table.check_read()
        raise UnknownModel(f"model {name[:200]!r} does not exist, or not for this key", param="model")

    async def metrics(self) -> Answer:
        """/metrics."""
        text = render(await self._core.metrics())
        return Answer(200, text.encode(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    def _list(self, key: KeyRecord | None) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        table = self._core.table
        for name in table.names():
            model = table.find(name)
            try:
                check_model(key, model.names)
            except XinfError:
                continue
            listed.append({"id": name, "object": "model", "created": int(model.created_s), "owned_by": "xinf"})
        return listed

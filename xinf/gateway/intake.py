"""Reading a request: from its head to whether it may go on to its body, from its body to what is asked of whom.

What is refused is refused as early as it can be: too long a body before it is read.
"""

from __future__ import annotations

import time
from typing import NoReturn

from xinf._fast.framewriter import encode_head
from xinf._fast.scan import Scan, ScanError, scan
from xinf.core.config import GatewayConfig
from xinf.core.errors import InvalidRequest, MalformedJson
from xinf.core.records import KeyRecord
from xinf.gateway.body import declared_length
from xinf.gateway.client import Admission, Head, RawHeaders
from xinf.gateway.job import Job, Path
from xinf.gateway.keys import check_model
from xinf.gateway.metrics import Metrics
from xinf.gateway.relay import Relay
from xinf.gateway.routes import DRY_RUN, Route, match
from xinf.gateway.table import Table

MAX_TIMEOUT_S = 7 * 86400.0
# Encoded heads that are kept: clients send the same few headers again and again.
MAX_HEADS = 1024

# Headers of the client that an engine may see; keys and cookies are not among them.
_FORWARDED = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")
_JSON_TYPE = (b"content-type", b"application/json")


class Intake:
    """Reads the requests of one gateway process."""

    def __init__(self, config: GatewayConfig, *, table: Table, metrics: Metrics) -> None:
        self._config = config
        self._table = table
        self._metrics = metrics
        self._heads: dict[tuple[bytes | str | None, ...], bytes] = {}

    def admit(self, head: Head, *, key: KeyRecord | None, request_id: str, extra_headers: RawHeaders) -> Admission:
        """Let a request go on to its body. Raises: NotFound, PermissionDenied, BodyTooLarge, InvalidRequest."""
        now_s = time.monotonic()
        return Admission(
            head,
            match(head.method, head.path),
            key=key,
            length=declared_length(head.headers, self._config.max_body_bytes),
            max_body_bytes=self._config.max_body_bytes,
            begun_s=now_s,
            deadline_s=self._deadline(head.headers, now_s),
            request_id=request_id,
            extra_headers=extra_headers,
        )

    def understand(self, admission: Admission, body: bytes, relay: Relay, *, path: Path) -> Job:
        """Read a body as far as routing needs it. Raises: XinfError."""
        head, route = admission.head, admission.route
        scanned = self._scan(body) if route.is_json else None
        asked = self._model_name(route, scanned, head.headers)
        model = self._table.find(asked)
        if admission.key is not None:
            check_model(admission.key, model.names)
        self._table.check_path(model, route.path)
        relay.deadline_s = admission.deadline_s
        relay.dialect = route.dialect
        return Job(
            path,
            admission,
            relay,
            model=model,
            asked=asked,
            scanned=scanned,
            head=self._engine_head(route, head),
            body=body,
            counters=self._metrics.model(model.deployment),
        )

    def admit_dry_run(self, head: Head, *, request_id: str, extra_headers: RawHeaders) -> Admission:
        """Let the body of a dry run be read within the same limits. Raises: BodyTooLarge, InvalidRequest."""
        return Admission(
            head,
            DRY_RUN,
            key=None,
            length=declared_length(head.headers, self._config.max_body_bytes),
            max_body_bytes=self._config.max_body_bytes,
            begun_s=time.monotonic(),
            deadline_s=None,
            request_id=request_id,
            extra_headers=extra_headers,
        )

    def read(self, head: Head, body: bytes) -> tuple[str, Scan]:
        """What a dry run asks for: the model, by header before body, and the scanned body. Raises: XinfError."""
        scanned = self._scan(body)
        named = head.headers.get(b"x-xinf-model")
        if named is not None:
            return named.decode("utf-8", "replace"), scanned
        return self._model_name(DRY_RUN, scanned, head.headers), scanned

    def _scan(self, body: bytes) -> Scan:
        try:
            scanned = scan(body, self._config.max_json_depth)
        except ScanError as error:
            _refuse_json(error)
        if scanned.type_error is not None:
            field, expected = scanned.type_error
            raise InvalidRequest(f"{field} must be {expected}", param=field)
        return scanned

    def _model_name(self, route: Route, scanned: Scan | None, headers: dict[bytes, bytes]) -> str:
        """Which model is asked for: by path, by body, by header. Raises: InvalidRequest naming what exists."""
        if route.model is not None:
            return route.model
        if scanned is not None and scanned.model is not None:
            return scanned.model
        if (name := headers.get(b"x-xinf-model")) is not None:
            return name.decode("utf-8", "replace")
        self._table.check_read()
        shown = ", ".join(self._table.names()[:20]) or "none"
        raise InvalidRequest("the request names no model", remedy=f"these exist: {shown}", param="model")

    def _engine_head(self, route: Route, head: Head) -> bytes:
        """What the engine is told besides the body. A body read as JSON is JSON whatever the client calls it."""
        get = head.headers.get
        known = (
            route.path,
            head.query,
            None if route.is_json else get(b"content-type"),
            get(b"accept"),
            get(b"anthropic-version"),
            get(b"anthropic-beta"),
        )
        encoded = self._heads.get(known)
        if encoded is None:
            headers = [(name, head.headers[name]) for name in _FORWARDED if name in head.headers]
            if route.is_json:  # `curl -d` calls it a form
                headers = [_JSON_TYPE, *(pair for pair in headers if pair[0] != b"content-type")]
            path = route.path + ("?" + head.query.decode("latin-1") if head.query else "")
            encoded = encode_head("POST", path, headers)
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[known] = encoded
        return encoded

    def _deadline(self, headers: dict[bytes, bytes], now_s: float) -> float | None:
        """When this request must have ended (monotonic). Raises: InvalidRequest."""
        limit_s = self._config.request_timeout
        text = headers.get(b"x-request-timeout")
        if text is None:
            return now_s + limit_s if limit_s > 0 else None
        try:
            wanted_s = float(text)
        except ValueError:
            wanted_s = -1.0
        if not 0 < wanted_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"x-request-timeout {text[:40].decode('latin-1')!r} is not a number of seconds above 0",
                param="x-request-timeout",
            )
        return now_s + (min(wanted_s, limit_s) if limit_s > 0 else wanted_s)


def _refuse_json(error: ScanError) -> NoReturn:
    raise MalformedJson(f"the body is not JSON: {error.reason} at byte {error.offset}", offset=error.offset) from None

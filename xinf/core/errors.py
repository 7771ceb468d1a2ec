"""Every error xinf raises on purpose, with its stable code and what it maps to.

    XinfError
    ├── InvalidRequest          400  invalid_request        a field of the request is wrong
    │   ├── MalformedJson       400  malformed_json         not JSON; says at which byte
    │   ├── RequestTimeout      408  request_timeout        the client did not send its whole request in time
    │   └── BodyTooLarge        413  body_too_large
    ├── Unauthenticated         401  invalid_api_key        no key, an unknown key, an expired key
    ├── PermissionDenied        403  permission_denied      the key may not use this model, the route is closed
    ├── NotFound                404  not_found              no such route, record, file
    │   └── UnknownModel        404  model_not_found        names the models that exist
    ├── Conflict                409  conflict               a record changed meanwhile, or exists already
    ├── Overloaded              429  no_capacity            the waiting room is full; says when to come back
    ├── EngineError             502  engine_error           the engine answered with something unusable
    │   └── EngineDied          502  engine_died            the engine process ended under the request
    ├── EngineStartFailed       503  engine_start_failed    class of the cause, last log lines, remedy
    ├── Unavailable             503  unavailable            nothing ready to serve this, or the control process is away
    ├── PlacementFailed         503  placement_failed       no device fits; says which constraint bound
    ├── DeadlineExceeded        504  deadline_exceeded
    ├── ConfigError             400  config_invalid         key, value, the nearest known key
    └── StoreError              500  store_error
        ├── StoreHeld           409  store_held             another process owns the data directory
        ├── StoreFull           507  store_full
        ├── StoreCorrupt        500  store_corrupt
        ├── Compacted           410  compacted              the watch starts before the kept history: list again
        └── LeaseExpired        410  lease_expired

Codes are part of the API: they never change and are never reused. The gateway turns an error into the OpenAI shape
with `openai_body`; the gRPC services put `code` and `fields` into the status details with `to_wire` and the clients
restore the same class with `from_wire`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

Field = str | int | float | bool | None


class XinfError(Exception):
    """Base of all errors that xinf raises on purpose.

    `message` is one sentence with the values that matter, `remedy` what the reader can do, `fields` the same values
    for programs.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, remedy: str | None = None, param: str | None = None, **fields: Field) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.param = param
        self.fields: dict[str, Field] = fields

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}; {self.remedy}"


class InvalidRequest(XinfError):
    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    openai_type = "invalid_request_error"


class MalformedJson(InvalidRequest):
    """The body is not JSON; `fields["offset"]` is the first byte that cannot be right."""

    code = "malformed_json"


class RequestTimeout(InvalidRequest):
    code = "request_timeout"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"
    http_status = 413


class Unauthenticated(XinfError):
    code = "invalid_api_key"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    openai_type = "authentication_error"


class PermissionDenied(XinfError):
    code = "permission_denied"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    openai_type = "permission_error"


class NotFound(XinfError):
    code = "not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    openai_type = "invalid_request_error"


class UnknownModel(NotFound):
    code = "model_not_found"


class Conflict(XinfError):
    code = "conflict"
    http_status = 409
    grpc_status = "ABORTED"
    openai_type = "invalid_request_error"


class Overloaded(XinfError):
    """No room to wait in; `fields["retry_after_s"]` says when to try again."""

    code = "no_capacity"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    openai_type = "rate_limit_error"


class EngineError(XinfError):
    code = "engine_error"
    http_status = 502
    grpc_status = "INTERNAL"


class EngineDied(EngineError):
    code = "engine_died"
    grpc_status = "UNAVAILABLE"


class EngineStartFailed(XinfError):
    """`fields["cause"]` is one of the causes listed in docs/reference/errors.md; `log_tail` the engine's last lines."""

    code = "engine_start_failed"
    http_status = 503
    grpc_status = "FAILED_PRECONDITION"


class Unavailable(XinfError):
    code = "unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"


class PlacementFailed(XinfError):
    code = "placement_failed"
    http_status = 503
    grpc_status = "FAILED_PRECONDITION"


class DeadlineExceeded(XinfError):
    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class ConfigError(XinfError):
    code = "config_invalid"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    openai_type = "invalid_request_error"


class StoreError(XinfError):
    code = "store_error"


class StoreHeld(StoreError):
    code = "store_held"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class StoreFull(StoreError):
    code = "store_full"
    http_status = 507
    grpc_status = "RESOURCE_EXHAUSTED"


class StoreCorrupt(StoreError):
    code = "store_corrupt"
    grpc_status = "DATA_LOSS"


class Compacted(StoreError):
    """`fields["oldest_revision"]` is the oldest revision a watch can still start from."""

    code = "compacted"
    http_status = 410
    grpc_status = "OUT_OF_RANGE"


class LeaseExpired(StoreError):
    code = "lease_expired"
    http_status = 410
    grpc_status = "NOT_FOUND"


class _Wire(msgspec.Struct, frozen=True, omit_defaults=True):
    code: str
    message: str
    remedy: str | None = None
    param: str | None = None
    fields: dict[str, Any] = {}


def all_errors() -> list[type[XinfError]]:
    """List every error class once, the base first."""
    found: list[type[XinfError]] = [XinfError]
    for cls in found:
        found += cls.__subclasses__()
    return found


def to_wire(error: XinfError) -> bytes:
    """Encode an error as JSON for a gRPC status (`xinf-error-bin` trailing metadata)."""
    return msgspec.json.encode(_Wire(error.code, error.message, error.remedy, error.param, dict(error.fields)))


def from_wire(data: bytes) -> XinfError:
    """Restore the error that `to_wire` encoded; an unknown code becomes a plain XinfError."""
    wire = msgspec.json.decode(data, type=_Wire)
    by_code = {cls.code: cls for cls in all_errors()}
    cls = by_code.get(wire.code, XinfError)
    return cls(wire.message, remedy=wire.remedy, param=wire.param, **wire.fields)


def openai_body(error: XinfError) -> dict[str, dict[str, Any]]:
    """Give the error in OpenAI's shape: `{"error": {"message", "type", "param", "code", ...fields}}`."""
    body: dict[str, Any] = {
        "message": str(error),
        "type": error.openai_type,
        "param": error.param,
        "code": error.code,
    }
    body.update({key: value for key, value in error.fields.items() if key not in body})
    return {"error": body}

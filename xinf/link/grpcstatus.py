"""Why a gRPC stream ended, in the words that grpc.aio has for it: "unavailable: the connection was closed".

Read by the client's end from headers and trailers, written into trailers by the server's.
"""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from xinf.link import h2frames as h2

ENDED = "the stream ended"
NO_STATUS = "unknown: the stream ended without a status"

# Index: number of the status. Source: grpc/doc/statuscodes.md.
STATUS_NAMES = (
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
)
# Of grpc-message; all else that is printable ASCII but "%" stands for itself. Source: grpc/doc/PROTOCOL-HTTP2.md.
_UNQUOTED = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
# Source: grpc/doc/http-grpc-status-mapping.md; any other HTTP status is unknown.
_STATUS_OF_HTTP = {
    "400": "internal",
    "401": "unauthenticated",
    "403": "permission_denied",
    "404": "unimplemented",
    "429": "unavailable",
    "502": "unavailable",
    "503": "unavailable",
    "504": "unavailable",
}
# Source: grpc/doc/PROTOCOL-HTTP2.md, errors; any other error code is internal.
_STATUS_OF_RESET = {
    h2.REFUSED_STREAM: "unavailable",
    h2.CANCEL: "cancelled",
    h2.ENHANCE_YOUR_CALM: "resource_exhausted",
    h2.INADEQUATE_SECURITY: "permission_denied",
}


def reason_of_headers(headers: dict[str, str], *, is_first: bool, is_last: bool) -> str | None:
    """What headers or trailers say of the end of the stream, None when it goes on."""
    status = headers.get(":status")
    if is_last and "grpc-status" in headers:
        return _reason_of_status(headers["grpc-status"], headers.get("grpc-message", ""))
    if status is not None and status != "200":
        return f"{_STATUS_OF_HTTP.get(status, 'unknown')}: the engine answered HTTP {status}"
    if is_last:
        return NO_STATUS
    if is_first and not headers.get("content-type", "").startswith("application/grpc"):
        return f"unknown: the content type is {headers.get('content-type')!r}, not gRPC's"
    return None


def reason_of_reset(code: int) -> str:
    """What a RST_STREAM says."""
    return f"{_STATUS_OF_RESET.get(code, 'internal')}: the stream was reset ({h2.error_name(code)})"


def trailers(status: str, message: str) -> list[tuple[str, str]]:
    """What says that a stream ended. `status`: a name; one that is none is told as unknown."""
    number = STATUS_NAMES.index(status if status in STATUS_NAMES else "unknown")
    found = [("grpc-status", str(number))]
    if message:
        # Cut, so that it fits into one frame whatever is in it.
        found.append(("grpc-message", quote(message[:1000].encode("utf-8", "replace"), safe=_UNQUOTED)))
    return found


def _reason_of_status(number: str, message: str) -> str:
    """`message`: percent-encoded UTF-8."""
    is_known = number.isascii() and number.isdigit() and int(number) < len(STATUS_NAMES)
    name = STATUS_NAMES[int(number)] if is_known else "unknown"
    return ENDED if name == "ok" else f"{name}: {unquote_to_bytes(message).decode(errors='replace')}"

"""The admin routes of a gateway, as commands use them."""

from __future__ import annotations

import ssl
from typing import TypeVar

import msgspec

from xinf.cli.session import Session, find_gateway, run
from xinf.core.errors import EngineError, Unauthenticated, Unavailable, XinfError, all_errors

T = TypeVar("T")
TIMEOUT_S = 30.0


class AdminClient:
    """Asks one gateway. The key is the installation's own where the gateway is; elsewhere it must be given."""

    def __init__(self, session: Session, *, url: str | None, key: str | None) -> None:
        """Find gateway and key. Raises: Unavailable, Unauthenticated."""
        is_own = url is None and session.server is None
        self._url = (url or run(find_gateway(session))).rstrip("/").removesuffix("/v1")
        self._key = key or (_own_key(session) if is_own else None)
        if not self._key:
            raise Unauthenticated(
                f"the admin routes of {self._url} need its admin key",
                remedy="give --admin-key: on the gateway's host it is the file admin.key in the runtime directory",
            )

    def get(self, path: str, kind: type[T]) -> T:
        """Ask for something. Raises: Unavailable; what the gateway says."""
        return self._ask("GET", path, kind)

    def post(self, path: str, body: bytes, kind: type[T], *, headers: dict[str, str]) -> T:
        """Send a body. Raises: Unavailable; what the gateway says."""
        return self._ask("POST", path, kind, body=body, headers=headers)

    def _ask(
        self, method: str, path: str, kind: type[T], *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> T:
        import httpx

        sent = {**(headers or {}), "authorization": f"Bearer {self._key}"}
        verify = ssl.create_default_context() if self._url.startswith("https:") else False
        try:
            with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=verify) as client:
                answer = client.request(method, self._url + path, content=body, headers=sent)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the gateway at {self._url} gave no answer: {error or type(error).__name__}",
                remedy="start `xinf serve`, or name another gateway with --url",
            ) from error
        if answer.status_code != 200:
            raise _error_of(answer.status_code, answer.content)
        return msgspec.json.decode(answer.content, type=kind)


def _own_key(session: Session) -> str | None:
    try:
        return session.config.paths.admin_key_file.read_text().strip()
    except OSError:
        return None


def _error_of(status: int, body: bytes) -> XinfError:
    """The gateway's error as it raised it."""
    try:
        told = msgspec.json.decode(body)["error"]
        code, message, param = told["code"], str(told["message"]), told.get("param")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return EngineError(f"the gateway answered {status}: {body[:300].decode('utf-8', 'replace')}")
    kind = next((kind for kind in all_errors() if kind.code == code), XinfError)
    return kind(message, param=param)

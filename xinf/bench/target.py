"""Where requests go: the server's address, its route, and what every request carries."""

from __future__ import annotations

import enum
import re
import ssl
from urllib.parse import urlsplit

import msgspec

from xinf.core.errors import InvalidRequest

_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Endpoint(enum.Enum):
    """A route of the OpenAI API."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"

    @property
    def path(self) -> str:
        """Its path behind the base URL."""
        return {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}[
            self.value
        ]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server, read from its URL; `prefix` is the part of its path before `/v1`."""

    is_tls: bool
    host: str
    port: int
    prefix: str
    headers: tuple[tuple[str, str], ...] = ()  # of every request
    verify: bool = True

    @classmethod
    def parse(cls, url: str, *, headers: tuple[tuple[str, str], ...] = (), verify: bool = True) -> Target:
        """Read `http://host:port[/prefix][/v1]`. Raises: InvalidRequest."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise InvalidRequest(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.username:
            raise InvalidRequest(f"{url!r} is not a base URL", remedy="write for example http://127.0.0.1:8080")
        if not re.fullmatch(r"[!-~]*", parts.path):
            raise InvalidRequest(f"the path of {url!r} must be percent-encoded")
        for name, value in headers:
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise InvalidRequest(f"header {name!r} is not one that HTTP allows")
        return cls(
            is_tls=parts.scheme == "https",
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            prefix=parts.path.rstrip("/").removesuffix("/v1"),
            headers=headers,
            verify=verify,
        )

    @property
    def url(self) -> str:
        """The base URL, without `/v1`."""
        return f"http{'s' if self.is_tls else ''}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"

    def head(self, method: str, path: str) -> bytes:
        """Give everything of a request up to the value of its content-length."""
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {self.authority}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if method == "POST":
            lines += ["content-type: application/json", "content-length: "]
        return "\r\n".join(lines).encode("latin-1")

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context; certificates come from where the system (or SSL_CERT_FILE) says."""
        if not self.is_tls:
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

"""`xinf chat`."""

from __future__ import annotations

import json as json_module
import ssl
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xinf.cli.options import ConfigFile, DataDir, DeploymentArgument, Json, Server
from xinf.cli.session import find_gateway, open_session, run
from xinf.cli.table import print_json
from xinf.core.errors import EngineError, Unavailable, XinfError

if TYPE_CHECKING:
    import httpx

_READ_TIMEOUT_S = 600.0
_CONNECT_TIMEOUT_S = 5.0

Message = dict[str, str]


def chat(
    name: DeploymentArgument,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="Say this, print the answer, end.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, metavar="T", help="0: always the likeliest.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Gateway (default: of this installation).")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="XINF_API_KEY", metavar="KEY", help="API key.")
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Talk to a model through the gateway. An empty line or Ctrl-D ends it, Ctrl-C ends an answer, /reset forgets."""
    if json and message is None:
        raise typer.BadParameter("--json needs --message")
    session = open_session(config, data_dir, server)
    conversation = Conversation(
        url or run(find_gateway(session)), name, api_key=api_key, max_tokens=max_tokens, temperature=temperature
    )
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    if message is not None:
        messages.append({"role": "user", "content": message})
        if json:
            print_json(conversation.ask(messages))
            return
        _print_answer(conversation, messages)
        return
    _converse(conversation, messages)


class Conversation:
    """Asks one model through one gateway."""

    def __init__(
        self, url: str, model: str, *, api_key: str | None, max_tokens: int | None, temperature: float | None
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._body: dict[str, Any] = {"model": model}
        if max_tokens is not None:
            self._body["max_tokens"] = max_tokens
        if temperature is not None:
            self._body["temperature"] = temperature

    def ask(self, messages: list[Message]) -> Any:
        """The whole answer as the gateway gives it. Raises: Unavailable, EngineError with the gateway's words."""
        import httpx

        try:
            with self._client() as client:
                answer = client.post("/v1/chat/completions", json={**self._body, "messages": messages})
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _check(answer)
        return answer.json()

    def stream(self, messages: list[Message]) -> Iterator[str]:
        """The pieces of the answer as they come. Raises: Unavailable, EngineError."""
        import httpx

        body = {**self._body, "messages": messages, "stream": True}
        try:
            with self._client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    _check(answer)
                for line in answer.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield from _pieces(json_module.loads(line.removeprefix("data: ")))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _client(self) -> httpx.Client:
        import httpx

        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        # Proxies are for other hosts' services; certificates come from where the system (or SSL_CERT_FILE) says.
        verify = ssl.create_default_context() if self._url.startswith("https:") else False
        return httpx.Client(base_url=self._url, headers=self._headers, timeout=timeout, trust_env=False, verify=verify)

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the gateway at {self._url} gave no answer: {error or type(error).__name__}",
            remedy="start `xinf serve`, or name another gateway with --url",
        )


def _converse(conversation: Conversation, messages: list[Message]) -> None:
    n_system = len(messages)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print()
            return
        if not said:
            return
        if said == "/reset":
            del messages[n_system:]
            continue
        messages.append({"role": "user", "content": said})
        try:
            answer = _print_answer(conversation, messages)
        except XinfError as error:
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})


def _print_answer(conversation: Conversation, messages: list[Message]) -> str:
    parts: list[str] = []
    try:
        for piece in conversation.stream(messages):
            parts.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print()
    return "".join(parts)


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise EngineError(str(event["error"].get("message", event["error"])))
    for choice in event.get("choices", ()):
        delta = choice.get("delta") or {}
        yield from filter(None, (delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")))


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    try:
        told = answer.json()["error"]
        message = told["message"] if isinstance(told, dict) else str(told)
    except (ValueError, KeyError, TypeError):
        message = answer.text[:500]
    raise EngineError(
        f"the gateway answered {answer.status_code}: {message}",
        remedy="give a key with --api-key or XINF_API_KEY; `xinf key create` makes one"
        if answer.status_code == 401
        else None,
        status=answer.status_code,
    )

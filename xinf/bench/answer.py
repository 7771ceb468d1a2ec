"""What an answer of the OpenAI API says, as far as figures need it. Unknown fields are skipped."""

from __future__ import annotations

import msgspec

from xinf.bench.target import Endpoint

DONE = b"[DONE]"
_MESSAGE_CHARACTERS = 300
# A field of any type: `Raw | None` would be null or nothing, to msgspec.
_ABSENT = msgspec.Raw()
_NOTHING = (b"", b"null")


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Message | None = None
    message: _Message | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts as the server has them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that were in a cache; None if the server does not say."""
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class Answer(msgspec.Struct, gc=False):
    """One event of a stream, or a whole answer."""

    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = _ABSENT

    @property
    def is_error(self) -> bool:
        """Whether it says that the request failed."""
        return bytes(self.error) not in _NOTHING

    @property
    def has_output(self) -> bool:
        """Whether it carries something that was generated; an event that only says a role does not."""
        for choice in self.choices or ():
            message = choice.delta or choice.message
            if choice.text or (
                message is not None
                and (
                    message.content
                    or message.reasoning_content
                    or message.reasoning
                    or bytes(message.tool_calls) not in (*_NOTHING, b"[]")
                )
            ):
                return True
        return False

    @property
    def text(self) -> str:
        """The answer proper, of the first choice."""
        if not self.choices:
            return ""
        first = self.choices[0]
        message = first.delta or first.message
        return (message.content if message is not None else first.text) or ""


_DECODER = msgspec.json.Decoder(Answer)


def decode(data: bytes) -> Answer:
    """Raises: ValueError for what is no JSON or has another shape."""
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"{error}: {data[:80]!r}") from error


def check_whole(answer: Answer, endpoint: Endpoint) -> None:
    """Raises: ValueError if a whole answer has nothing in it."""
    if endpoint is Endpoint.EMBEDDINGS:
        if not answer.data:
            raise ValueError("the answer has no `data`")
    elif not answer.choices:
        raise ValueError("the answer has no `choices`")


def error_message(body: bytes) -> str:
    """The server's words out of an error body: OpenAI's shape, FastAPI's, or the text as it is."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace").strip()[:_MESSAGE_CHARACTERS]
    told = found
    if isinstance(found, dict):
        told = found.get("error", found.get("detail", found.get("message", found)))
    if isinstance(told, dict):
        told = told.get("message", told)
    return (told if isinstance(told, str) else msgspec.json.encode(told).decode())[:_MESSAGE_CHARACTERS]

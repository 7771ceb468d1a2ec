"""What is asked: a stream of requests that share prefixes in the ways that real ones do.

    next turn of one of some 70 chats, with the answers that were generated ........ 46 %
    new chat: 8 system prompts, some with one of 4 sets of tools ................... 14 %
    question on one document of 7 kB that everybody has ............................ 15 %
    question on a document of its own .............................................. 10 %
    an earlier request again ........................................................ 5 %
    an earlier request with a few characters changed somewhere ...................... 5 %
    /v1/completions, a text cut anywhere ............................................ 5 %

A tenth of the chats has a cache_salt, a tenth one of two LoRA adapters, an eighth is in scripts other than Latin.
Everything follows from the seed and the answers: asked one after another, a model that answers the same is asked the
same. With several in flight, which chat goes on depends on which answers are there.
"""

from __future__ import annotations

import copy
import json
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.exact import prose
from benchmarks.exact.script import TOOL_NAMES

NEXT, NEW, HOT, DOCUMENT, REPEAT, EDIT, COMPLETION = "next", "new", "hot", "document", "repeat", "edit", "completion"
SHARES: Mapping[str, int] = {NEXT: 46, NEW: 14, HOT: 15, DOCUMENT: 10, REPEAT: 5, EDIT: 5, COMPLETION: 5}

_N_CHATS = 70
_CHAT_BYTES = 14_000  # of a body; a chat that is longer ends
_HOT_BYTES = 7_000
_RECENT = 300  # earlier requests that are repeated or edited
_MAX_ANSWER_TOKENS = 96
_FOREIGN, _SALTED, _ADAPTED, _STREAMED = 0.12, 0.10, 0.10, 0.25

Body = dict[str, Any]


class Ask(msgspec.Struct, frozen=True):
    """One request."""

    number: int
    kind: str
    path: str
    body: Body
    chat: int | None  # the chat that its answer belongs to


class Told(msgspec.Struct, frozen=True):
    """What of an answer a next turn has."""

    content: str | None
    reasoning: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()


class Settings(msgspec.Struct, frozen=True):
    """What a workload needs to know of its model."""

    model: str
    adapters: tuple[str, ...]
    tool_begin: int  # token id; banned where no tools are given
    thinks: bool  # chats choose whether the model thinks
    calls_once: bool  # the template refuses messages with several calls


class _Chat(msgspec.Struct):
    number: int
    body: Body  # without what differs by request
    is_foreign: bool
    gives_thoughts_back: bool
    is_busy: bool = False


class Workload:
    """`next` gives a request, `answered` takes what came of it."""

    def __init__(self, settings: Settings, seed: int, n_requests: int) -> None:
        self._settings = settings
        self._rng = random.Random(seed)
        rng = self._rng
        self._kinds = _deal(rng, n_requests)
        self._systems = [prose.text(rng, rng.randint(300, 3000), is_foreign=rng.random() < _FOREIGN) for _ in range(8)]
        self._tools = [[_tool(rng, name) for name in TOOL_NAMES[: 2 + number]] + [_tool(rng, prose.made_up(rng))]
                       for number in range(3)]  # fmt: skip
        self._tools.append([_tool(rng, name) for name in reversed(TOOL_NAMES)])
        self._hot = prose.text(rng, _HOT_BYTES, is_foreign=False)
        self._texts = [prose.text(rng, rng.randint(3000, 8000), is_foreign=number == 0) for number in range(6)]
        self._chats: deque[_Chat] = deque()
        self._recent: deque[tuple[str, Body]] = deque(maxlen=_RECENT)
        self._n = 0
        self._n_chats = 0

    def __len__(self) -> int:
        return len(self._kinds)

    def next(self) -> Ask | None:
        """The next request, None after the last."""
        if self._n == len(self._kinds):
            return None
        kind = self._kinds[self._n]
        self._n += 1
        chat: _Chat | None = None
        path = "/v1/chat/completions"
        if kind == NEXT and (chat := self._free_chat()) is None:
            kind = NEW
        match kind:
            case "next":
                assert chat is not None
                self._add_question(chat)
                body = chat.body
            case "new":
                chat = self._new_chat()
                body = chat.body
            case "repeat" | "edit" if self._recent:
                path, body = self._rng.choice(self._recent)
                if kind == EDIT:
                    body = _edited(self._rng, body)
            case "completion":
                path, body = "/v1/completions", self._completion()
            case "document":
                body = self._single(prose.text(self._rng, self._rng.randint(1500, 9000), is_foreign=self._is(_FOREIGN)))
            case _:
                body = self._single(self._hot)
        if chat is not None:
            chat.is_busy = True
        body = copy.deepcopy(body)
        self._recent.append((path, copy.deepcopy(body)))
        body |= self._sampling(body, path)
        return Ask(self._n - 1, kind, path, body, None if chat is None else chat.number)

    def answered(self, ask: Ask, told: Told | None) -> None:
        """Go on with the chat; None ends it."""
        chat = next((each for each in self._chats if each.number == ask.chat), None)
        if chat is None:
            return
        chat.is_busy = False
        if told is None or len(json.dumps(chat.body, ensure_ascii=False).encode()) > _CHAT_BYTES:
            self._chats.remove(chat)
            return
        message: Body = {"role": "assistant", "content": told.content}
        if told.tool_calls:
            message["tool_calls"] = [dict(call) for call in told.tool_calls]
        if told.reasoning is not None and chat.gives_thoughts_back:
            message["reasoning"] = told.reasoning
        chat.body["messages"].append(message)

    # ---- chats ----------------------------------------------------------------------------------------------------

    def _free_chat(self) -> _Chat | None:
        free = [chat for chat in self._chats if not chat.is_busy]
        # Who spoke lately speaks again sooner: half of the turns are of the twelve that did last.
        if self._is(0.5):
            free = free[-12:]
        if not free:
            return None
        chat = self._rng.choice(free)
        self._chats.remove(chat)
        self._chats.append(chat)
        return chat

    def _new_chat(self) -> _Chat:
        rng = self._rng
        body: Body = {"model": self._settings.model, "messages": [], **self._isolation()}
        messages = body["messages"]
        if not self._is(0.08):
            messages.append({"role": "system", "content": rng.choice(self._systems)})
        if self._is(0.08):
            messages.append({"role": "developer", "content": prose.text(rng, rng.randint(60, 400), is_foreign=False)})
        if self._is(0.35):
            body["tools"] = rng.choice(self._tools)
        if self._settings.thinks:
            body["chat_template_kwargs"] = {"enable_thinking": self._is(0.5)}
        chat = _Chat(self._n_chats, body, self._is(_FOREIGN), self._is(0.3))
        self._n_chats += 1
        messages.append({"role": "user", "content": self._question(chat)})
        if "tools" in body and self._is(0.4):
            self._add_past_call(chat)
        if len(self._chats) >= _N_CHATS:
            oldest = next((each for each in self._chats if not each.is_busy), None)
            if oldest is not None:
                self._chats.remove(oldest)
        self._chats.append(chat)
        return chat

    def _add_question(self, chat: _Chat) -> None:
        """Let a chat go on: results of the tools that the model called, or what the user says next."""
        messages = chat.body["messages"]
        calls = messages[-1].get("tool_calls") or ()
        for call in calls:
            messages.append(_result(self._rng, call["id"]))
        if not calls:
            messages.append({"role": "user", "content": self._question(chat)})
            if "tools" in chat.body and self._is(0.2):
                self._add_past_call(chat)
            elif self._is(0.02):
                messages.insert(-1, {"role": "developer", "content": prose.sentence(self._rng)})

    def _add_past_call(self, chat: _Chat) -> None:
        """A call of a tool that some other model made, and its result."""
        rng = self._rng
        number = f"call_{rng.getrandbits(40):010x}"
        tool = rng.choice(chat.body["tools"])["function"]["name"]
        arguments = json.dumps({"query": prose.sentence(rng), "limit": rng.randint(1, 50)}, ensure_ascii=False)
        call = {"id": number, "type": "function", "function": {"name": tool, "arguments": arguments}}
        content = prose.sentence(rng) if self._is(0.3) else None
        chat.body["messages"] += [{"role": "assistant", "content": content, "tool_calls": [call]}, _result(rng, number)]

    def _question(self, chat: _Chat) -> str | list[Body]:
        rng = self._rng
        size = rng.choice((60, 120, 200, 300, 500, 900))
        text = prose.text(rng, size, is_foreign=chat.is_foreign)
        draw = rng.random()
        if draw < 0.10:
            other = prose.text(rng, 80, is_foreign=chat.is_foreign)
            return [{"type": "text", "text": text}, {"type": "text", "text": other}]
        # People leave white space behind; templates that trim it do so everywhere.
        return text + "\n" if draw < 0.20 else "  " + text if draw < 0.23 else text

    def _single(self, document: str) -> Body:
        body: Body = {"model": self._settings.model, **self._isolation()}
        if self._settings.thinks:
            body["chat_template_kwargs"] = {"enable_thinking": self._is(0.5)}
        question = prose.text(self._rng, self._rng.randint(40, 300), is_foreign=self._is(_FOREIGN))
        if self._is(0.5):
            body["messages"] = [{"role": "system", "content": document}, {"role": "user", "content": question}]
        else:
            body["messages"] = [{"role": "user", "content": f"{document}\n\n{question}"}]
        return body

    def _completion(self) -> Body:
        text = self._rng.choice(self._texts).encode()
        cut = text[: self._rng.randint(40, len(text))].decode(errors="ignore")
        return {"model": self._settings.model, "prompt": cut, "min_tokens": 4, **self._isolation()}

    def _isolation(self) -> Body:
        """Of a tenth each: a salt, an adapter."""
        body: Body = {}
        if self._is(_SALTED):
            body["cache_salt"] = f"tenant-{self._rng.randrange(4)}"
        if self._is(_ADAPTED):
            body["model"] = self._rng.choice(self._settings.adapters)
        return body

    def _sampling(self, body: Body, path: str) -> Body:
        """What differs by request and is no part of the prompt."""
        # No seed of their own: vLLM 0.32 on CPU dies of one in a prompt that is prefilled in parts (get_offset).
        sampling: Body = {"temperature": 1.0, "max_tokens": _MAX_ANSWER_TOKENS}
        if "tools" not in body:
            sampling["logit_bias"] = {str(self._settings.tool_begin): -100}
        elif self._settings.calls_once:
            sampling["parallel_tool_calls"] = False
        if self._is(_STREAMED) and path.endswith("/chat/completions"):
            sampling |= {"stream": True, "stream_options": {"include_usage": True}}
        return sampling

    def _is(self, share: float) -> bool:
        return self._rng.random() < share


def _deal(rng: random.Random, n_requests: int) -> list[str]:
    """The kinds in a random order, by their shares as exactly as whole numbers allow."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(n_requests * share // 100)]
    kinds += [NEXT] * (n_requests - len(kinds))
    rng.shuffle(kinds)
    return kinds


def _tool(rng: random.Random, name: str) -> Body:
    properties = {
        "query": {"type": "string", "description": prose.sentence(rng)},
        "limit": {"type": "integer", "description": prose.sentence(rng)},
    }
    for _ in range(rng.randint(0, 3)):
        properties[prose.made_up(rng)] = {"type": "string", "description": prose.sentence(rng)}
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    description = prose.text(rng, rng.randint(60, 250), is_foreign=False)
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _result(rng: random.Random, number: str) -> Body:
    rows = [{prose.made_up(rng): prose.sentence(rng), "n": rng.randint(0, 999)} for _ in range(rng.randint(1, 5))]
    content = json.dumps(rows, ensure_ascii=False) if rng.random() < 0.6 else prose.text(rng, 200, is_foreign=False)
    return {"role": "tool", "tool_call_id": number, "content": content}


def _edited(rng: random.Random, body: Body) -> Body:
    """The same with a few characters changed somewhere in a text."""
    edited = copy.deepcopy(body)
    if "prompt" in edited:
        edited["prompt"] = _changed(rng, edited["prompt"])
        return edited
    texts = [message for message in edited["messages"] if isinstance(message["content"], str) and message["content"]]
    if not texts:
        return body  # a repeat: there is nothing to edit in parts and calls alone
    message = rng.choices(texts, weights=[len(each["content"]) for each in texts])[0]
    message["content"] = _changed(rng, message["content"])
    return edited


def _changed(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    match rng.randrange(3):
        case 0:
            return text[:at] + prose.made_up(rng) + text[at:]
        case 1:
            return text[:at] + text[at + rng.randint(1, 12) :] or "Hello"
    return text[:at] + prose.made_up(rng) + text[at + 6 :]

"""One real request through the gateway: what `xinf up` shows as proof, and the numbers for its status line."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import httpx
import msgspec

from xinf.core.errors import EngineError, Unavailable
from xinf.core.records import KeyRecord
from xinf.meta import Records
from xinf.serve.api_key import make_key

PROMPT = "hello"
MAX_TOKENS = 48
TIMEOUT_S = 120.0
_POLL_S = 0.1
_READY_TIMEOUT_S = 30.0
_SAMPLE = re.compile(r"^(xinf_\w+)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)
_NOT_FOR_THIS_MODEL = (400, 404, 405, 501)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `path` is the route that the model answered."""

    path: str
    text: str
    took_s: float
    has_keys: bool  # whether clients need an API key


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway has done so far, over all models."""

    requests: int
    in_flight: int
    completion_tokens: int


async def try_model(url: str, model: str, records: Records, *, verify: bool) -> Trial:
    """Wait until the gateway reaches the model, then ask it something short.

    Where keys exist, one that lives for a minute is made for it and removed again.

    Raises: Unavailable when the gateway does not reach it, EngineError with the answer when it fails.
    """
    has_keys = bool(await records.list(KeyRecord))
    if not has_keys:
        return await _try(url, model, None, verify=verify)
    record, secret = make_key(now_s=time.time(), label="xinf up", models=(model,), lifetime_s=TIMEOUT_S)
    await records.create(KeyRecord, record.id, record)
    try:
        return await _try(url, model, secret, verify=verify)
    finally:
        await records.delete(KeyRecord, record.id)


async def read_numbers(url: str, *, verify: bool) -> Numbers | None:
    """Read the gateway's counters; None when it does not answer now."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=2.0, trust_env=False, verify=verify) as client:
            page = (await client.get("/metrics")).raise_for_status().text
    except httpx.HTTPError:
        return None
    totals: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        totals[name] = totals.get(name, 0.0) + float(value)
    return Numbers(
        requests=int(totals.get("xinf_requests_total", 0)),
        in_flight=int(totals.get("xinf_requests_in_flight", 0)),
        completion_tokens=int(totals.get("xinf_completion_tokens_total", 0)),
    )


async def _try(url: str, model: str, key: str | None, *, verify: bool) -> Trial:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, verify=verify
    ) as client:
        await _wait_until_reached(client, model)
        messages = [{"role": "user", "content": PROMPT}]
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"model": model, "messages": messages, "max_tokens": MAX_TOKENS},
            "/v1/completions": {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS},
            "/v1/embeddings": {"model": model, "input": PROMPT},
        }
        for path, body in bodies.items():
            since_s = time.monotonic()
            try:
                answer = await client.post(path, json=body)
            except httpx.HTTPError as error:
                raise EngineError(f"{path} gave no answer: {error!r}") from error
            if answer.status_code == 200:
                text = _text(path, answer)
                return Trial(path=path, text=text, took_s=time.monotonic() - since_s, has_keys=key is not None)
            if answer.status_code not in _NOT_FOR_THIS_MODEL:
                break
    raise EngineError(f"{model} is ready but {path} answered {answer.status_code}: {answer.text[:500]}")


async def _wait_until_reached(client: httpx.AsyncClient, model: str) -> None:
    """Ready in the store means that the engine answers; the gateway's Link to it comes a moment later."""
    last = "no answer"
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while True:
                try:
                    answer = await client.get(f"/readyz/{model}")
                except httpx.HTTPError as error:
                    last = repr(error)
                else:
                    # A key of a moment ago may still be on its way to this gateway process.
                    if answer.status_code == 200 and (await client.get("/v1/models")).status_code == 200:
                        return
                    last = answer.text[:500]
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise Unavailable(f"the gateway did not reach {model} within {_READY_TIMEOUT_S:g} s: {last}") from None


def _text(path: str, answer: httpx.Response) -> str:
    body = answer.json()
    if path == "/v1/embeddings":
        return f"a vector of {len(body['data'][0]['embedding'])} numbers"
    choice = body["choices"][0]
    if path == "/v1/completions":
        return str(choice["text"]).strip()
    message = choice["message"]
    # A reasoning model may have spent all of its few tokens on thinking.
    return str(message.get("content") or message.get("reasoning_content") or message.get("reasoning") or "").strip()

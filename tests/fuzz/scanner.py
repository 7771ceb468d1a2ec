"""Scanner and chain against orjson, the naive validator, the naive fields and the naive chain; failing allocations."""

from __future__ import annotations

import json
import random
import re
import zlib
from array import array
from typing import Any

import orjson

from tests.fuzz.bodies import random_body, valid_body
from tests.fuzz.target import expect, same
from tests.model import field_model, scan_model
from tests.model.json_model import first_error
from tests.model.requests import random_request, write
from xinf._fast import decide
from xinf._fast import scan as scan_module
from xinf._fast.scan import Scan, ScanError, scan

DEEPEST = 1024  # orjson's own limit
N_ALLOCATIONS = 8  # of the tables of a small request and its chain
PROPERTIES = (
    "model", "stream", "max_tokens", "n", "session", "cache_salt", "kind", "has_tools", "n_messages", "n_token_ids",
    "n_text_bytes", "type_error",
)  # fmt: skip


def rejected_at(body: bytes, max_depth: int) -> int | None:
    try:
        scan(body, max_depth)
    except ScanError as error:
        expect(0 <= error.offset <= len(body), "offset", error.offset, "of", len(body))
        return error.offset
    return None


def orjson_accepts(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def settings_of(body: bytes) -> random.Random:
    """Choices beside the body: a function of it, so that the body is the whole case."""
    return random.Random(zlib.crc32(body))


def minified(body: bytes) -> bytes:
    """Valid JSON without the white space between its tokens."""
    return re.sub(rb'("(?:[^"\\]|\\.)*")|[ \t\r\n]+', lambda found: found[1] or b"", body, flags=re.DOTALL)


def canonical(body: bytes) -> bytes | None:
    """The body as orjson writes it; None for what it cannot write."""
    try:
        return orjson.dumps(orjson.loads(body))
    except orjson.JSONEncodeError:  # nested deeper than it writes
        return None


def chains(found: Scan, seed: int, order: int, chunk_bytes: int) -> tuple[list[int], list[int]]:
    hashes, ends = found.chain_with_ends(seed, order, chunk_bytes)
    return array("Q", hashes).tolist(), array("I", ends).tolist()


class ScannerTarget:
    name = "scanner"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> bytes:
        return random_body(rng)

    def check(self, case: bytes) -> None:
        body = bytes(case)
        rng = settings_of(body)
        offset = rejected_at(body, DEEPEST)
        same(offset is None, orjson_accepts(body), "accepted, as orjson does")
        same(offset, first_error(body, DEEPEST), "offset of the error")
        depth = rng.randrange(1, 9)
        same(rejected_at(body, depth), first_error(body, depth), f"offset of the error with max_depth {depth}")
        if offset is not None:
            self.n_rejected += 1
            return
        self.check_fields(body, rng)
        self.check_failures(body, rng)

    def exercise(self, case: bytes) -> None:
        exercise(case)

    def check_fields(self, body: bytes, rng: random.Random) -> None:
        found = scan(body, DEEPEST)
        for name in ("n_messages", "n_token_ids", "n_text_bytes"):
            expect(getattr(found, name) >= 0, name)
        seed, order, chunk_bytes = rng.randrange(2**64), rng.randrange(3), rng.choice([16, 48, 64, 4096])
        chain, ends = chains(found, seed, order, chunk_bytes)
        expect(len(chain) == len(ends) and ends == sorted(ends), "ends", ends)
        if body.count(b"[") + body.count(b"{") > 500:  # the models recurse
            return
        request = field_model.parse(body)
        for name, value in field_model.fields_of(request).items():
            same(getattr(found, name), value, name)
        if field_model.has_duplicate_keys(body):
            return
        same(found.type_error, field_model.type_error_of(request), "type_error")
        plain = canonical(body)
        if plain is None:
            return
        again = scan(plain, DEEPEST)
        if again.type_error is not None or not is_modelled(orjson.loads(plain)):
            return
        expected = scan_model.chain_of(plain, seed, order, chunk_bytes)
        same(chains(again, seed, order, chunk_bytes), expected, "chain of the canonical body")
        for name, value in field_model.counts_of(orjson.loads(plain)).items():
            same(getattr(again, name), value, name)
        if minified(body) == plain:
            same((chain, ends), expected, "chain of the body as written")

    def check_failures(self, body: bytes, rng: random.Random) -> None:
        """An allocation that fails raises MemoryError or does no harm."""
        expected = scan(body, DEEPEST).chain(1)
        scan_module._fail_allocation(rng.randrange(1, N_ALLOCATIONS))
        try:
            got = scan(body, DEEPEST).chain(1)
        except MemoryError:
            got = expected
        finally:
            scan_module._fail_allocation(0)
        same(got, expected, "chain while an allocation failed")
        same(scan(body, DEEPEST).chain(1), expected, "chain after an allocation failed")


def exercise(case: bytes) -> None:
    """Everything that a scan can be asked, with and without allocations that fail."""
    body = bytes(case)
    for failing in range(N_ALLOCATIONS + 1):
        scan_module._fail_allocation(failing)
        try:
            found = scan(body, DEEPEST)
            for name in PROPERTIES:
                getattr(found, name)
            for order in range(3):
                found.chain_with_ends(1, order)
                decide._marks(found, seed=1, order=order, chunk_bytes=16)
        except (ScanError, MemoryError):
            continue
        finally:
            scan_module._fail_allocation(0)


def is_modelled(request: dict[str, Any]) -> bool:
    """The naive chain knows the chat's messages and prompts, not the items of the Responses API."""
    return not field_model.is_dialogue(request.get("input"))


class ChainTarget:
    """Whole requests only: the chain in all cuts and orders, and that it does not depend on the spelling of texts."""

    name = "chain"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> bytes:
        return write(random_request(rng), rng) if rng.random() < 0.7 else valid_body(rng)

    def check(self, case: bytes) -> None:
        body = bytes(case)
        if not orjson_accepts(body):
            self.n_rejected += 1
            return
        plain = canonical(body)
        found = scan(plain, DEEPEST) if plain is not None else None
        if found is None or plain is None or found.type_error is not None or not is_modelled(orjson.loads(plain)):
            return
        rng = settings_of(body)
        for order in range(3):
            seed, chunk_bytes = rng.randrange(2**64), rng.choice([16, 17, 64, 100, 4095, 4096])
            expected = scan_model.chain_of(plain, seed, order, chunk_bytes)
            same(chains(found, seed, order, chunk_bytes), expected, f"chain, order {order}, chunks of {chunk_bytes}")
            hashes, ends = decide._marks(found, seed=seed, order=order, chunk_bytes=chunk_bytes)
            marks = array("Q", hashes).tolist(), array("I", ends).tolist()
            same(marks, scan_model.marks_of(plain, seed, order, chunk_bytes), "marks")
        request = orjson.loads(plain)
        texts = {"messages": [{"role": "user", "content": text} for text in strings_of(request)]}
        escaped = json.dumps(texts, ensure_ascii=True).encode().replace(b"/", b"\\/")
        same(chains(scan(escaped), 1, 0, 64), chains(scan(orjson.dumps(texts)), 1, 0, 64), "chain of escaped texts")

    def exercise(self, case: bytes) -> None:
        exercise(case)


def strings_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings_of(item)]
    return [text for item in value for text in strings_of(item)] if isinstance(value, list) else []

"""Binding chunks to tokens against the naive aligner: prompts that fit their bodies or not; failing allocations."""

from __future__ import annotations

import random
from array import array

import orjson

from tests.fast.renderings import RENDERINGS, random_chat, random_pieces
from tests.fuzz.scanner import DEEPEST, canonical, is_modelled, settings_of
from tests.fuzz.target import expect, same
from tests.model import bind_model
from tests.model.requests import random_request, write
from xinf._fast import bind as bind_module
from xinf._fast import scan as scan_module
from xinf._fast.bind import Aligner
from xinf._fast.scan import Scan, ScanError, scan

N_ALLOCATIONS = 14
MAX_MODELLED_BYTES = 6000  # the naive one is quadratic
HEADERS: list[dict[bytes, bytes]] = [
    *(rendering.headers for rendering in RENDERINGS),
    {},
    {b"user": b"a", b"tool": b'"'},
]


class BindTarget:
    """A case is a body, a NUL, and the prompt that is said to be made of it."""

    name = "bind"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> bytes:
        rendering = rng.choice(RENDERINGS)
        request = random_chat(rng)
        text = rendering.text(request)
        pick = rng.random()
        if pick < 0.5:
            text = changed(text, rng)
        elif pick < 0.7:
            request = random_request(rng)
            text = orjson.dumps(request) if rng.random() < 0.5 else text
        return write(request, rng) + b"\0" + text

    def check(self, case: bytes) -> None:
        body, _, text = bytes(case).partition(b"\0")
        try:
            found = scan(body, DEEPEST)
        except ScanError:
            self.n_rejected += 1
            return
        rng = settings_of(body)
        how = {"seed": rng.randrange(2**64), "order": rng.randrange(3), "chunk_bytes": rng.choice([16, 32, 64, 4096])}
        pieces, headers = random_pieces(rng, text), rng.choice(HEADERS)
        ids = {piece: number for number, piece in enumerate(dict.fromkeys(piece for piece in pieces if piece))}
        tokens = array("I", [ids.get(piece, 2**32 - 1) for piece in pieces])
        aligner = Aligner(list(ids), headers=headers)
        got = bound(aligner, found, tokens, how)
        positions = array("I", got[1]).tolist()
        expect(positions == sorted(positions) and max(positions, default=0) <= len(pieces), "positions", positions)
        expect(got[0] in (b"", found.chain(how["seed"], how["order"], how["chunk_bytes"])), "another chain")
        same(bound(aligner, found, tokens, how), got, "bound again")
        self.check_failures(aligner, found, tokens, how)
        plain = canonical(body)
        if plain is None or len(body) + len(text) > MAX_MODELLED_BYTES or found.type_error is not None:
            return
        if scan(plain, DEEPEST).type_error is not None or not is_modelled(orjson.loads(plain)):
            return
        again = bound(aligner, scan(plain, DEEPEST), tokens, how)
        chain, expected, n_found, n_gaps = bind_model.bound(
            plain, pieces, headers=headers, tokens=tokens.tolist(), **how
        )
        same((array("Q", again[0]).tolist(), array("I", again[1]).tolist()), (chain, expected), "chain and positions")
        same(again[2:], (n_found, n_gaps), "contents found and not")

    def check_failures(self, aligner: Aligner, found: Scan, tokens: array[int], how: dict[str, int]) -> None:
        """A fresh Aligner whose allocations fail raises MemoryError, and afterwards does what another does."""
        expected = bound(Aligner([b"a"]), found, tokens, how)
        for failing in range(1, N_ALLOCATIONS):
            fresh: Aligner | None = None
            for module in (bind_module, scan_module):
                module._fail_allocation(failing)
            try:
                fresh = Aligner([b"a"])
                got = bound(fresh, found, tokens, how)
            except MemoryError:
                got = expected
            finally:
                for module in (bind_module, scan_module):
                    module._fail_allocation(0)
            same(got, expected, "bound while an allocation failed")
            if fresh is not None:
                same(bound(fresh, found, tokens, how), expected, "bound after an allocation failed")

    def exercise(self, case: bytes) -> None:
        body, _, text = bytes(case).partition(b"\0")
        try:
            found = scan(body, DEEPEST)
        except ScanError:
            return
        tokens = array("I", list(text))
        aligner = Aligner([bytes([value]) for value in range(256)], headers=HEADERS[0])
        for order in range(3):
            bound(aligner, found, tokens, {"seed": 1, "order": order, "chunk_bytes": 16})
        self.check_failures(aligner, found, tokens, {"seed": 1, "order": 0, "chunk_bytes": 16})


def bound(aligner: Aligner, found: Scan, tokens: array[int], how: dict[str, int]) -> tuple[bytes, bytes, int, int]:
    out = aligner.bind(found, tokens, seed=how["seed"], order=how["order"], chunk_bytes=how["chunk_bytes"])
    return out.chain, out.positions, out.n_found, out.n_gaps


def changed(text: bytes, rng: random.Random) -> bytes:
    """The text with pieces of it cut out, repeated, moved or overwritten."""
    for _ in range(rng.randrange(1, 6)):
        at, width = rng.randrange(len(text) + 1), rng.randrange(1, 40)
        piece = rng.choice(
            [b"", text[at : at + width] * 2, b"\\", b'"', b"{", b"\\u00e9", b"\\ud83d", rng.randbytes(3)]
        )
        to = rng.randrange(len(text) + 1) if rng.random() < 0.2 else at
        text = text[:at] + text[at + width :] if to != at else text
        text = text[:to] + piece + text[to + (width if rng.random() < 0.5 else 0) :]
    return text.replace(b"\0", b" ")

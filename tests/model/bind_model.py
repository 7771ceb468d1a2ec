"""The Aligner, naively: lists and bytes.find instead of buffers and one pass; no limit on the work.

The rules are those that xinf/_fast/bind.pyx describes; the walks go byte by byte and remember every pair of places.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import orjson

from tests.model.scan_model import EXTRA, INSTRUCTIONS, PAYLOAD, PROMPT, ROLE, TEXT, TOKENS, TOOLS, TOOLS_MARK, built

LONG, PREFIX, RESYNC, RESYNC_AFAR, LOST, VALUE, MARK, HEADER, WINDOW, FINAL = 24, 32, 12, 48, 64, 8, 64, 16, 8192, 512
SPACE = b" \t\n\v\f\r"
ESCAPE = re.compile(
    rb'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})'
)

Pairs = list[tuple[int, int]]  # places in the canonical and in the rendered text up to which both are the same


def escape_at(text: bytes, at: int, end: int) -> tuple[bytes, int] | None:
    """What the escape at `at` means, and where it ends."""
    found = ESCAPE.match(text, at, end)
    return (json.loads(b'"' + found[0] + b'"').encode(), found.end()) if found else None


def walk(text: bytes, i: int, i_end: int, rendered: bytes, r: int, r_end: int, escapes: str) -> tuple[Pairs, bool]:
    """Side by side; `escapes`: "both" (JSON), "text" or "rendered", where they are. The last pair: how far it went."""
    pairs, is_string = [(i, r)], escapes != "both"
    while i < i_end and r < r_end:
        if not is_string:
            if rendered[r] in SPACE:
                r += 1
                continue
            if text[i] != rendered[r]:
                break
            is_string = text[i] == ord('"')
            i, r = i + 1, r + 1
        else:
            of_text = escape_at(text, i, i_end) if escapes != "rendered" else None
            of_rendered = escape_at(rendered, r, r_end) if escapes != "text" else None
            raw_text, raw_rendered = text[i : i + 1], rendered[r : r + 1]
            if escapes == "both" and b"\\" in (raw_text, raw_rendered):
                if raw_text == raw_rendered and (of_text is None or of_rendered is None):
                    break
                if b'"' in (raw_text, raw_rendered):
                    break
            if escapes == "rendered" and raw_rendered == b'"':
                break
            if (raw_text == b"\\" and escapes != "rendered" and of_text is None) or (
                raw_rendered == b"\\" and escapes != "text" and of_rendered is None
            ):
                break
            n = len((of_text or of_rendered or (b"x", 0))[0])
            meant_text, next_i = of_text or (text[i : min(i + n, i_end)], i + n)
            meant_rendered, next_r = of_rendered or (rendered[r : min(r + n, r_end)], r + n)
            if meant_text != meant_rendered:
                break
            is_string = not (escapes == "both" and raw_text == raw_rendered == b'"')
            i, r = next_i, next_r
        pairs.append((i, r))
    return pairs, is_string


@dataclass
class Place:
    start: int
    end: int
    skip: int = 0  # bytes of the text that are trimmed in front
    is_whole: bool = True
    pairs: Pairs | None = None  # as a JSON string


@dataclass
class Binding:
    chunks: list[tuple[int, bytes]]
    counts: list[int]  # bytes that each chunk counts as
    rendered: bytes
    headers: dict[bytes, bytes]
    has_answer_header: bool
    stops: list[int | None] = field(init=False)
    begins: list[int | None] = field(init=False)
    caps: set[int] = field(default_factory=set)
    cursor: int = 0
    pending: int = 0
    role_at: int = 0

    def __post_init__(self) -> None:
        self.stops = [None] * len(self.chunks)
        self.begins = [None] * len(self.chunks)

    # ---- chunks

    def run(self, k: int, limit: int) -> range:
        kind = TEXT if self.chunks[k][0] == INSTRUCTIONS else self.chunks[k][0]
        end = k + 1
        while end < limit and self.chunks[end][0] == kind:
            end += 1
        return range(k, end)

    def text(self, run: range) -> bytes:
        return b"".join(self.chunks[k][1] for k in run)

    def offsets(self, run: range) -> list[int]:
        """Where each chunk ends, from the start of the run."""
        return [len(self.text(range(run.start, k + 1))) for k in run]

    def window(self, run: range) -> int:
        if any(kind == PAYLOAD for kind, _ in self.chunks[self.pending : run.start]):
            return len(self.rendered)
        waiting = len(self.text(range(self.pending, run.stop)))
        return min(len(self.rendered), self.cursor + WINDOW + 4 * waiting)

    def mark(self, k: int, at: int) -> None:
        self.begins[k] = at
        self.caps.add(k)

    # ---- texts

    def widened(self, text: bytes, at: int, lo: int, hi: int) -> Place:
        """The place of a text whose body stands at `at`, with what is there of the white space around it."""
        lead = len(text) - len(text.lstrip(SPACE))
        tail = text[len(text.rstrip(SPACE)) :]
        kept = next(
            n for n in range(lead, -1, -1) if at - n >= lo and self.rendered[at - n : at] == text[lead - n : lead]
        )
        end = at + len(text.strip(SPACE))
        end += next(n for n in range(len(tail), -1, -1) if self.rendered[end : min(end + n, hi)] == tail[:n])
        return Place(at - kept, end, lead - kept)

    def match_at(self, text: bytes, at: int) -> Place | None:
        body, lead = text.strip(SPACE), len(text) - len(text.lstrip(SPACE))
        if not body:
            return Place(at, at + common(text, self.rendered[at:]))
        start = at
        while start < len(self.rendered) and start - at < lead and self.rendered[start] in SPACE:
            start += 1
        if self.rendered.startswith(body, start):
            return self.widened(text, start, at, len(self.rendered))
        same = common(body, self.rendered[start:])
        return Place(start, start + same, lead, is_whole=False) if same >= PREFIX else None

    def find_text(self, text: bytes, lo: int, hi: int) -> Place | None:
        body, lead = text.strip(SPACE), len(text) - len(text.lstrip(SPACE))
        if not body:
            return None
        at = self.rendered.find(body, lo, hi)
        if at >= 0:
            return self.widened(text, at, lo, hi)
        at = self.rendered.find(body[:PREFIX], lo, hi)
        return Place(at, at + common(body, self.rendered[at:hi]), lead, is_whole=False) if at >= 0 else None

    def string_at(self, text: bytes, at: int, hi: int) -> Place | None:
        if self.rendered[at : at + 1] != b'"' or at >= hi:
            return None
        pairs, _ = walk(text, 0, len(text), self.rendered, at + 1, hi, "rendered")
        i, r = pairs[-1]
        return Place(at, r + 1, pairs=pairs) if i == len(text) and self.rendered[r:hi][:1] == b'"' else None

    def find_string(self, text: bytes, lo: int, hi: int) -> Place | None:
        places = (self.string_at(text, at, hi) for at in range(lo, hi) if self.rendered[at] == ord('"'))
        return next((place for place in places if place), None)

    def put(self, run: range, place: Place) -> int:
        """Gives the first chunk that has no place."""
        self.mark(run.start, place.start)
        for k, offset in zip(run, self.offsets(run), strict=True):
            if place.pairs is not None:
                self.stops[k] = mapped(place.pairs, offset)
            elif place.is_whole or offset <= place.skip + place.end - place.start:
                self.stops[k] = min(place.start + max(offset - place.skip, 0), place.end)
            else:
                return k
        return run.stop

    # ---- anchors

    def align(self) -> None:
        n = len(self.chunks) - self.has_answer_header
        k = 0
        while k < n:
            kind = self.chunks[k][0]
            if kind == ROLE and k + 1 < n and self.chunks[k + 1][0] == TEXT:
                run = self.run(k + 1, n)
                self.anchor_message(k, run)
                k = run.stop
            elif kind in (TEXT, INSTRUCTIONS):
                run = self.run(k, n)
                self.anchor_text(run)
                k = run.stop
            else:
                k += 1
        limit = len(self.rendered)
        if self.has_answer_header:
            limit = self.final_header(n)
        self.settle(n, limit)
        if self.has_answer_header:
            self.stops[n] = len(self.rendered)

    def go_on(self, run: range, place: Place) -> None:
        self.pending = self.put(run, place)
        self.cursor = place.end

    def adjacent(self, header: bytes, run: range) -> tuple[int, Place] | None:
        text, at, hi = self.text(run), self.cursor, self.window(run)
        n_roles = sum(kind == ROLE for kind, _ in self.chunks[self.pending : run.start - 1])
        for attempt in range(n_roles + 2):
            at = self.rendered.find(header, at, hi)
            if at < 0:
                return None
            behind = at + len(header)
            place = self.match_at(text, behind)
            if place and (place.is_whole or attempt == 0):
                return at, place
            place = self.string_at(text, behind, len(self.rendered))
            if place:
                return at, place
            at += 1
        return None

    def anchor_message(self, role: int, run: range) -> None:
        header = self.headers.get(self.chunks[role][1])
        found = self.adjacent(header, run) if header and self.text(run).strip(SPACE) else None
        if found:
            at, place = found
            self.settle(role, at)
            self.mark(role, at)
            self.stops[role] = self.role_at = place.start
            self.go_on(run, place)
            return
        if len(self.text(run)) < LONG:
            return
        place_found = self.find_text(self.text(run), self.cursor, self.window(run))
        if place_found:
            self.settle(run.start, place_found.start)
            if self.stops[role] is None:
                self.stops[role] = self.role_at = place_found.start
            self.go_on(run, place_found)

    def anchor_text(self, run: range) -> None:
        text = self.text(run)
        place = self.match_at(text, self.cursor) if self.pending == run.start else None
        if place is None or not place.is_whole:
            place = self.find_text(text, self.cursor, self.window(run)) if len(text) >= LONG else None
        if place:
            self.settle(run.start, place.start)
            self.go_on(run, place)

    def final_header(self, k: int) -> int:
        header = self.headers.get(self.chunks[k][1])
        end = len(self.rendered)
        if not header:
            return end
        at = end - len(header) if self.rendered[self.cursor :].endswith(header) else -1
        if at < 0:
            at = self.rendered.rfind(header, max(self.cursor, end - FINAL))
        if at < 0:
            return end
        self.mark(k, at)
        return at

    # ---- between anchors

    def settle(self, k_end: int, hi: int) -> None:
        at, k = self.cursor, self.pending
        while k < k_end:
            kind = self.chunks[k][0]
            run = self.run(k, k_end) if kind in (TEXT, INSTRUCTIONS, EXTRA) else range(k, k + 1)
            if kind == ROLE and k + 1 < k_end and self.chunks[k + 1][0] == TEXT:
                run = range(k, self.run(k + 1, k_end).stop)
                at = self.settle_message(k, range(k + 1, run.stop), at, hi)
            elif kind == ROLE:
                at = self.settle_role(k, at, hi)
            elif kind in (TEXT, INSTRUCTIONS):
                at = self.settle_text(run, at, hi)
            elif kind == TOOLS_MARK and k + 1 < k_end and self.chunks[k + 1][0] == TOOLS:
                run = range(k, self.run(k + 1, k_end).stop)
                at = self.settle_tools(k, range(k + 1, run.stop), at, hi)
            elif kind == EXTRA:
                at = self.settle_extras(run, at, hi)
            k = run.stop
        self.pending = k_end

    def settle_role(self, k: int, at: int, hi: int) -> int:
        header = self.headers.get(self.chunks[k][1])
        found = self.rendered.find(header, at, hi) if header else -1
        self.role_at = at
        if header and found >= 0:
            self.begins[k] = found
            self.stops[k] = self.role_at = at = found + len(header)
        return at

    def settle_message(self, role: int, run: range, at: int, hi: int) -> int:
        lo = self.role_at = at
        if self.text(run).strip(SPACE):
            at = self.settle_text(run, at, hi)
            begin = self.begins[run.start]
            if begin is not None and begin >= lo:
                self.settle_role(role, lo, begin)
                if self.stops[role] is None:
                    self.stops[role] = self.role_at = begin
                return at
            return self.settle_role(role, at, hi)
        return self.settle_text(run, self.settle_role(role, at, hi), hi)

    def settle_text(self, run: range, at: int, hi: int) -> int:
        text = self.text(run)
        if not text.strip(SPACE):
            place = Place(at, min(hi, at + common(text, self.rendered[at:])))
            self.put(run, place)
            return place.end
        found = self.find_text(text, at, hi)
        if found is None or not found.is_whole:
            found = self.find_string(text, at, hi)
        if found:
            self.put(run, found)
            return found.end
        before = self.find_text(text, 0, self.cursor) if len(text) >= LONG else None
        if before and before.is_whole:
            self.put(run, before)
        return at

    def settle_tools(self, mark: int, run: range, at: int, hi: int) -> int:
        end, first = self.place_json(run, 0, len(self.text(run)), at, hi, RESYNC)
        if first is None:
            _, first = self.place_json(run, 0, len(self.text(run)), 0, self.cursor, RESYNC_AFAR)
        if first and first[0] <= MARK:
            self.stops[mark] = first[1]
        return end

    def place_json(
        self, run: range, i: int, i_end: int, r: int, hi: int, least: int
    ) -> tuple[int, tuple[int, int] | None]:
        """Where the last object that was found ends, and the places of the first."""
        text, offsets = self.text(run), self.offsets(run)
        first: tuple[int, int] | None = None
        is_string, n_lost, done = False, 0, 0  # done: chunks that were passed
        while i < i_end:
            brace, is_plain = next_brace(text, i, i_end, is_string)
            if brace == i_end:
                if is_plain and first:
                    for k in range(done, len(run)):
                        self.stops[run[k]] = r
                break
            at = self.find_object(text, brace, i_end, r, hi, least)
            while done < len(run) and offsets[done] <= brace:
                if is_plain and first:
                    self.stops[run[done]] = r
                done += 1
            i, is_string = brace + 1, False
            if at < 0:
                n_lost += 1
                if n_lost > LOST:
                    break
                continue
            if first is None:
                first = brace, at
                self.mark(run[done], at)
            pairs, is_string = walk(text, brace, i_end, self.rendered, at, hi, "both")
            i, r = pairs[-1]
            r = skipped(self.rendered, r, hi) if not is_string and i < i_end else r
            while done < len(run) and offsets[done] <= i:
                self.stops[run[done]] = mapped(pairs, offsets[done])
                done += 1
        return r, first

    def find_object(self, text: bytes, i: int, i_end: int, lo: int, hi: int, least: int) -> int:
        for at in range(lo, hi):
            if self.rendered[at] == ord("{"):
                to = min(i + least + 12, i_end)
                reached = walk(text, i, to, self.rendered, at, hi, "both")[0][-1][0]
                if reached == to or reached >= i + least:
                    return at
        return -1

    def settle_extras(self, run: range, at: int, hi: int) -> int:
        """Fields are told apart by being parsed, one by one."""
        begin = run.start
        while begin < run.stop:
            ends = [k for k in range(begin, run.stop) if is_member(self.text(range(begin, k + 1)))]
            member = range(begin, ends[0] + 1)
            text = self.text(member)
            key = re.match(rb'"(?:[^"\\]|\\.)*":', text)
            assert key
            if text[key.end() : key.end() + 1] == b'"':
                at = self.settle_value(member, key.end() + 1, len(text) - 1, at, hi)
            elif text[key.end() : key.end() + 1] in (b"{", b"["):
                at, _ = self.place_json(member, key.end(), len(text), at, hi, RESYNC)
            begin = member.stop
        return at

    def settle_value(self, run: range, i: int, i_end: int, at: int, hi: int) -> int:
        text = self.text(run)
        if i_end - i < VALUE:
            return at
        spaces = re.compile(rb"(?:[ \t\n\v\f\r]|\\[ntrf]|\\u00(?:0[9a-dA-D]|20))*")
        skip = spaces.match(text, i, i_end)
        assert skip
        i = skip.end()
        if len(prefix_of(text, i, i_end)) < VALUE:
            return at
        for lo, to in ((at, hi), (self.role_at, at)):
            for start in range(lo, to):
                if not self.rendered.startswith(prefix_of(text, i, i_end), start, to):
                    continue
                pairs, _ = walk(text, i, i_end, self.rendered, start, to, "text")
                reached, r = pairs[-1]
                rest = spaces.match(text, reached, i_end)
                if rest and rest.end() == i_end:
                    self.mark(run.start, start)
                    for k, offset in zip(run, self.offsets(run), strict=True):
                        if offset > i:
                            self.stops[k] = mapped(pairs, offset) if offset <= reached else r
                    return r if lo == at and to == hi else at
        return at

    # ---- the whole

    def count(self) -> tuple[int, int]:
        n_found = n_gaps = k = 0
        while k < len(self.chunks):
            run = range(k, k + 1)
            if self.chunks[k][0] in (TEXT, INSTRUCTIONS, TOOLS, EXTRA):
                run = self.run(k, len(self.chunks))
                is_found = all(self.stops[i] is not None for i in run)
                n_found, n_gaps = n_found + is_found, n_gaps + (not is_found)
            k = run.stop
        return n_found, n_gaps

    def filled(self, may_interpolate: bool) -> list[int]:
        """Where each chunk ends, nothing behind what comes after it."""
        n = len(self.chunks)
        later = [min([len(self.rendered)] + [self.begins[i] or 0 for i in self.caps if i > k]) for k in range(n)]
        stops = [None if stop is None else min(stop, cap) for stop, cap in zip(self.stops, later, strict=True)]
        begins = [None if begin is None else min(begin, cap) for begin, cap in zip(self.begins, later, strict=True)]
        out: list[int] = []
        for k in range(n):
            known = stops[k]
            low = out[-1] if out else 0
            if known is not None:
                out.append(max(low, known))
                continue
            start = max((i + 1 for i in range(k) if stops[i] is not None), default=0)
            end = next((i for i in range(k, n) if stops[i] is not None), None)
            base = out[start - 1] if start else 0
            if end is None or not may_interpolate:
                out.append(low)
                continue
            begin, stop = begins[end], stops[end]
            assert stop is not None
            high = stop if begin is None else begin
            total = sum(self.weight(i) for i in range(start, end + (begin is None)))
            last = max((i for i in range(start, k + 1) if self.chunks[i][0] not in (ROLE, EXTRA)), default=start - 1)
            passed = sum(self.weight(i) for i in range(start, last + 1))
            out.append(base + (max(0, high - base) * passed // total if total else 0))
        return out

    def weight(self, k: int) -> int:
        kind, data = self.chunks[k]
        return self.counts[k] if kind == PAYLOAD else len(data) + (HEADER if kind == ROLE else 0)


def common(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def mapped(pairs: Pairs, i: int) -> int:
    """Where place i of the canonical text is in the rendered one; in front of what it is in the middle of."""
    reached = max(place for place, _ in pairs if place <= i)
    return next(r for place, r in pairs if place == reached)


def skipped(rendered: bytes, r: int, hi: int) -> int:
    while r < hi and rendered[r] in SPACE:
        r += 1
    return r


def next_brace(text: bytes, i: int, i_end: int, is_string: bool) -> tuple[int, bool]:
    is_plain = not is_string
    while i < i_end:
        c = text[i : i + 1]
        if is_string:
            i += c == b"\\"
            is_string = c != b'"'
        elif c == b"{":
            return i, is_plain
        else:
            is_string = c == b'"'
            is_plain = is_plain and c in (b"[", b"]", b"}", b",")
        i += 1
    return i_end, is_plain


def prefix_of(text: bytes, i: int, i_end: int) -> bytes:
    prefix = b""
    while i < i_end and len(prefix) < PREFIX:
        meant, i = escape_at(text, i, i_end) or (text[i : i + 1], i + 1)
        prefix += meant
    return prefix


def is_member(text: bytes) -> bool:
    try:
        orjson.loads(b"{" + text + b"}")
    except orjson.JSONDecodeError:
        return False
    return True


def bound(
    body: bytes,
    pieces: list[bytes],
    *,
    seed: int,
    order: int,
    chunk_bytes: int,
    headers: dict[bytes, bytes],
    tokens: list[int] | None = None,
) -> tuple[list[int], list[int], int, int]:
    """Chain, positions, n_found and n_gaps. `pieces`: the text of each token; `tokens`: their ids."""
    request = orjson.loads(body)
    chain = built(body, seed, order, chunk_bytes)
    kinds = [kind for kind, _ in chain.chunks]
    if not kinds or PROMPT in kinds or request.get("truncate_prompt_tokens") is not None:
        return [], [], 0, 0
    if kinds[0] == TOKENS:
        ids = b"".join(data for _, data in chain.chunks)
        same = common(ids, b"".join(token.to_bytes(4, "little") for token in tokens or [])) // 4
        positions = [min(end // 4, same) for end in chain.ends]
        return chain.hashes, positions, int(same * 4 == len(ids)), int(same * 4 != len(ids))
    counts = [end - start for start, end in zip([0, *chain.ends], chain.ends, strict=False)]
    messages = request.get("messages")
    has_header = isinstance(messages, list) and len(chain.roles) > len(messages)
    binding = Binding(chain.chunks, counts, b"".join(pieces), headers, has_header)
    binding.align()
    n_found, n_gaps = binding.count()
    stops = binding.filled(n_found > 0)
    positions = [tokens_within(pieces, stop) for stop in stops]
    if has_header:
        positions[-1] = len(pieces)
    return chain.hashes, positions, n_found, n_gaps


def tokens_within(pieces: list[bytes], stop: int) -> int:
    """Whole tokens up to `stop`, without those at the end that have no text."""
    count = end = 0
    for number, piece in enumerate(pieces, 1):
        end += len(piece)
        if end > stop:
            break
        count = number if piece else count
    return count

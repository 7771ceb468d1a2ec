"""The Aligner against the naive one, and against what it is for: equal chains up to a chunk mean equal tokens."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.fast.renderings import (
    RENDERINGS,
    Rendering,
    greedy_pieces,
    random_chat,
    random_pieces,
    random_text,
    related_chat,
)  # fmt: skip
from tests.model import bind_model
from tests.model.bind_model import common
from tests.model.requests import random_request
from xinf._fast import bind as bind_module
from xinf._fast import scan as scan_module
from xinf._fast.bind import Aligner, Bound
from xinf._fast.scan import scan

BYTES = [bytes([value]) for value in range(256)]
NO_HEADERS: dict[bytes, bytes] = {}
CHATML = RENDERINGS[0]


def u32(values: list[int]) -> array[int]:
    return array("I", values)


def numbers(data: bytes, code: str = "I") -> list[int]:
    return array(code, data).tolist()


def bound_pieces(body: bytes, pieces: list[bytes], headers: dict[bytes, bytes], **how: int) -> Bound:
    """Bind with a vocabulary of the pieces themselves; those without a text get an id that there is not."""
    ids = {piece: number for number, piece in enumerate(sorted({piece for piece in pieces if piece}))}
    aligner = Aligner(list(ids), headers=headers)
    tokens = [ids[piece] if piece else len(ids) + 7 for piece in pieces]
    return aligner.bind(scan(body), u32(tokens), **how)


def agree(
    body: bytes, pieces: list[bytes], headers: dict[bytes, bytes], *, seed: int, order: int, chunk_bytes: int
) -> None:
    """Compare with the naive one."""
    how = {"seed": seed, "order": order, "chunk_bytes": chunk_bytes}
    bound = bound_pieces(body, pieces, headers, **how)
    chain, positions, n_found, n_gaps = bind_model.bound(
        body, pieces, seed=seed, order=order, chunk_bytes=chunk_bytes, headers=headers, tokens=[]
    )
    assert numbers(bound.chain, "Q") == chain
    assert numbers(bound.positions) == positions
    assert (bound.n_found, bound.n_gaps) == (n_found, n_gaps)
    assert positions == sorted(positions)
    assert not positions or positions[-1] <= len(pieces)


@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda one: one.name)
@pytest.mark.parametrize("seed", range(60))
def test_aligner_agrees_with_the_naive_one(seed: int, rendering: Rendering) -> None:
    print("seed", seed)
    rng = random.Random(f"{seed}{rendering.name}")
    request = random_chat(rng)
    pieces = random_pieces(rng, rendering.text(request))
    headers = rng.choice([rendering.headers, rendering.headers, NO_HEADERS])
    order = rng.choice([rendering.order, rendering.order, 0, 1, 2])
    agree(orjson.dumps(request), pieces, headers, seed=seed, order=order, chunk_bytes=rng.choice([16, 32, 64, 100]))


@pytest.mark.parametrize("seed", range(120))
def test_aligner_agrees_with_the_naive_one_on_texts_that_do_not_belong_together(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    rendering = rng.choice(RENDERINGS)
    request = random_chat(rng) if rng.random() < 0.5 else random_request(rng)
    if isinstance(request.get("messages"), list):
        request.pop("input", None)
    ids = [rng.randrange(2**20) for _ in range(rng.randrange(30))]
    other = rng.choice([
        rendering.text(random_chat(rng)), rng.randbytes(rng.randrange(400)), b"", orjson.dumps(request),
        b"".join(rendering.headers.values()) * rng.randrange(8), orjson.dumps(orjson.dumps(request).decode()),
    ])  # fmt: skip
    request["prompt" if seed % 5 == 0 else "unknown"] = ids
    agree(orjson.dumps(request), random_pieces(rng, other), rendering.headers, seed=1, order=seed % 3, chunk_bytes=32)


# ---- what it is for -------------------------------------------------------------------------------------------------


def shared_chunks(one: Bound, other: Bound) -> int:
    return common(one.chain, other.chain) // 8


@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda one: one.name)
def test_chats_that_share_a_chain_share_as_many_bytes_as_it_is_bound_to(rendering: Rendering) -> None:
    """With a token per byte the bound is exact or short, never long, unless the template rewrote something."""
    aligner = Aligner(BYTES, headers=rendering.headers)
    short: Counter[str] = Counter()
    for seed in range(400):
        rng = random.Random(seed)
        request = random_chat(rng)
        texts, bounds = [], []
        for one in (request, related_chat(rng, request)):
            text = rendering.text(one)
            texts.append(text)
            bounds.append(
                aligner.bind(scan(orjson.dumps(one)), u32(list(text)), seed=7, order=rendering.order, chunk_bytes=32)
            )
        k = shared_chunks(*bounds)
        alike = common(*texts)
        for bound, other in zip(bounds, reversed(texts), strict=True):
            # What is held of a prompt is looked up for another one, and counts up to that one's end.
            position = min(numbers(bound.positions)[k - 1] if k else 0, len(other))
            is_long = position > alike
            assert not is_long or bound.n_gaps, f"seed {seed}: {position} bytes bound, {alike} are the same"
            short["long" if is_long else "within a chunk" if alike - position <= 32 + 40 else "shorter"] += 1
    print(dict(short))
    assert short["long"] <= 0.02 * 800
    assert short["within a chunk"] >= 0.85 * 800


def vocabulary() -> frozenset[bytes]:
    """Pieces that are frequent in such texts, and the literals of special tokens."""
    rng = random.Random(5)
    text = "".join(random_text(rng) for _ in range(300)).encode()
    found = Counter(text[at : at + n] for n in range(2, 7) for at in range(0, len(text) - n, 3))
    special = (
        b"<|im_start|>",
        b"<|im_end|>",
        b"<|start_header_id|>",
        b"<|end_header_id|>",
        b"<|eot_id|>",
        b"[INST] ",
        b"[/INST]",
        b"</s>",
    )
    return frozenset([*(piece for piece, _ in found.most_common(1500)), *special, *BYTES])


@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda one: one.name)
def test_chats_that_share_a_chain_share_as_many_tokens_but_for_one_cut_short(rendering: Rendering) -> None:
    """With tokens that are a function of the text: what comes behind a chunk may change the token in front of it."""
    words = sorted(vocabulary())
    ids = {piece: number for number, piece in enumerate(words)}
    aligner = Aligner(words, headers=rendering.headers)
    over: Counter[int] = Counter()
    for seed in range(300):
        rng = random.Random(seed)
        request = random_chat(rng)
        tokens, bounds = [], []
        for one in (request, related_chat(rng, request)):
            tokens.append([ids[piece] for piece in greedy_pieces(rendering.text(one), frozenset(words))])
            bounds.append(
                aligner.bind(scan(orjson.dumps(one)), u32(tokens[-1]), seed=7, order=rendering.order, chunk_bytes=64)
            )
        k = shared_chunks(*bounds)
        alike = next((i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b), min(map(len, tokens)))
        if k and not bounds[0].n_gaps:
            over[max(0, min(numbers(bounds[0].positions)[k - 1], len(tokens[1])) - alike)] += 1
    print(dict(over))
    assert sum(over.values()) > 100
    assert max(over) <= 2
    assert over[0] >= 0.85 * sum(over.values())


def last_bytes(
    request: dict[str, Any], rendering: Rendering, headers: dict[bytes, bytes] | None = None, **how: int
) -> list[bytes]:
    """What of the rendered text each chunk adds."""
    text = rendering.text(request)
    aligner = Aligner(BYTES, headers=rendering.headers if headers is None else headers)
    how = {"seed": 1, "order": rendering.order, "chunk_bytes": 64} | how
    stops = numbers(aligner.bind(scan(orjson.dumps(request)), u32(list(text)), **how).positions)
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def chat(*contents: str | None, **fields: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    return {
        "messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)],
        **fields,
    }


def test_roles_end_where_contents_begin() -> None:
    assert last_bytes(chat("a", "user", "yes"), CHATML) == [
        b"<|im_start|>user\n", b"a", b"<|im_end|>\n<|im_start|>assistant\n", b"user",
        b"<|im_end|>\n<|im_start|>user\n", b"yes", b"<|im_end|>\n<|im_start|>assistant\n",
    ]  # fmt: skip


def test_an_empty_content_ends_with_its_header() -> None:
    assert last_bytes(chat("a", "", "b"), CHATML)[2] == b"<|im_end|>\n<|im_start|>assistant\n"
    assert last_bytes(chat("a", None, "b"), CHATML)[2] == b"<|im_end|>\n<|im_start|>assistant\n"
    assert last_bytes(chat("a" * 30, "", "b" * 30), CHATML, NO_HEADERS)[2] == b""  # nobody said where it is


def test_trimmed_and_escaped_contents_are_found() -> None:
    llama = RENDERINGS[1]
    result = 'say "hi"\n\t\\ and 東京 ' * 6
    request = chat("  question\n", "x")
    request["messages"] += [{"role": "tool", "content": result}, {"role": "user", "content": "ok"}]
    added = last_bytes(request, llama, chunk_bytes=1024)
    assert added[1] == b"question"
    assert added[4].endswith(b"<|start_header_id|>ipython<|end_header_id|>\n\n")
    assert added[5] == orjson.dumps(result)[:-1]


def test_tools_are_walked_beside_what_the_template_made_of_them() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "description": "é " * 40, "parameters": {"a": [1, 2]}}}
        for i in range(3)
    ]
    for rendering in RENDERINGS[:2]:
        request = chat("hello there, what do you know?", tools=tools)
        body = orjson.dumps(request).decode().encode("ascii", "backslashreplace").replace(b"\\xe9", b"\\u00e9")
        text = rendering.text(request)
        aligner = Aligner(BYTES, headers=rendering.headers)
        bound = aligner.bind(scan(body), u32(list(text)), seed=1, order=rendering.order, chunk_bytes=64)
        assert bound.n_gaps == 0
        stops = numbers(bound.positions)
        assert text[stops[0] :].startswith(b'{\n    "type"' if rendering.name == "llama" else b'{"type"')


def test_a_wrong_order_of_segments_predicts_too_little() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "long " * 40}}]
    request = {
        "messages": [{"role": "system", "content": "be brief, and think"}, *chat("hello")["messages"]],
        "tools": tools,
    }
    text = CHATML.text(request)
    aligner = Aligner(BYTES, headers=CHATML.headers)
    stops = numbers(
        aligner.bind(scan(orjson.dumps(request)), u32(list(text)), seed=1, order=0, chunk_bytes=64).positions
    )
    assert max(stops[:2]) <= text.index(b'{"type"')  # the system's text, which the template puts behind the tools


def test_reasoning_in_front_of_an_answer_holds_it_back() -> None:
    request = chat("what?", "the answer is certainly forty-two", "why?")
    request["messages"][1]["reasoning_content"] = 'let me "think"\nabout it for a while'
    added = last_bytes(request, RENDERINGS[3])
    assert added[2] == b"<|im_end|>\n<|im_start|>assistant\n"
    assert added[3] == b"<think>\n"  # the answer cannot be had without the reasoning


def test_a_tools_array_of_which_little_is_rendered_is_given_up() -> None:
    request = chat("hello there, how are you", tools=[{"number": i, "deep": {"deeper": {}}} for i in range(100)])
    text = CHATML.text(chat("hello there, how are you")) + b"{" * 300 + orjson.dumps(request["tools"][-1])
    agree(orjson.dumps(request), [bytes([value]) for value in text], CHATML.headers, seed=1, order=1, chunk_bytes=16)


# ---- completions ----------------------------------------------------------------------------------------------------


def completion(prompt: Any, pieces: list[bytes], tokens: list[int] | None = None, **fields: Any) -> Bound:
    aligner = Aligner(pieces)
    ids = list(range(len(pieces))) if tokens is None else tokens
    return aligner.bind(scan(orjson.dumps({"prompt": prompt, **fields})), u32(ids), seed=1, order=0, chunk_bytes=16)


def test_a_text_prompt_is_bound_behind_a_token_that_is_not_in_it() -> None:
    pieces = [b"<s>", b"0123456789", b"abcdefghij", b"0123456789"]
    bound = completion("0123456789abcdefghij0123456789", pieces)
    assert (numbers(bound.positions), bound.n_found, bound.n_gaps) == ([2, 4], 1, 0)
    assert numbers(completion(["0123456789abcdefghij0123456789"], pieces).positions) == [2, 4]


def test_a_short_text_prompt_is_found() -> None:
    assert numbers(completion("Hi", [b"<s>", b"H", b"i"]).positions) == [3]


def test_token_ids_are_bound_as_far_as_they_are_alike() -> None:
    ids = list(range(1000, 1010))
    assert numbers(completion(ids, [b"x"], ids).positions) == [4, 8, 10]
    assert numbers(completion([ids], [b"x"], ids).positions) == [4, 8, 10]
    other = completion(ids, [b"x"], [*ids[:6], 5, *ids[7:]])
    assert (numbers(other.positions), other.n_found, other.n_gaps) == ([4, 6, 6], 0, 1)
    assert numbers(completion(ids, [b"x"], []).positions) == [0, 0, 0]


@pytest.mark.parametrize("prompt", [["a", "b"], ["", ""], [[1], [2]], [], None])
def test_several_prompts_and_none_are_not_bound(prompt: Any) -> None:
    bound = completion(prompt, [b"a", b"b"])
    assert (bound.chain, bound.positions, bound.n_found, bound.n_gaps) == (b"", b"", 0, 0)


def test_a_truncated_prompt_is_not_bound() -> None:
    assert completion("0123456789", [b"6789"], truncate_prompt_tokens=1).chain == b""
    assert completion("0123456789", [b"0123456789"], truncate_prompt_tokens=None).chain != b""


# ---- hostile --------------------------------------------------------------------------------------------------------


def test_ids_without_a_piece_are_empty_and_count_only_when_a_text_follows() -> None:
    pieces = [b"0123456789", b"abcdef"]
    assert numbers(completion("0123456789abcdef", pieces, [9, 0, 2**32 - 1, 1, 7, 7]).positions) == [4]


def test_a_huge_body_beside_many_tokens_is_bound_in_time() -> None:
    text = "a" * 40
    body = orjson.dumps({"messages": [{"role": "user", "content": text + str(i)} for i in range(60_000)]})
    tokens = u32([97] * 1_000_000)
    aligner = Aligner(BYTES, headers=CHATML.headers)
    for headers in (CHATML.headers, {b"user": b"aaa"}, {b"user": b"a"}):
        aligner = Aligner(BYTES, headers=headers)
        bound = aligner.bind(scan(body), tokens, seed=1, order=0, chunk_bytes=16)
        assert bound.chain == scan(body).chain(1, 0, 16)
        assert aligner.nbytes < 1 << 20  # such buffers are not kept


@pytest.mark.parametrize("tail", [b"\\", b"\\u", b"\\u12", b"\\ud800\\u", b'"\\', b"{", b'{"a', b'{"a\\'])
def test_text_that_ends_in_the_middle_of_something_is_survived(tail: bytes) -> None:
    request = chat('{"a\\', "\\u12 \ud7ff", '{"a":1}' * 9, tools=[{"a": "\\"}])
    text = CHATML.text(request)
    for start in (b"", text, b'<|im_start|>user\n"'):
        pieces = [bytes([value]) for value in start + tail]
        agree(orjson.dumps(request), pieces, CHATML.headers, seed=1, order=1, chunk_bytes=16)


@pytest.mark.parametrize("fail", [bind_module._fail_allocation, scan_module._fail_allocation], ids=["bind", "scan"])
@pytest.mark.parametrize("k", range(1, 14))
def test_failed_allocations_raise_and_leave_the_aligner_usable(k: int, fail: Callable[[int], None]) -> None:
    request = chat(*["some text that is long enough " * 30] * 40)
    text = CHATML.text(request)
    found, tokens = scan(orjson.dumps(request)), u32(list(text))
    expected = Aligner(BYTES).bind(found, tokens, seed=1, order=0, chunk_bytes=16).positions
    aligner: Aligner | None = None
    got: bytes | None = None
    fail(k)
    try:
        aligner = Aligner(BYTES)
        got = aligner.bind(found, tokens, seed=1, order=0, chunk_bytes=16).positions
    except MemoryError:
        pass
    finally:
        fail(0)
    assert got in (None, expected)
    assert k > 6 or got is None  # the first ones do hit
    if aligner is not None:
        assert aligner.bind(found, tokens, seed=1, order=0, chunk_bytes=16).positions == expected


def test_wrong_arguments_are_refused() -> None:
    aligner, found = Aligner(BYTES), scan(orjson.dumps(chat("a")))
    with pytest.raises(ValueError, match="chunk_bytes is 15"):
        aligner.bind(found, u32([]), seed=1, order=0, chunk_bytes=15)
    with pytest.raises(ValueError, match="order is 3"):
        aligner.bind(found, u32([]), seed=1, order=3, chunk_bytes=16)
    with pytest.raises(ValueError, match="items of 4 bytes"):
        aligner.bind(found, array("Q", [1]), seed=1, order=0, chunk_bytes=16)
    with pytest.raises(ValueError, match="items of 4 bytes"):
        aligner.bind(found, b"123", seed=1, order=0, chunk_bytes=16)
    with pytest.raises(TypeError):
        Aligner(["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="None"):
        Aligner([None])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        Aligner(BYTES, headers={"user": b"x"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="once"):
        aligner.__init__(BYTES)


def test_tokens_may_be_bytes_of_any_alignment() -> None:
    request = chat("hello there")
    text = CHATML.text(request)
    aligner, found, tokens = Aligner(BYTES), scan(orjson.dumps(request)), u32(list(text))
    expected = aligner.bind(found, tokens, seed=1, order=0, chunk_bytes=16).positions
    odd = memoryview(b"x" + tokens.tobytes())[1:]
    assert aligner.bind(found, odd, seed=1, order=0, chunk_bytes=16).positions == expected

"""Fields, type errors and the chain of scanned requests, against the naive model in tests/model."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from tests.model import scan_model
from tests.model.requests import random_request, write, write_escaped
from xinf._fast import scan as scan_module
from xinf._fast.scan import (
    DEVELOPER_HOISTED,
    SYSTEM_TOOLS_REST,
    THINKING_LAST,
    TOLD_OF_TOOLS,
    TOOLS_BEFORE_LAST_USER,
    TOOLS_FIRST,
    ScanError,
    order_of,
    scan,
)


def hashes(data: bytes) -> list[int]:
    return array("Q", data).tolist()


def chat(*messages: dict[str, object], **fields: object) -> bytes:
    return orjson.dumps({"model": "m", "messages": list(messages), **fields})


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("seed", range(400))
def test_scan_agrees_with_the_naive_model(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    body = write(random_request(rng), rng)
    found = scan(body)
    assert found.type_error is None
    for name, value in scan_model.fields_of(body).items():
        assert getattr(found, name) == value, name
    order, chunk_bytes, start = (
        rng.randrange(3) + 4 * rng.randrange(8),
        rng.choice([16, 48, 64, 4096]),
        rng.randrange(2**64),
    )
    chain, ends = found.chain_with_ends(start, order, chunk_bytes)
    expected = scan_model.chain_of(body, start, order, chunk_bytes)
    assert hashes(chain) == expected[0]
    assert array("I", ends).tolist() == expected[1]


@pytest.mark.parametrize("seed", range(100))
def test_chain_does_not_depend_on_how_text_is_escaped(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    request = {"messages": [user(text) for text in ("plain", "ü/€", "😀" * 40 + '\n"\\', "\u0007\b\f\r\t")]}
    assert scan(write_escaped(request, rng)).chain(7) == scan(orjson.dumps(request)).chain(7)


def test_fields_with_escaped_keys_are_found() -> None:
    found = scan(
        b'{"\\u006dodel":"a","str\\u0065am":true,"mess\\u0061ges":[{"r\\u006fle":"user","c\\u006fntent":"x"}]}'
    )
    assert (found.model, found.stream, found.n_messages) == ("a", True, 1)
    assert found.chain(1) == scan(b'{"messages":[{"role":"user","content":"x"}]}').chain(1)


def test_last_of_duplicate_keys_wins() -> None:
    found = scan(
        b'{"model":1,"model":"b","stream":true,"stream":false,"messages":7,"messages":[{"role":1,"role":"user"}]}'
    )
    assert (found.model, found.stream, found.kind, found.type_error) == ("b", False, "chat", None)


def test_last_of_duplicate_contents_is_hashed() -> None:
    twice = b'{"messages":[{"role":"user","content":[{"type":"text","text":"no"}],"content":"yes"}]}'
    assert scan(twice).chain(1) == scan(b'{"messages":[{"role":"user","content":"yes"}]}').chain(1)
    messages = b'{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}],"messages":[]}'
    assert scan(messages).chain(1) == b""
    assert scan(messages).n_messages == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[1]", ("body", "an object")),
        (b'"x"', ("body", "an object")),
        (b'{"model":3}', ("model", "a string")),
        (b'{"stream":"yes"}', ("stream", "a boolean")),
        (b'{"max_tokens":1.5}', ("max_tokens", "an integer")),
        (b'{"max_tokens":"9"}', ("max_tokens", "an integer")),
        (b'{"max_completion_tokens":99999999999999999999}', ("max_completion_tokens", "an integer")),
        (b'{"n":[]}', ("n", "an integer")),
        (b'{"user":1}', ("user", "a string")),
        (b'{"session_id":{}}', ("session_id", "a string")),
        (b'{"cache_salt":false}', ("cache_salt", "a string")),
        (b'{"tools":{}}', ("tools", "an array")),
        (b'{"messages":{}}', ("messages", "an array")),
        (b'{"messages":null}', ("messages", "an array")),
        (b'{"messages":[1]}', ("messages", "an array of objects")),
        (b'{"messages":[{},{"role":7}]}', ("messages[1].role", "a string")),
        (b'{"messages":[{"content":7}]}', ("messages[0].content", "a string, an array of content parts or null")),
        (b'{"messages":[{"content":[7]}]}', ("messages[0].content", "an array of content parts")),
        (b'{"messages":[{"content":[{"text":7}]}]}', ("messages[0].content", "text parts whose text is a string")),
        (b'{"prompt":7}', ("prompt", "a string, an array of strings or an array of token ids")),
        (b'{"prompt":["a",1]}', ("prompt", "a string, an array of strings or an array of token ids")),
        (b'{"prompt":[-1]}', ("prompt", "a string, an array of strings or an array of token ids")),
        (b'{"prompt":[4294967296]}', ("prompt", "a string, an array of strings or an array of token ids")),
        (b'{"prompt":[[1],["a"]]}', ("prompt", "a string, an array of strings or an array of token ids")),
        (b'{"input":[true]}', ("input", "a string, an array of strings or an array of token ids")),
    ],
)
def test_wrong_types_are_reported_and_are_no_parse_error(body: bytes, expected: tuple[str, str]) -> None:
    found = scan(body)
    assert found.type_error == expected
    found.chain(1)  # harmless
    assert found.n_text_bytes >= 0


def test_text_of_parts_that_are_strings_is_counted_once() -> None:
    found = scan(chat(user(["four", "five5", {"type": "text", "text": "sixsix"}])))
    assert found.n_text_bytes == len("userfourfive5sixsix")


def test_null_counts_as_absent() -> None:
    found = scan(b'{"model":null,"stream":null,"max_tokens":null,"n":null,"user":null,"tools":null,"prompt":null}')
    assert found.type_error is None
    assert (found.model, found.stream, found.max_tokens, found.n, found.session) == (None, False, None, 1, None)
    assert found.chain(1) == b""


def test_chain_of_a_longer_conversation_continues_the_shorter_one() -> None:
    first = [{"role": "system", "content": "be brief " * 30}, user("question " * 20)]
    answer = {"role": "assistant", "content": "an answer"}
    short = scan(chat(*first)).chain(5)
    # The shorter one ends with the header of the answer; the longer one goes on from there.
    assert scan(chat(*first, answer, user("more"))).chain(5).startswith(short)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user("a")), chat({"role": "system", "content": "a"})),
        (chat(user("a"), user("b")), chat(user("ab"))),
        (chat(user("a")), chat(user("a"), cache_salt="s")),
        (chat(user("a")), chat(user("a"), chat_template_kwargs={"thinking": False})),
        (chat(user("a")), chat(user("a"), tools=[{"f": 1}])),
        (chat(user("a"), tools=[{"f": 1}]), chat(user("a"), tools=[{"f": 2}])),
        (chat(user("a")), chat(user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}]))),
        (chat(user("a")), chat(user("a") | {"name": "bob"})),
        (b'{"prompt":"a"}', b'{"input":"a"}'),
        (b'{"prompt":[97]}', b'{"prompt":"a\\u0000\\u0000\\u0000"}'),
        (b'{"prompt":["a","b"]}', b'{"prompt":"ab"}'),
        (b'{"prompt":[[1],[2]]}', b'{"prompt":[1,2]}'),
    ],
)
def test_chains_of_different_prompts_differ(one: bytes, other: bytes) -> None:
    assert scan(one).chain(1)[-8:] != scan(other).chain(1)[-8:]


def test_chain_depends_on_the_seed() -> None:
    found = scan(chat(user("a" * 200)))
    assert not set(hashes(found.chain(1))) & set(hashes(found.chain(2)))
    assert found.chain(-1) == found.chain(2**64 - 1)


def test_a_single_text_part_is_the_same_as_a_string() -> None:
    parts = scan(chat(user([{"type": "text", "text": "x" * 100}])))
    assert parts.chain(1) == scan(chat(user("x" * 100))).chain(1)


def test_tools_stand_where_the_order_says() -> None:
    messages = ({"role": "system", "content": "s"}, user("q"), {"role": "assistant", "content": "a"}, user("r"))
    plain = [hashes(scan(chat(*messages)).chain(1, order)) for order in range(3)]
    with_tools = [hashes(scan(chat(*messages, tools=[{"name": "f"}])).chain(1, order)) for order in range(3)]
    common = [
        next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        for one, other in zip(plain, with_tools, strict=True)
    ]
    assert common[SYSTEM_TOOLS_REST] == 2
    assert common[TOOLS_FIRST] == 0
    assert common[TOOLS_BEFORE_LAST_USER] == 6


def test_a_payload_is_one_chunk_however_long() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    found = scan(chat(user([{"type": "text", "text": "look"}, image])))
    assert len(hashes(found.chain(1))) == 6  # role, text, part, type, payload, role of the answer
    assert found.n_text_bytes < 2000


def test_responses_input_is_chained_like_messages() -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    found = scan(orjson.dumps({"input": items}))
    assert (found.kind, found.type_error) == ("other", None)
    assert found.chain(1) == scan(orjson.dumps({"messages": items})).chain(1)


def test_n_text_bytes_is_the_end_of_the_chain_for_plain_chats() -> None:
    found = scan(chat({"role": "system", "content": "é" * 70}, user("x\n" * 300), add_generation_prompt=False))
    assert found.n_text_bytes == array("I", found.chain_with_ends(1)[1])[-1]


def test_tools_change_the_chain_from_its_start_where_the_template_does() -> None:
    messages = [{"role": "system", "content": "Be brief. " * 20}, {"role": "user", "content": "hi"}]
    plain, with_tools = chat(*messages), chat(*messages, tools=[{"name": "f"}])
    for order, is_equal in ((SYSTEM_TOOLS_REST, True), (SYSTEM_TOOLS_REST + TOLD_OF_TOOLS, False)):
        first, second = (hashes(scan(body).chain(1, order)) for body in (plain, with_tools))
        assert (first[0] == second[0]) is is_equal


def test_developer_messages_are_hoisted_where_the_engine_does() -> None:
    system, developer, asked = ({"role": role, "content": role * 30} for role in ("system", "developer", "user"))
    late, early = chat(system, asked, developer), chat(system, developer, asked)
    order = SYSTEM_TOOLS_REST + DEVELOPER_HOISTED
    assert scan(late).chain(1, order) == scan(early).chain(1, order)
    assert scan(late).chain(1) != scan(early).chain(1)
    late, early = (chat(*each, tools=[{"name": "f"}]) for each in ((asked, developer), (developer, asked)))
    assert scan(late).chain(1, order) == scan(early).chain(1, order)


def test_thinking_changes_only_the_header_of_the_answer_where_the_template_does() -> None:
    asked = user("hello " * 40)
    bodies = [chat(asked, chat_template_kwargs={"enable_thinking": value}) for value in (True, False)]
    late, other = (hashes(scan(body).chain(1, SYSTEM_TOOLS_REST + THINKING_LAST)) for body in bodies)
    assert late[:-1] == other[:-1]
    assert late[-1] != other[-1]
    dated = chat(asked, chat_template_kwargs={"enable_thinking": True, "date_string": "today"})
    assert hashes(scan(dated).chain(1, SYSTEM_TOOLS_REST + THINKING_LAST))[0] != late[0]


@pytest.mark.parametrize(("order", "chunk_bytes"), [(3, 64), (7, 64), (32, 64), (-1, 64), (0, 15), (0, 4097)])
def test_chain_refuses_bad_arguments(order: int, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        scan(b"{}").chain(1, order, chunk_bytes)


def test_scan_refuses_what_is_no_bytes() -> None:
    with pytest.raises(TypeError):
        scan("{}")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_depth"):
        scan(b"{}", 0)
    with pytest.raises(ValueError, match="max_depth"):
        scan(b"{}", 1025)


def test_depth_limit_is_exact() -> None:
    for depth in (1, 5, 256, 1024):
        body = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}" if depth > 1 else b"{}"
        scan(body, depth)
        if depth > 1:
            with pytest.raises(ScanError, match="nested too deeply"):
                scan(body, depth - 1)


def test_depth_is_counted_inside_messages() -> None:
    body = b'{"messages":[{"role":"user","content":[{"type":"x","x":[[]]}]}]}'  # { [ { [ { [ [
    scan(body, 7)
    with pytest.raises(ScanError, match="nested too deeply"):
        scan(body, 6)


def test_bodies_of_empty_objects_do_not_take_many_times_their_size() -> None:
    n = 200_000
    found = scan(b'{"messages":[' + b"{}," * n + b"{}]}")
    assert found.n_messages == 1 << 16
    assert len(hashes(found.chain(1))) == 1 << 16
    parts = scan(b'{"messages":[{"role":"user","content":[' + b"{}," * 300_000 + b"{}]},{}]}")
    assert parts.n_messages == 2
    assert len(parts.chain(1)) == 0  # the first message is not recorded whole


@pytest.mark.parametrize("k", range(1, 12))
def test_failed_allocations_raise_and_leave_nothing_broken(k: int) -> None:
    body = chat(*[user([{"type": "text", "text": "x" * 100}] * 20) for _ in range(40)])
    expected = scan(body).chain(1)
    scan_module._fail_allocation(k)
    try:
        got = scan(body).chain(1)
    except MemoryError:
        got = None
    finally:
        scan_module._fail_allocation(0)
    assert got in (None, expected)
    assert k > 6 or got is None  # the first ones do hit
    assert scan(body).chain(1) == expected


@pytest.mark.parametrize("seed", range(200))
def test_canonical_text_is_what_the_chain_goes_through(seed: int) -> None:
    """Cut in chunks as the chain is, its pieces give the ends of the chain."""
    print("seed", seed)
    rng = random.Random(seed)
    body = write(random_request(rng), rng)
    order = rng.randrange(3)
    found = scan(body)
    pieces = found.canonical(order)
    ends = array("I", found.chain_with_ends(1, order, 16)[1]).tolist()
    starts_and_ends = {0}
    at = 0
    for kind, text in pieces:
        if kind == "ids":
            at += len(text)
            continue
        inner = range(at + 16, at + len(text), 16) if kind in ("text", "json") else ()
        starts_and_ends.update(inner)
        at += len(text)
        starts_and_ends.add(at)
    assert (ends[-1] if ends else 0) == at
    if not any(kind == "ids" for kind, _ in pieces):
        assert {0, *ends} == starts_and_ends


def test_canonical_text_of_a_chat_is_readable() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = (
        b'{"messages": [{"role": "system", "content": "s\\u00fc"}, {"role": "user", "name" : "n", "content": ["a"]}],'
    )
    body += b' "tools": ' + orjson.dumps(tools, option=orjson.OPT_INDENT_2) + b"}"
    assert scan(body).canonical(SYSTEM_TOOLS_REST) == [
        ("role", b"system"),
        ("text", "sü".encode()),
        ("json", orjson.dumps(tools)),
        ("role", b"user"),
        ("text", b"a"),
        ("json", b'"name":"n"'),
        ("role", b"assistant"),
    ]
    assert scan(body).canonical(TOOLS_FIRST)[0] == ("json", orjson.dumps(tools))


def test_canonical_text_of_prompts() -> None:
    assert scan(b'{"prompt": "a\\nb"}').canonical() == [("text", b"a\nb")]
    assert scan(b'{"prompt": ["a", "b"]}').canonical() == [("text", b"a"), ("text", b"b")]
    assert scan(b'{"input": [[1, 258], [3]]}').canonical() == [
        ("ids", b"\1\0\0\0"), ("ids", b"\2\1\0\0"), ("ids", b"\3\0\0\0"),
    ]  # fmt: skip
    assert scan(b"[1]").canonical() == []


@pytest.mark.parametrize(
    ("segments", "order"),
    [
        ((), 0),
        (("system", "tools", "messages"), 0),
        (("tools", "messages"), 1),
        (("system", "messages", "tools", "last_user"), 2),
        (("has_tools", "system", "tools", "messages"), 4),
        (("tools", "messages", "thinking", "developer"), 1 + 8 + 16),
        (("has_tools", "tools", "messages"), 1 + 4),
    ],
)
def test_order_is_read_from_what_engines_publish(segments: tuple[str, ...], order: int) -> None:
    assert order_of(segments) == order
